"""Law 5: saved equals loaded, by skimp and by plain transformers; nothing is ever unpickled."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.contract.cases import CASES, Case, plan_for, shared_out
from tests.contract.runs import assert_close, cached, greedy_uncached, make_batch, uncached
from tests.families import SAMPLES, build
from tests.tiny import byte_tokenizer
from torch import nn

import skimp
from skimp.errors import LoadError, PlanError, SkimpError
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

BATCH = make_batch([8, 5], seed=9)
SOURCE = Path(skimp.__file__).parent


def save_planned(model: nn.Module, plan: Plan, folder: Path) -> None:
    with skimp.apply(model, plan):
        skimp.save(model, None, plan, folder)


# --- skimp reads what it wrote ------------------------------------------------------------------


def test_skimp_loads_what_it_saved(
    model: nn.Module, anatomy: Anatomy, case: Case, tmp_path: Path
) -> None:
    for name, section in shared_out(case, anatomy.dense_layers).items():
        plan = plan_for(case, section, anatomy)
        folder = tmp_path / name
        with skimp.apply(model, plan):
            wanted, planned = uncached(model, BATCH), Anatomy.of(model)
            skimp.save(model, None, plan, folder)
        loaded = skimp.load(str(folder), dtype="float32")
        assert torch.equal(uncached(loaded.model, BATCH), wanted)
        assert_close(cached(loaded.model, BATCH, [3]), wanted)
        assert Anatomy.of(loaded.model) == planned
        assert loaded.plan is not None
        assert_same_plan(loaded.plan, plan)
        stored = load_file(folder / "model.safetensors")
        weights = stored.keys() & dict(loaded.model.named_parameters()).keys()
        assert sum(stored[name].numel() for name in weights) == planned.parameters


def assert_same_plan(found: Plan, wanted: Plan) -> None:
    assert found.to_dict() == wanted.to_dict()
    assert found.values.keys() == wanted.values.keys()
    assert all(torch.equal(found.values[name], value) for name, value in wanted.values.items())


def test_dense_model_is_as_before_after_saving(tmp_path: Path) -> None:
    model = build("llama")
    before, config = uncached(model, BATCH), model.config.to_dict()
    save_planned(model, small_plan(model), tmp_path / "planned")
    assert torch.equal(uncached(model, BATCH), before)
    assert model.config.to_dict() == config


def test_other_dtype(tmp_path: Path) -> None:
    model = build("llama", dtype=torch.bfloat16)
    plan = small_plan(model)
    save_planned(model, plan, tmp_path / "planned")
    loaded = skimp.load(str(tmp_path / "planned"), dtype="bfloat16").model
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    with skimp.apply(model, plan):
        assert torch.equal(uncached(loaded, BATCH), uncached(model, BATCH))


def test_empty_plan_gives_a_plain_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = build("llama")
    plan = Plan.empty(Anatomy.of(model))
    skimp.save(model, byte_tokenizer(), plan, tmp_path / "plain")
    wanted = uncached(model, BATCH)
    loaded = skimp.load(str(tmp_path / "plain"), dtype="float32")
    assert torch.equal(uncached(loaded.model, BATCH), wanted)
    assert loaded.tokenizer is not None
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    assert torch.equal(uncached(plain, BATCH), wanted)


def test_tokenizer_travels_along(tmp_path: Path) -> None:
    model = build("llama")
    plan = small_plan(model)
    with skimp.apply(model, plan):
        skimp.save(model, byte_tokenizer(), plan, tmp_path / "planned")
    loaded = skimp.load(str(tmp_path / "planned"))
    assert loaded.tokenizer is not None
    assert loaded.tokenizer("abc").input_ids == byte_tokenizer()("abc").input_ids


def small_plan(model: nn.Module) -> Plan:
    case = CASES["drop-mean"]
    section = {"attention": [0, 2], "ffn": [1], "layers": [3], "fill": "mean"}
    return plan_for(case, section, Anatomy.of(model))


# --- plain transformers reads it, without skimp -------------------------------------------------

_PLAIN = """
import sys
sys.modules["skimp"] = None  # as if it were not installed
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
root = Path(sys.argv[1])
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, dtype=torch.float32
        ).eval()
        inputs = load_file(root / "inputs.safetensors")
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits
        tokens = model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"],
            max_new_tokens=4, do_sample=False,
        )
        found = {"logits": logits, "tokens": tokens}
        save_file({key: value.contiguous() for key, value in found.items()}, f"{folder}.answer")
    except Exception as error:
        Path(f"{folder}.error").write_text(f"{type(error).__name__}: {error}")
"""


def run_plain(root: Path, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script that cannot import skimp, with a fresh cache of remote code."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(root / "cache" / "modules")}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [sys.executable, "-c", script, str(root), *options],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_plain_transformers_loads_every_family(tmp_path: Path) -> None:
    """One process for all families, since it is the imports that take the time."""
    save_file(BATCH.part(0, BATCH.length), tmp_path / "inputs.safetensors")
    wanted = {}
    for index, (name, sample) in enumerate(SAMPLES.items()):
        model = sample.build()
        anatomy = Anatomy.of(model)
        cases = [case for case in CASES.values() if case.fits(sample)]
        case = cases[index % len(cases)]
        section = case.one(anatomy.dense_layers, "first layer")
        if case.method == "drop":
            section = {**section, "attention": [0, 2], "layers": [3], "ffn": [1]}
        plan = plan_for(case, section, anatomy)
        save_planned(model, plan, tmp_path / name)
        with skimp.apply(model, plan):
            wanted[name] = uncached(model, BATCH), greedy_uncached(model, BATCH, 4)
    done = run_plain(tmp_path, _PLAIN)
    assert done.returncode == 0, done.stderr
    errors = {path.stem: path.read_text() for path in tmp_path.glob("*.error")}
    assert not errors
    for name, (logits, tokens) in wanted.items():
        found = load_file(tmp_path / f"{name}.answer")
        assert_close(BATCH.real(found["logits"]), logits, name=name)
        assert torch.equal(found["tokens"][:, BATCH.length :], tokens), name


def test_plain_transformers_without_remote_code_refuses(tmp_path: Path) -> None:
    """It must not load the family's own class and make up the weights that were left out."""
    from transformers import AutoModelForCausalLM

    model = build("llama")
    save_planned(model, small_plan(model), tmp_path / "planned")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "planned", trust_remote_code=False)


def test_modelling_file_needs_only_torch_and_transformers(tmp_path: Path) -> None:
    model = build("llama")
    save_planned(model, small_plan(model), tmp_path / "planned")
    (script,) = (tmp_path / "planned").glob("*.py")
    assert {name.partition(".")[0] for name in imports(script)} <= {
        "collections",
        "torch",
        "transformers",
        "typing",
    }


# --- what is refused ----------------------------------------------------------------------------


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


# --- nothing is ever unpickled ------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    ("torch", "load"),
    ("torch", "save"),
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "full_load"),
    ("yaml", "unsafe_load"),
    ("np", "load"),
    ("numpy", "load"),
}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.stem)
def test_source_unpickles_nothing(path: Path) -> None:
    assert not UNSAFE_MODULES & {name.partition(".")[0] for name in imports(path)}
    calls = {
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert not UNSAFE_CALLS & calls
