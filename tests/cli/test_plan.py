"""`skimp plan`."""

from pathlib import Path

import pytest
import torch
import yaml
from tests.cli.conftest import Skimp, complaint, read

from skimp.plan import Plan


def test_by_hand(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    words = ("--attention", "0-1", "--layers", "2", "--fill", "zero")
    result = skimp("plan", folder, *words, "--out", "p.yaml", "--json", "p.json")
    assert "0-2" in result.stdout
    found = read(tmp_path / "p.json")
    assert found["dropped"] == {"attention": [0, 1, 2], "ffn": [2]}


def test_by_hand_names_what_does_not_fit(skimp: Skimp, folder: Path) -> None:
    words = ("plan", folder, "--attention", "9", "--fill", "zero", "--out", "p.yaml")
    assert "no layer 9" in complaint(skimp(*words, code=2))


def test_by_hand_with_a_fitted_fill(
    skimp: Skimp, folder: Path, text_file: Path, tmp_path: Path
) -> None:
    words = (
        "--attention",
        "1",
        "--fill",
        "linear:4",
        "--repair",
        "none",
        "--calibration",
        text_file,
    )
    skimp("plan", folder, *words, "--out", "p.yaml", "--json", "p.json")
    plan = Plan.read(tmp_path / "p.yaml")
    assert set(plan.values) == {f"drop.attention.1.{name}" for name in ("down", "up", "bias")}
    found = read(tmp_path / "p.json")
    assert found["rule"] is None
    assert found["calibration"]["source"] == text_file.name


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_a_rule(skimp: Skimp, folder: Path, text_file: Path, tmp_path: Path, fill: str) -> None:
    words = ("--rule", "greedy", "--drop-attention", "2", "--fill", fill)
    words = (*words, "--calibration", text_file, "--out", "p.yaml", "--json", "p.json")
    result = skimp("plan", folder, *words)
    found = read(tmp_path / "p.json")
    assert len(found["dropped"]["attention"]) == 2
    assert found["dropped"]["ffn"] == []
    assert found["fill"] == fill
    assert sorted(step["layer"] for step in found["path"]) == found["dropped"]["attention"]
    assert len(found["importance"]["greedy"]["attention"]) == 4
    assert found["calibration_loss"] > 0
    assert found["byte_bound"]["decode"] > 1
    assert found["plan"]["drop"]["attention"] == found["dropped"]["attention"]
    assert "p.yaml" in result.stdout
    assert Plan.read(tmp_path / "p.yaml").sections["drop"]["fill"] == fill


def test_a_rule_that_reads_no_text_needs_no_tokenizer(skimp: Skimp, tmp_path: Path) -> None:
    words = ("plan", "random:smollm2-135m,layers=2", "--rule", "last", "--drop-attention", "1")
    skimp(*words, "--fill", "zero", "--out", "p.yaml", "--json", "p.json")
    found = read(tmp_path / "p.json")
    assert found["dropped"] == {"attention": [1], "ffn": []}
    assert found["calibration"] is None
    assert "tokenizer" in complaint(skimp(*words, "--fill", "mean", "--out", "p.yaml", code=2))


def test_fit_fills_a_plan_written_by_hand_in_place(
    skimp: Skimp, folder: Path, text_file: Path, tmp_path: Path, zero_plan: Path
) -> None:
    data = yaml.safe_load(zero_plan.read_text())
    data["drop"]["fill"] = "mean"
    zero_plan.write_text(yaml.safe_dump(data))
    for layers in ([1, 2], [0, 2]):  # the second time, the values of other layers stand beside it
        data["drop"]["attention"] = layers
        zero_plan.write_text(yaml.safe_dump({**yaml.safe_load(zero_plan.read_text()), **data}))
        skimp("plan", folder, "--fit", zero_plan, "--calibration", text_file)
        names = {f"drop.attention.{layer}.mean" for layer in layers}
        assert set(Plan.read(zero_plan).values) == names


def test_the_rules_are_listed(skimp: Skimp) -> None:
    text = skimp("plan", "--rules").stdout
    assert "greedy" in text
    assert "last" in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--out", "p.yaml"], "nothing to leave out"),
        (["--drop-attention", "1"], "--out"),
        (["--drop-attention", "1", "--attention", "2", "--out", "p.yaml"], "one way"),
        (["--drop-attention", "-1", "--out", "p.yaml"], "--drop-attention"),
        (["--drop-attention", "1", "--rule", "greed", "--out", "p.yaml"], "greedy"),
        (["--rule", "greedy", "--out", "p.yaml"], "nothing to leave out"),
        (["--drop-attention", "1", "--harm", "pain", "--out", "p.yaml"], "--harm"),
        (["--drop-attention", "1", "--fill", "foam", "--out", "p.yaml"], "foam"),
        (["--drop-attention", "1", "--out", "no/p.yaml"], "--out"),
        (["--drop-attention", "1", "--out", "."], "--out"),
        (["--drop-attention", "1", "--out", "p.json"], ".yaml"),
        (["--drop-attention", "1", "--calibration", "no.txt", "--out", "p.yaml"], "no.txt"),
        (["--attention", "x", "--out", "p.yaml"], "--attention"),
        (["--fit", "no.yaml"], "no.yaml"),
    ],
)
def test_mistakes_are_named_before_the_model_is_loaded(
    skimp: Skimp, words: list[str], named: str
) -> None:
    assert named in complaint(skimp("plan", "./no/model", *words, code=2))


def test_too_many_to_leave_out(skimp: Skimp, folder: Path, text_file: Path) -> None:
    words = ("--drop-attention", "9", "--calibration", text_file, "--out", "p.yaml")
    assert "drop.attention" in complaint(skimp("plan", folder, *words, code=2))


def test_a_streamed_model_gets_the_same_plan(
    skimp: Skimp, folder: Path, text_file: Path, tmp_path: Path
) -> None:
    words = ("--rule", "cosine", "--drop-attention", "1", "--calibration", text_file)
    for name in ("stream", "no-stream"):
        skimp("plan", folder, *words, f"--{name}", "--out", f"{name}.yaml")
    streamed, held = (Plan.read(tmp_path / f"{name}.yaml") for name in ("stream", "no-stream"))
    assert streamed.to_dict() == held.to_dict()
    assert all(torch.equal(value, held.values[key]) for key, value in streamed.values.items())


def test_weights_that_have_no_file_are_not_streamed(skimp: Skimp) -> None:
    words = ("plan", "random:smollm2-135m", "--stream", "--attention", "0", "--out", "p.yaml")
    assert "no files" in complaint(skimp(*words, code=2))
