"""`--experts KEEP` on the verbs that run the engine, and what refuses it."""

from pathlib import Path

import pytest
from tests.cli.conftest import Skimp, complaint, read


def test_generate_thins_and_says_so(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    words = ("generate", folder, "The river", "--max-new-tokens", "6", "--json", "g.json")
    skimp(*words, "--experts", "0.5")
    plan = read(tmp_path / "g.json")["plan"]
    assert plan["experts"]["keep"] == 0.5
    whole = skimp(*words).stdout
    assert skimp(*words, "--experts", "1").stdout == whole


def test_bench_counts_the_neurons_that_are_read(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    words = ("--workload", "8+4x1", "--rounds", "6", "--steps", "2", "--json", "b.json")
    skimp("bench", folder, "--experts", "0.5", *words)
    found = read(tmp_path / "b.json")
    assert found["byte_bound"]["decode"] > 1.02
    assert found["compute_bound"]["prefill"] == 1
    assert found["engine"]["planned"]["path"] == found["engine"]["dense"]["path"]


def test_eval_predicts_answers_with_experts(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("The river runs down to the sea. " * 40)
    words = ("--text", "held.txt", "--tokens", "128", "--window", "32", "--json", "e.json")
    skimp("eval", folder, "--experts", "0.5", *words)
    found = read(tmp_path / "e.json")
    near = found["fidelity"]
    assert near["kl"] > 0
    assert near["tokens"] == 4 * 15
    flocking = found["flocking"]
    assert flocking["prompts"] == [32] * 4
    assert flocking["overlap"]["chance"] == 0.5 < flocking["overlap"]["prompts"] <= 1
    assert (flocking["map"]["layer"], flocking["map"]["neurons"]) == (2, 48)
    assert [len(rows) for rows in flocking["map"]["prompts"]] == [32, 32]
    skimp("report", "--eval", "e.json", "--out", "r.html")
    assert "The neurons that a prompt needs" in (tmp_path / "r.html").read_text()


def test_eval_watches_neurons_of_what_a_plan_leaves(
    skimp: Skimp, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "held.txt").write_text("The river runs down to the sea. " * 40)
    words = ("--text", "held.txt", "--tokens", "64", "--window", "32", "--json", "e.json")
    skimp("plan", folder, "--ffn", "1", "--fill", "zero", "--out", "p.yaml")
    skimp("eval", folder, "--plan", "p.yaml", *words)
    assert "flocking" not in read(tmp_path / "e.json")
    skimp("eval", folder, "--plan", "p.yaml", "--experts", "0.25", *words)
    overlap = read(tmp_path / "e.json")["flocking"]["overlap"]
    assert [one["layer"] for one in overlap["layers"]] == [0, 2, 3]
    skimp("eval", folder, "--experts", "1", *words)
    assert "flocking" not in read(tmp_path / "e.json")


def test_plan_writes_them(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    skimp("plan", folder, "--experts", "0.5", "--out", "half.yaml", "--json", "p.json")
    found = read(tmp_path / "p.json")
    assert found["experts"]["keep"] == 0.5 and found["fill"] is None
    assert found["byte_bound"]["decode"] > 1.02
    both = ("--attention", "1", "--fill", "zero", "--experts", "0.5", "--out", "both.yaml")
    skimp("plan", folder, *both, "--json", "both.json")
    bound = read(tmp_path / "both.json")["byte_bound"]["decode"]
    assert bound > found["byte_bound"]["decode"]
    words = ("--max-new-tokens", "4", "--json", "g.json")
    for name in ("half.yaml", "both.yaml"):
        skimp("generate", folder, "The river", "--plan", tmp_path / name, *words)
    assert set(read(tmp_path / "g.json")["plan"]) >= {"drop", "experts"}


def test_what_experts_cannot_do_is_said(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    for keep in ("0", "1.5", "-1"):
        said = complaint(skimp("generate", folder, "x", "--experts", keep, code=2))
        assert "--experts" in said
    skimp("plan", folder, "--rule", "last", "--drop-attention", "1", "--fill", "zero", "--out", "p")
    plan = tmp_path / "p"
    plan.write_text(plan.read_text() + "experts: {keep: 0.5}\n")
    said = complaint(skimp("generate", folder, "x", "--plan", plan, "--experts", "0.5", code=2))
    assert "experts of its own" in said
    said = complaint(skimp("apply", folder, "--plan", plan, "--out", "out", code=2))
    assert "experts: the engine chooses them" in said
    skimp("generate", folder, "The river", "--plan", plan, "--max-new-tokens", "3")
    skimp("inspect", folder, "--plan", plan)


def test_tuned_shares_differ_by_layer(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.yaml"
    words = ("--tune", "--refresh", "4", "--out", tuned, "--json", "p.json")
    said = skimp("plan", folder, "--experts", "0.5", *words).stdout
    found = read(tmp_path / "p.json")
    section, shares = found["experts"], found["spread"]
    assert "layer by layer" in said
    assert len(section["keep"]) == len(shares["harms"]["0.5"])
    assert sum(section["keep"]) / len(section["keep"]) == pytest.approx(0.5, abs=1e-3)
    assert (section["fill"], section["prior"], section["refresh"]) == ("mean", 0.5, 4)
    equal, *others = (way["kl"] for way in shares["joint"])
    assert min([equal, *others]) <= equal and len(others) == 4
    skimp("generate", folder, "The river", "--plan", tuned, "--max-new-tokens", "9")
    skimp("plan", folder, "--attention", "1", "--fill", "zero", "--experts", "0.5", *words)
    assert set(read(tmp_path / "p.json")["plan"]) >= {"drop", "experts"}


def test_tuning_needs_experts_of_prompts(skimp: Skimp) -> None:
    said = complaint(skimp("plan", "nowhere", "--ffn", "1", "--tune", code=2))
    assert "--experts" in said
    words = ("--experts", "0.5", "--scope", "calibrated", "--tune")
    assert "--tune" in complaint(skimp("plan", "nowhere", *words, code=2))


# --- one set for good ---------------------------------------------------------------------------


def test_plan_fits_one_set_and_every_verb_takes_it(
    skimp: Skimp, folder: Path, tmp_path: Path
) -> None:
    narrow = tmp_path / "narrow.yaml"
    words = ("--experts", "0.5", "--scope", "calibrated")
    said = skimp("plan", folder, *words, "--out", narrow, "--json", "p.json").stdout
    found = read(tmp_path / "p.json")
    assert found["experts"]["scope"] == "calibrated" and found["calibration"]["tokens"] > 0
    assert "for good" in said and narrow.with_suffix(".safetensors").is_file()
    skimp("apply", folder, "--plan", narrow, "--out", "out", "--json", "a.json")
    sizes = read(tmp_path / "a.json")
    assert sizes["planned"]["parameters"] < sizes["dense"]["parameters"]
    skimp("inspect", folder, "--plan", narrow, "--json", "i.json")
    skimp("inspect", tmp_path / "out", "--json", "o.json")
    planned, written = read(tmp_path / "i.json")["planned"], read(tmp_path / "o.json")
    assert planned["totals"] == written["totals"]
    assert planned["totals"]["parameters"] == sizes["planned"]["parameters"]
    words = ("generate", "The river", "--max-new-tokens", "6")
    asked = skimp(words[0], folder, *words[1:], "--plan", narrow).stdout
    assert skimp(words[0], tmp_path / "out", *words[1:]).stdout == asked
    (tmp_path / "held.txt").write_text("The river runs down to the sea. " * 40)
    words = ("--text", "held.txt", "--tokens", "128", "--window", "32", "--json", "e.json")
    said = skimp("eval", folder, "--plan", narrow, *words).stdout
    assert "FF neurons kept: 50%" in said
    near = read(tmp_path / "e.json")["fidelity"]
    assert near["kl"] > 0 and near["tokens"] > 4 * 15, "every token but the first is predicted"
    skimp(
        "bench",
        folder,
        "--plan",
        narrow,
        "--workload",
        "8+4x1",
        "--rounds",
        "6",
        "--steps",
        "2",
        "--json",
        "b.json",
    )
    bench = read(tmp_path / "b.json")
    assert bench["compute_bound"]["prefill"] > 1.02 < bench["byte_bound"]["decode"]
    assert bench["planned"]["weight_bytes"] < bench["dense"]["weight_bytes"]


@pytest.mark.parametrize("way", ["rule", "rule that reads", "hand", "file"])
def test_beside_a_drop(skimp: Skimp, folder: Path, tmp_path: Path, way: str) -> None:
    """One run fits both, on one text."""
    both = tmp_path / "both.yaml"
    words = ("--experts", "0.5", "--scope", "calibrated", "--out", both, "--json", "p.json")
    ways = {
        "rule": ("--rule", "last", "--drop-ffn", "1", "--fill", "zero"),
        "rule that reads": ("--rule", "cosine", "--drop-attention", "1", "--fill", "mean"),
        "hand": ("--ffn", "1", "--fill", "linear:2", "--repair", "full"),
        "file": ("--fit", both),
    }
    if way == "file":
        skimp("plan", folder, "--layers", "1", "--fill", "mean", "--out", both)
    skimp("plan", folder, *ways[way], *words)
    found = read(tmp_path / "p.json")
    assert found["calibration"]["tokens"] > 0
    assert set(found["plan"]) >= {"drop", "experts", "evidence"}
    skimp("apply", folder, "--plan", both, "--out", "out")
    skimp("inspect", tmp_path / "out")


def test_hand_written_sections_are_fitted(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "p.yaml"
    for section in ("{keep: 0.5, prior: 0.5}", "{keep: 0.5, scope: calibrated}"):
        skimp("plan", folder, "--experts", "1", "--out", plan)
        head, _, _ = plan.read_text().partition("experts:")
        plan.write_text(f"{head}experts: {section}\n")
        said = complaint(skimp("generate", folder, "x", "--plan", plan, code=2))
        assert "not been fitted" in said and "--fit" in said
        skimp("plan", folder, "--fit", plan)
        skimp("generate", folder, "The river", "--plan", plan, "--max-new-tokens", "3")


def test_repair_of_narrower_ffs(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    words = ("--experts", "0.5", "--scope", "calibrated", "--out", "p.yaml", "--json", "p.json")
    said = skimp("plan", folder, *words, "--repair", "full").stdout
    found = read(tmp_path / "p.json")
    assert found["experts"]["repair"] == "full" and "repaired" in said
    skimp("generate", folder, "The river", "--plan", "p.yaml", "--max-new-tokens", "3")
    skimp("plan", folder, *words, "--repair", "4", "--ffn", "1")  # a rank is for what is dropped
    found = read(tmp_path / "p.json")
    assert found["experts"]["repair"] == "none" and found["repair"] == 4


def test_scope_is_checked_first(skimp: Skimp) -> None:
    said = complaint(skimp("plan", "nowhere", "--experts", "0.5", "--scope", "all", code=2))
    assert "--scope: 'all' is none of prompt, calibrated" in said
    said = complaint(skimp("plan", "nowhere", "--ffn", "1", "--scope", "calibrated", code=2))
    assert "--scope" in said and "--experts" in said
