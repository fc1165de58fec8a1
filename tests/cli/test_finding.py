"""`skimp plan --budget` and `--pick`, on a tiny model and by bytes: no clock has a say."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import TEXT, Skimp, complaint, read
from tests.cli.test_eval import TASK

from skimp.finder import search as search_room
from skimp.finder.clock import Clock
from skimp.finder.ladder import SPEEDS, Ladder
from skimp.finder.prices import Bytes
from skimp.finder.workers import Job
from skimp.measure.cost import byte_bound
from skimp.measure.statistics import Interval
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.workload import Workload

COMMON = ("--costs", "bytes", "--workload", "32+24", "--workers", "1")


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 90)
    return path


def search(skimp: Skimp, folder: Path, text: Path, out: str, *words: Any, code: int = 0) -> Any:
    common = (*COMMON, "--calibration", text, "--out", out)
    return skimp("plan", folder, *common, *words, code=code)


def test_a_plan_for_a_budget(skimp: Skimp, folder: Path, long_text: Path, tmp_path: Path) -> None:
    words = ("--budget", "bytes>=1.2x", "--json", "p.json")
    result = search(skimp, folder, long_text, "p.yaml", *words)
    found = read(tmp_path / "p.json")["search"]
    plans = {entry["number"]: entry for entry in found["plans"]}
    assert plans[0]["source"] == "dense"
    chosen = plans[found["chosen"]]
    assert chosen["byte_bound"] >= 1.2
    fast = [e for e in plans.values() if e["source"] == "finder" and e["byte_bound"] >= 1.2]
    assert chosen["loss_difference"] == min(entry["loss_difference"] for entry in fast)
    plan = Plan.read(tmp_path / "p.yaml")
    assert plan.evidence["search"]["byte_bound"] == chosen["byte_bound"]
    assert all(entry["speedup"] is None for entry in plans.values() if entry["number"])
    assert found["complete"] and "p.yaml" in result.stdout
    assert 0 < found["first_plot"] < found["seconds"]
    skimp("generate", folder, "the", "--plan", "p.yaml", "--max-new-tokens", "2")


def test_one_seed_gives_one_plan(
    skimp: Skimp,
    folder: Path,
    long_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Byte for byte; also if it was interrupted on the way, twice, and went on."""
    words = ("--budget", "bytes>=1.15x")
    search(skimp, folder, long_text, "a.yaml", *words)
    rungs, calls = Ladder.rungs, []

    def interrupted(self: Ladder, speed: float) -> Any:
        calls.append(speed)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return rungs(self, speed)

    with monkeypatch.context() as patch:
        patch.setattr(Ladder, "rungs", interrupted)
        search(skimp, folder, long_text, "b.yaml", *words, code=130)
    assert not (tmp_path / "b.yaml").exists()
    with monkeypatch.context() as patch:
        patch.setattr("skimp.finder.workers.fit", _stopping_fit())
        search(skimp, folder, long_text, "b.yaml", *words, code=130)
    assert not (tmp_path / "b.yaml").exists()
    search(skimp, folder, long_text, "b.yaml", *words)
    first, second = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "ab")
    assert first == second
    texts = [(tmp_path / f"{name}.yaml").read_text() for name in "ab"]
    assert texts[0].replace("a.safetensors", "b.safetensors") == texts[1]


def _stopping_fit() -> Any:
    from skimp.finder.judge import fit

    done: list[Job] = []

    def stops(model: Any, plan: Plan, *rest: Any, **more: Any) -> Plan:
        done.append(Job(Path(), Path()))
        if len(done) == 3:
            raise KeyboardInterrupt
        return fit(model, plan, *rest, **more)

    return stops


def test_a_budget_on_accuracy(skimp: Skimp, folder: Path, long_text: Path, tmp_path: Path) -> None:
    """Points may be lost, as many as half of the items can show; the other half proves it."""
    tasks = task_folder(tmp_path, 60)
    words = ("--budget", "accuracy(tiny_choice)>=-60", "--include", tasks, "--json", "p.json")
    search(skimp, folder, long_text, "p.yaml", *words)
    found = read(tmp_path / "p.json")["search"]
    chosen = next(e for e in found["plans"] if e["number"] == found["chosen"])
    halves = chosen["accuracy"]
    assert halves["choosing"]["items"] + halves["proving"]["items"] == 60
    assert halves["proving"]["holds"] and "mean accuracy" in found["promise"]["words"]
    assert Plan.read(tmp_path / "p.yaml").evidence["search"]["accuracy"] == halves["proving"]
    words = ("--budget", "accuracy(tiny_choice)>=-0.01", "--include", tasks, "--state", "p.search")
    result = search(skimp, folder, long_text, "no.yaml", *words)
    assert "could not be shown to keep" in " ".join(result.stdout.split())
    assert not (tmp_path / "no.yaml").exists()


