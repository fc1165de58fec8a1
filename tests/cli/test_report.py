"""`skimp report`."""

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Skimp, complaint

HEADER = {
    "skimp": "0.1.0",
    "model": {"source": "a-model", "type": "llama", "layers": 4},
    "plan": {"drop": {"attention": [1], "fill": "zero"}},
    "seed": 0,
    "machine": {"cpu": "some cpu"},
}
PLAN = {**HEADER, "dropped": {"attention": [1], "ffn": []}, "calibration_loss": 0.1, "seconds": 2.0}
FIDELITY = {"perplexity_dense": 9.0, "perplexity_planned": 9.5, "kl": 0.02, "top1_agreement": 0.9}
EVAL = {**HEADER, "tasks": {}, "fidelity": FIDELITY}
BENCH = {
    **HEADER,
    "workload": "64+16x1",
    "dense": {"tpot_s": 0.02, "weight_bytes": 200},
    "planned": {"tpot_s": 0.018, "weight_bytes": 180},
    "speedup": {"decode": 1.11, "decode_interval": [1.05, 1.17], "prefill": 1.0},
    "byte_bound": {"decode": 1.1},
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, document in (("plan", PLAN), ("eval", EVAL), ("bench", BENCH)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def test_all_parts(skimp: Skimp, files: Path) -> None:
    words = ("--plan", "plan.json", "--eval", "eval.json", "--bench", "bench.json")
    words = (*words, "--compare", "last=eval.json", "--out", "r.html", "--json", "r.json")
    skimp("report", *words)
    page = (files / "r.html").read_text()
    assert "a-model" in page
    assert "last" in page
    found = json.loads((files / "r.json").read_text())
    assert found["evaluations"] == ["plan", "last"]
    assert found["model"] == HEADER["model"]


@pytest.mark.parametrize("part", ["plan", "eval", "bench"])
def test_any_part_alone(skimp: Skimp, files: Path, part: str) -> None:
    skimp("report", f"--{part}", f"{part}.json", "--out", "r.html")
    assert "a-model" in (files / "r.html").read_text()


def test_a_search_is_shown(skimp: Skimp, files: Path) -> None:
    """Also one that no single plan came out of."""
    dense = {"number": 0, "source": "dense", "name": "dense", "frontier": True}
    rule = {**dense, "number": 1, "source": "rule", "name": "last <b>", "byte_bound": 1.25}
    found = {"plans": [dense, rule], "chosen": None, "budget": "loss<=1%"}
    (files / "search.json").write_text(json.dumps({**HEADER, "plan": None, "search": found}))
    skimp("report", "--plan", "search.json", "--out", "r.html")
    page = (files / "r.html").read_text()
    assert '<a href="#frontier">' in page and "last &lt;b&gt;" in page
    assert "No plan was chosen under the budget loss&lt;=1%." in page
    assert "Decode speed was not measured." in page


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "nothing to report"),
        (["--plan", "no.json"], "no.json"),
        (["--plan", "eval.json"], "skimp eval"),
        (["--eval", "bench.json"], "skimp bench"),
        (["--bench", "broken.json"], "broken.json"),
        (["--bench", "foreign.json"], "foreign.json"),
        (["--eval", "binary.json"], "binary.json"),
        (["--eval", "eval.json", "--compare", "last"], "NAME=JSON"),
        (["--eval", "eval.json", "--compare", "plan=eval.json"], "--compare"),
        (["--eval", "eval.json", "--samples", "foreign.json"], "--samples"),
    ],
)
def test_mistakes_are_named(skimp: Skimp, files: Path, words: list[str], named: str) -> None:
    (files / "broken.json").write_text('{"skimp": ')
    (files / "foreign.json").write_text('{"skimp": 1, "name": "something else"}')
    (files / "binary.json").write_bytes(b"\xff\xfe\x00")
    assert named in complaint(skimp("report", *words, "--out", "r.html", code=2))
    assert not (files / "r.html").exists()


def test_results_of_two_models_are_refused(skimp: Skimp, files: Path) -> None:
    for name, digit, document in (("plan", "a", PLAN), ("eval", "b", EVAL)):
        model = {**HEADER["model"], "source": name, "fingerprint": f"sha256:{digit * 32}"}
        (files / f"{name}.json").write_text(json.dumps({**document, "model": model}))
    words = ("--plan", "plan.json", "--eval", "eval.json", "--bench", "bench.json")
    said = complaint(skimp("report", *words, "--out", "r.html", code=2))
    assert "--eval: it is about eval, but --plan about plan" in said
    assert not (files / "r.html").exists()
    skimp("report", "--plan", "plan.json", "--bench", "bench.json", "--out", "r.html")


def test_a_place_that_cannot_be_written(skimp: Skimp, files: Path) -> None:
    words = ("report", "--eval", "eval.json", "--out", "no/r.html")
    assert "--out" in complaint(skimp(*words, code=2))
