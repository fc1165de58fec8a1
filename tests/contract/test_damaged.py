"""Law 5: a foreign or damaged folder is refused with the reason, and nothing is overwritten."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.contract.saving import save_planned, small_plan
from tests.families import build

import skimp
from skimp.errors import LoadError, PlanError, SkimpError
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


@pytest.fixture(scope="module")
def planned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "planned"
    model = build("llama")
    save_planned(model, small_plan(model), folder)
    return folder


def _config(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        data = json.loads(path.read_text())
        edit(data)
        path.write_text(json.dumps(data))

    return damage


def _weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = load_file(path)
        edit(data)
        save_file(data, path, metadata={"format": "pt"})

    return damage


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04\x95not safetensors at all")


def _layout(data: dict[str, Any]) -> dict[str, Any]:
    return data["skimp"]["layout"]


def _pop_first(data: dict[str, Any]) -> None:
    data.pop(sorted(data)[0])


def _grow(data: dict[str, torch.Tensor]) -> None:
    data["model.norm.weight"] = torch.ones(33)


def _foreign(data: dict[str, torch.Tensor]) -> None:
    data["model.layers.7.self_attn.q_proj.weight"] = torch.ones(2, 2)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights truncated": (_truncate, r"model\.safetensors"),
    "weights garbled": (_garble, r"model\.safetensors"),
    "weights gone": (lambda f: (f / "model.safetensors").unlink(), "no weights|model.safetensors"),
    "weight missing": (_weights(_pop_first), "do not fit|lacks"),
    "weight of another shape": (_weights(_grow), r"model\.norm\.weight"),
    "foreign weight": (_weights(_foreign), r"model\.layers\.7"),
    "config gone": (lambda f: (f / "config.json").unlink(), r"config\.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json"),
    "block no mapping": (_config(lambda d: d.update(skimp=3)), r"config\.json: skimp"),
    "layout gone": (_config(lambda d: d["skimp"].pop("layout")), r"config\.json: skimp"),
    "layout without layers": (_config(lambda d: _layout(d).pop("layers")), r"config\.json: skimp"),
    "layer out of range": (
        _config(lambda d: _layout(d)["kept"][0].update(source=99)),
        r"config\.json: skimp",
    ),
    "nothing attends": (
        _config(lambda d: [e.update(attention="zero") for e in _layout(d)["kept"]]),
        r"config\.json: skimp",
    ),
    "unknown fill": (
        _config(lambda d: _layout(d)["kept"][0].update(attention="cubic")),
        r"config\.json: skimp",
    ),
    "unknown class": (
        _config(lambda d: d["skimp"].update(model_class="Pickle")),
        r"config\.json: skimp",
    ),
    "class of another kind": (
        _config(lambda d: d["skimp"].update(model_class="logging")),
        r"config\.json: skimp",
    ),
    "class names no text": (
        _config(lambda d: d["skimp"].update(config_class=7)),
        r"config\.json: skimp",
    ),
    "plan gone": (lambda f: (f / "plan.yaml").unlink(), r"plan\.yaml"),
    "plan foreign": (lambda f: (f / "plan.yaml").write_text("a: 1\n"), r"plan\.yaml"),
    "plan values gone": (lambda f: (f / "plan.safetensors").unlink(), r"plan\.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder_is_refused(damage: str, planned_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(planned_folder, folder)
    break_it, words = DAMAGE[damage]
    break_it(folder)
    with pytest.raises(SkimpError, match=words) as caught:
        skimp.load(str(folder))
    assert_sentence(str(caught.value))


def assert_sentence(message: str) -> None:
    assert message.endswith("."), message
    assert "\n" not in message, message


def test_code_in_a_folder_is_not_run(planned_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(planned_folder, folder)
    (script,) = folder.glob("*.py")
    script.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    skimp.load(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_saving_over_something_is_refused(kind: str, tmp_path: Path) -> None:
    model = build("llama")
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    with pytest.raises(SkimpError, match=r"target: already exists"):
        save_planned(model, small_plan(model), target)
    mine = target if kind == "file" else target / "mine"
    assert mine.read_text() == "mine"


def test_saving_into_an_empty_folder(tmp_path: Path) -> None:
    model = build("llama")
    (tmp_path / "empty").mkdir()
    save_planned(model, small_plan(model), tmp_path / "empty")
    assert skimp.load(str(tmp_path / "empty")).plan is not None


def test_saving_needs_the_plan_on_the_model(tmp_path: Path) -> None:
    model = build("llama")
    with pytest.raises(PlanError, match=r"not applied.*skimp\.apply"):
        skimp.save(model, None, small_plan(model), tmp_path / "planned")
    assert list(tmp_path.iterdir()) == []


def test_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Plan, "write", fail)
    model = build("llama")
    with pytest.raises(SkimpError, match="No space left on device"):
        save_planned(model, small_plan(model), tmp_path / "planned")
    assert list(tmp_path.iterdir()) == []


def test_planned_model_cannot_be_planned_again(planned_folder: Path) -> None:
    model = skimp.load(str(planned_folder), dtype="float32").model
    anatomy = Anatomy.of(model)
    with pytest.raises(PlanError, match="already carries a plan"):
        skimp.apply(model, Plan.empty(anatomy).with_section("drop", {"ffn": [0]}))


def test_pickled_weights_are_refused(planned_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(planned_folder, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match="pickled"):
        skimp.load(str(folder))
