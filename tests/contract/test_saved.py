"""Law 5: saved equals loaded, by skimp and by plain transformers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.contract.cases import CASES, Case, plan_for, shared_out
from tests.contract.runs import assert_close, cached, greedy_uncached, make_batch, uncached
from tests.contract.saving import save_planned, small_plan
from tests.families import SAMPLES, build
from tests.sources import imports
from tests.tiny import byte_tokenizer
from torch import nn

import skimp
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

BATCH = make_batch([8, 5], seed=9)
SOURCE = Path(skimp.__file__).parent


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
