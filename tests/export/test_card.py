"""The model card: valid metadata, the map of what was left out, what was measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.export.kit import product

from skimp.export.card import map_of, render
from skimp.export.registry import TARGETS
from skimp.export.verify import Difference, Verification

DECILM = TARGETS["decilm"]
FOUND = Verification(
    target="decilm", form="bf16", engine="vLLM 0.1", prompts=50, new_tokens=16, positions=50,
    max_difference=0.012, mean_difference=0.001, normalised=False, equal=48, ties=2, differ=0,
    differences=(Difference(1, 2, 3, 4, 0.001, True),), noise=0.03, passed=True,
)  # fmt: skip


def front_of(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("name", TARGETS)
def test_metadata_are_yaml(name: str) -> None:
    with product("llama", "drop-mean", tokenizer=True) as made:
        card = render(made, TARGETS[name], TARGETS[name].formats[0])
        odd = render(replace(made, name="a: b #c", source="./no id"), TARGETS[name], "f32")
    front = front_of(card)
    assert front["base_model"] == "org/tiny" and {"skimp", "llama", name} <= set(front["tags"])
    assert "license" not in front
    assert "base_model" not in front_of(odd) and "# a: b #c" in odd


def test_metadata_of_the_source_are_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\n# Mine\n")
    with product("llama", "drop-mean") as made:
        front = front_of(render(replace(made, source=str(tmp_path)), DECILM, "f32"))
        demo = front_of(render(replace(made, source="demo"), DECILM, "f32"))
        (tmp_path / "README.md").write_text("---\n: [\n---\n")
        broken = front_of(render(replace(made, source=str(tmp_path)), DECILM, "f32"))
    assert (front["license"], front["base_model"]) == ("mit", "a/b")
    assert demo["license"] == "apache-2.0" and "license" not in broken


def test_map_of_what_was_left_out() -> None:
    with product("llama", "drop-zero", "middle") as made:
        assert [row.signs for row in map_of(made)] == ["█·██", "█··█"]
    with product("llama", "drop-linear:4", "first layer") as made:
        assert [row.signs for row in map_of(made)] == ["/███", "/███"]
    with product("llama", "drop-mean", "first attention") as made:
        assert [row.signs for row in map_of(made)] == ["c███", "████"]
    with product("llama", "experts-calibrated", "layer by layer") as made:
        assert [row.signs for row in map_of(made)] == ["████", "█▓▓▓"]
        card = render(made, DECILM, "f32")
    assert "FF        █▓▓▓" in card and "`▓` kept, narrower." in card


def test_verification_is_told() -> None:
    with product("llama", "drop-mean") as made:
        card = render(made, DECILM, "bf16", FOUND)
        none = render(made, DECILM, "bf16")
        tokens = render(
            made, DECILM, "q4_0", replace(FOUND, max_difference=None, mean_difference=None)
        )
    for text in ("vLLM 0.1", "48 of 50 prompts", "| 0.012 (50 positions) |", "up to 0.03"):
        assert text in card
    assert "was not compared" in none and "logit difference" not in tokens


def test_evidence_and_plan_are_told() -> None:
    with product("llama", "drop-mean") as made:
        made = replace(made, plan=made.plan.with_evidence(loss={"change": 0.01}))
        card = render(made, DECILM, "bf16")
    assert "change: 0.01" in card and "`drop`: attention: [1], ffn: [1, 2], fill: mean" in card
