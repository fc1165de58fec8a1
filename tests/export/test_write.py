"""Exported folders: whole or not at all, and what is said of models that a target cannot hold."""

from pathlib import Path
from typing import Any

import pytest
from tests.contract.cases import CASES
from tests.export.kit import dense, of_plan, product

from skimp.errors import ExportError, SkimpError
from skimp.export import registry
from skimp.export.registry import TARGETS
from skimp.export.target import Obstacle, Product, dynamic
from skimp.export.write import Refused, export, nearest, obstacles
from skimp.plan import Plan


class Stub:
    """A target that writes one file, or fails in the middle of it."""

    name = "stub"
    engines = ("nothing",)
    holds = lacks = ""
    formats = ("f32",)
    check = None

    def __init__(self, error: BaseException | None = None, found: list[Obstacle] | None = None):
        self.error, self.found = error, found or []

    def obstacles(self, product: Product, form: str) -> list[Obstacle]:
        return self.found

    def write(self, product: Product, form: str, folder: Path) -> Path:
        assert not list(folder.iterdir())
        (folder / "weights").write_text("half")
        if self.error is not None:
            raise self.error
        return folder / "weights"

    def loading(self, product: Product, form: str) -> str:
        return "open MODEL/weights"


def test_folder_holds_model_plan_and_card(tmp_path: Path) -> None:
    with product("llama", "drop-mean") as made:
        written = export(made, Stub(), "f32", tmp_path / "out")
        again = Plan.read(tmp_path / "out" / "plan" / "plan.yaml")
        assert again.to_dict() == made.plan.to_dict()
        assert again.values.keys() == made.plan.values.keys() != set()
    assert written.path == tmp_path / "out" / "weights"
    assert "open MODEL/weights" in (tmp_path / "out" / "README.md").read_text()
    assert written.bytes == sum(f.stat().st_size for f in written.folder.rglob("*") if f.is_file())


def test_fitted_values_are_not_taken_for_weights(tmp_path: Path) -> None:
    """vLLM and SGLang read every safetensors file beside config.json."""
    for name in ("transformers-plain", "decilm"):
        with product("llama", "drop-mean") as made:
            export(made, TARGETS[name], "f32", tmp_path / name)
        assert [f.name for f in (tmp_path / name).glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ExportError("no."), OSError(28, "full")])
def test_nothing_is_left_of_a_failed_export(tmp_path: Path, error: BaseException) -> None:
    with product("llama", "drop-zero") as made, pytest.raises((type(error), SkimpError)):
        export(made, Stub(error), "f32", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_old_folder(tmp_path: Path) -> None:
    old = tmp_path / "out" / "old"
    old.parent.mkdir()
    old.write_text("stays")
    with product("llama", "drop-zero") as made:
        with pytest.raises(SkimpError, match="not an empty folder"):
            export(made, Stub(), "f32", tmp_path / "out")
        with pytest.raises(KeyboardInterrupt):
            export(made, Stub(KeyboardInterrupt()), "f32", tmp_path / "out", force=True)
        assert old.read_text() == "stays"
        export(made, Stub(), "f32", tmp_path / "out", force=True)
    assert not old.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--to: there is no target 'gg'; known are transformers"):
        registry.target("gg")
    with (
        product("llama", "drop-zero") as made,
        pytest.raises(ExportError, match=r"--format: stub has no 'q9'; known are f32\."),
    ):
        export(made, Stub(), "q9", tmp_path / "out")


def test_every_obstacle_is_named(tmp_path: Path) -> None:
    found = [
        Obstacle("a.b", "it is odd", "make it even", {"drop": {"fill": "zero"}}),
        Obstacle("c", "it is red", "paint it"),
    ]
    with product("llama", "drop-zero") as made, pytest.raises(Refused) as refused:
        export(made, Stub(found=found), "f32", tmp_path / "out")
    assert "a.b: it is odd; make it even. c: it is red; paint it." in str(refused.value)
    assert refused.value.nearest is None and "--nearest" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_nearest_merges_into_sections() -> None:
    with product("llama", "drop-linear:4-repair:3") as made:
        plan = made.plan.with_section("experts", {"keep": 0.5}).with_evidence(loss=1)
    found = [
        Obstacle("drop.fill", "", "", {"drop": {"fill": "zero", "repair": "none"}}),
        Obstacle("experts", "", "", {"experts": {}}),
    ]
    near = nearest(plan, found)
    assert near is not None
    assert near.sections == {"drop": {**plan.sections["drop"], "fill": "zero", "repair": "none"}}
    assert not near.values and not near.evidence
    assert nearest(plan, []) is None
    assert plan.sections["drop"]["fill"] == "linear:4"


def _dynamic(anatomy: Any) -> Plan:
    plan = Plan.empty(anatomy).with_section("drop", {"attention": [1], "fill": "zero"})
    return plan.with_section("experts", {"keep": 0.5})


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_decided_at_run_time_is_refused(name: str, tmp_path: Path) -> None:
    model, anatomy = dense("llama")
    with of_plan(model, anatomy, _dynamic(anatomy)) as made:
        assert [each.field for each in dynamic(made)] == ["experts"]
        with pytest.raises(Refused, match="experts: they are chosen for each prompt") as refused:
            export(made, TARGETS[name], TARGETS[name].formats[0], tmp_path / "out")
    near = refused.value.nearest
    assert near is not None and near.sections.keys() == {"drop"}
    assert not refused.value.unfitted


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "mixtral"])
def test_nearest_plan_passes(family: str, case: str, name: str) -> None:
    """Where a nearest plan is offered, the target holds it."""
    if family in CASES[case].refused:
        pytest.skip("no such plan")
    target = TARGETS[name]
    with product(family, case, "first layer") as made:
        found = obstacles(made, target, target.formats[0])
        near = nearest(made.plan, found)
    if near is None:
        assert not found or not all(each.nearest for each in found)
        return
    with of_plan(*dense(family), near) as made:
        assert not obstacles(made, target, target.formats[0])


def test_the_command_line_is_no_reason_to_change_a_plan() -> None:
    _, anatomy = dense("llama")
    plan = Plan.empty(anatomy).with_section("drop", {"attention": [1], "fill": "linear:2"})
    fill = Obstacle("drop.fill", "no", "use another", {"drop": {"fill": "zero"}})
    format_ = Obstacle("--format", "no", "give another")
    found = nearest(plan, [fill, format_])
    assert found is not None and found.sections["drop"]["fill"] == "zero"
    assert nearest(plan, [format_]) is None