def test_a_speed_that_prices_misjudge_is_aimed_at_again(
    skimp: Skimp,
    folder: Path,
    long_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine where every plan runs at seven tenths of the gain that its prices foretell."""
    monkeypatch.setattr(search_room, "measure_prices", lambda *_, **__: Bytes())
    monkeypatch.setattr(Clock, "__init__", lambda self, model, *_: setattr(self, "model", model))
    monkeypatch.setattr(Clock, "speedup", _disappointing)
    monkeypatch.setattr(search_room, "look", lambda *_: ([], []))
    words = ("--costs", "measured", "--budget", "speedup>=1.45x", "--json", "p.json")
    search(skimp, folder, long_text, "p.yaml", *words)
    found = read(tmp_path / "p.json")["search"]
    plans = [entry for entry in found["plans"] if entry["source"] == "finder"]
    assert any(1.45 <= entry["speedup"] < 1.5 for entry in plans)
    assert not any(1.45 <= 1 + (speed - 1) * 0.7 < 1.5 for speed in SPEEDS)
    chosen = next(entry for entry in plans if entry["number"] == found["chosen"])
    assert chosen["speedup"] >= 1.45


def _disappointing(self: Clock, plan: Plan, *, within: float | None = None) -> Interval:
    del within
    anatomy = Anatomy.of(self.model)
    bound = byte_bound(anatomy, reduce(plan, anatomy), Workload.parse("32+24"))
    speed = 1 + (bound - 1) * 0.7
    return Interval(speed, speed, speed)


def task_folder(tmp_path: Path, items: int) -> Path:
    path = tmp_path / "tasks"
    path.mkdir()
    (path / "tiny.yaml").write_text(TASK)
    rows = [
        {"query": f"The bridge {n}", "choices": [" is old", " was new"], "gold": n % 2}
        for n in range(items)
    ]
    (path / "items.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_pick(skimp: Skimp, folder: Path, long_text: Path, tmp_path: Path) -> None:
    result = search(skimp, folder, long_text, "p.yaml", "--search", "--json", "p.json")
    assert "--pick N" in result.stdout and not (tmp_path / "p.yaml").exists()
    plans = read(tmp_path / "p.json")["search"]["plans"]
    number = plans[3]["number"]
    words = ("--pick", str(number), "--state", "p.search", "--out", "mine.yaml")
    skimp("plan", folder, *words)
    picked = Plan.read(tmp_path / "mine.yaml")
    assert {k: dict(v) for k, v in picked.sections.items()} == plans[3]["sections"]
    again = ("--pick", "999", "--state", "p.search", "--out", "mine.yaml")
    assert "there is no plan 999" in complaint(skimp("plan", folder, *again, code=2))


def test_an_impossible_budget_gets_the_nearest_plan(
    skimp: Skimp, folder: Path, long_text: Path, tmp_path: Path
) -> None:
    words = ("--budget", "bytes>=30x", "--json", "p.json")
    result = search(skimp, folder, long_text, "p.yaml", *words)
    assert "the nearest is number" in " ".join(result.stdout.split())
    assert read(tmp_path / "p.json")["search"]["chosen"] is None
    assert not (tmp_path / "p.yaml").exists()


def test_rules_stand_beside_the_frontier(
    skimp: Skimp, folder: Path, long_text: Path, tmp_path: Path
) -> None:
    words = ("--search", "--compare", "--json", "p.json")
    search(skimp, folder, long_text, "p.yaml", *words)
    plans = read(tmp_path / "p.json")["search"]["plans"]
    names = {entry["name"] for entry in plans if entry["source"] == "rule"}
    assert {"last, attention 25%", "cosine, attention 50%", "GRIFFIN 0.5", "AdaInfer"} <= names
    assert all(entry["kl"] >= 0 for entry in plans)
    skimp("report", "--plan", "p.json", "--out", "r.html")
    assert "Frontier" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("words", "complaint_of"),
    [
        (("--budget", "los<=1%"), "did you mean 'loss'"),
        (("--budget", "speedup>=1.2x"), "--costs bytes"),
        (("--budget", "loss<=1%", "--drop-attention", "2"), "the search chooses by itself"),
        (("--budget", "loss<=1%", "--fill", "zero"), "the search chooses by itself"),
        (("--budget", "loss<=1%", "--repair", "none"), "the search chooses by itself"),
        (("--budget", "loss<=1%", "--exit", "e.yaml"), "the search chooses by itself"),
        (("--search", "--tune"), "the search chooses by itself"),
        (("--search", "--keep-last", "2"), "the search chooses by itself"),
        (("--drop-attention", "1", "--time", "5"), "are about a search"),
        (("--drop-attention", "1", "--costs", "bytes"), "are about a search"),
        (("--search", "--time", "0"), "--time"),
        (("--search", "--time", "nan"), "--time"),
        (("--search", "--held-out", "none.txt"), "no file none.txt"),
        (("--search", "--costs", "money"), "none of measured, bytes"),
        (("--pick", "1"), "holds no finished search"),
        (("--budget", "accuracy(nothing_like_it)>=-1"), "there is no task 'nothing_like_it'"),
        (("--search", "--limit", "9"), "they are about tasks"),
    ],
)
def test_what_makes_no_sense_is_refused(
    skimp: Skimp, folder: Path, long_text: Path, words: tuple[str, ...], complaint_of: str
) -> None:
    result = search(skimp, folder, long_text, "p.yaml", *words, code=2)
    assert complaint_of in complaint(result)


def test_too_little_text_is_refused(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text(TEXT * 4)
    result = search(skimp, folder, short, "p.yaml", "--search", code=2)
    assert "longer text" in complaint(result)
