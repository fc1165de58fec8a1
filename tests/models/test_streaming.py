"""Models whose layers stay in their files compute what they compute in memory, and stay there."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import families, tiny
from tests.models import model_files as files
from transformers import AutoConfig

from skimp.calibration.replay import Replay, pack
from skimp.errors import LoadError
from skimp.finder.choose import choose
from skimp.models import checks, load, placement, random_weights, streaming
from skimp.models.anatomy import Anatomy
from skimp.models.load import Loaded
from skimp.models.streaming import FileWeight
from skimp.progress import Progress

FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox", "mixtral"]
SETTINGS: dict[str, Any] = {"drop_attention": 1, "drop_ffn": 1, "fill": "linear:2"}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = families.build(request.param, dtype=torch.bfloat16)
    return files.write(tmp_path / "tiny", model, max_shard_size="20KB")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return files.write(tmp_path / "tiny", families.build("llama", dtype=torch.bfloat16))


def both(folder: Path, dtype: str) -> tuple[Loaded, Loaded]:
    """The model in memory and streamed."""
    return load.load(str(folder), dtype=dtype), load.load(str(folder), dtype=dtype, stream=True)


def file_weights(model: Any) -> list[FileWeight]:
    return [weight for weight in model.parameters() if isinstance(weight, FileWeight)]


def mapped(tensor: torch.Tensor) -> str:
    """The file that the memory of a tensor is a map of, if any."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, allowed, _, _, _, *file = line.split(maxsplit=5)
        start, end = (int(each, 16) for each in where.split("-"))
        if start <= address < end:
            assert "w" not in allowed
            return file[0] if file else ""
    return ""


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@torch.no_grad()
def test_logits_and_anatomy_are_those_of_the_model_in_memory(folder: Path, dtype: str) -> None:
    held, streamed = both(folder, dtype)
    ids = torch.stack([document[:8] for document in tiny.documents(3)])
    assert torch.equal(streamed.model(ids).logits, held.model(ids).logits)
    assert Anatomy.of(streamed.model) == Anatomy.of(held.model)
    assert (held.streamed, streamed.streamed) == (False, True)
    assert bool(file_weights(streamed.model)) == (dtype != "bf16")
    assert streamed.model.config.dtype == held.model.config.dtype


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("rule", ["cosine", "greedy"])
@pytest.mark.parametrize("folder", ["llama", "gemma2", "gpt_neox", "mixtral"], indirect=True)
def test_plans_and_harms_are_those_of_the_model_in_memory(
    folder: Path, dtype: str, rule: str
) -> None:
    held, streamed = (
        choose(each.model, None, rule=rule, calibration=tiny.calibration(longest=24), **SETTINGS)
        for each in both(folder, dtype)
    )
    assert streamed.plan.to_dict() == held.plan.to_dict()
    assert streamed.importance == held.importance
    assert streamed.calibration_loss == held.calibration_loss
    assert streamed.plan.values.keys() == held.plan.values.keys()
    assert all(
        torch.equal(value, held.plan.values[key]) for key, value in streamed.plan.values.items()
    )


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what memory is a map of")
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_matrices_of_layers_lie_in_the_file(llama: Path, dtype: str) -> None:
    streamed = load.load(str(llama), dtype=dtype, stream=True)
    found = [weight for *_, weight in streaming.matrices(streamed.model)]
    assert len(found) == 7 * streamed.model.config.num_hidden_layers
    for weight in found:
        place = weight.stored if isinstance(weight, FileWeight) else weight
        assert mapped(place).endswith(checks.WEIGHTS)


@torch.no_grad()
def test_no_more_than_a_layer_is_brought_into_memory_and_once_a_pass(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load.load(str(llama), dtype="fp32", stream=True).model
    window = file_weights(model)[0].window
    replay = Replay(model, pack(tiny.documents(), tokens=64))
    assert window.bytes == 0  # arguments are recorded without running a layer
    brought: list[int] = []
    bring = type(window).bring

    def watched(self: Any, weight: FileWeight) -> torch.Tensor:
        before = self.bytes
        made = bring(self, weight)
        if self.bytes != before:
            brought.append(weight.layer)
        return made

    monkeypatch.setattr(type(window), "bring", watched)
    replay.run_all(replay.entry)
    assert len(replay.batches) > 1
    assert brought == [layer for layer, *_ in streaming.matrices(model)]
    last = [weight for *_, weight in streaming.matrices(model)][-7:]
    assert window.bytes == sum(weight.numel() * 4 for weight in last)


def test_looking_at_a_few_numbers_brings_nothing(llama: Path) -> None:
    model = load.load(str(llama), dtype="fp32", stream=True).model
    weight = file_weights(model)[0]
    Anatomy.of(model)
    assert weight.window.bytes == 0
    assert (weight.detach().reshape(-1)[::7] == weight.stored.reshape(-1)[::7].float()).all()
    assert weight.window.bytes == 0


@torch.no_grad()
def test_an_interrupted_search_leaves_nothing_behind(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load.load(str(llama), dtype="fp32", stream=True).model
    before = sorted(llama.parent.rglob("*"))
    modules, weights = list(model.modules()), file_weights(model)
    ids = tiny.documents(1)[0][None]
    logits = model(ids).logits
    calls = iter(range(100))

    def interrupted(self: Replay, index: int, hidden: Any, batch: int) -> Any:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return original(self, index, hidden, batch)

    original = Replay.layer
    monkeypatch.setattr(Replay, "layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        choose(model, None, rule="greedy", calibration=tiny.calibration(), **SETTINGS)
    assert list(model.modules()) == modules
    assert all(a is b for a, b in zip(file_weights(model), weights, strict=True))
    assert torch.equal(model(ids).logits, logits)
    assert sorted(llama.parent.rglob("*")) == before


# -- when, and when not


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_what_does_not_fit_is_streamed_only_if_that_is_allowed(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = checks.count_weights(llama) * 2
    for module in (placement, load):
        monkeypatch.setattr(module, "available_bytes", lambda _: needed - 1)
    told = Notes()
    loaded = load.load(str(llama), dtype="bf16", stream=None, progress=told)
    assert loaded.streamed
    assert len(told.notes) == 1
    assert "read from their files" in told.notes[0]
    with pytest.raises(LoadError, match="free some memory"):
        load.load(str(llama), dtype="bf16")


def test_what_fits_is_not_streamed_unless_that_is_asked(llama: Path) -> None:
    told = Notes()
    assert not load.load(str(llama), dtype="bf16", stream=None, progress=told).streamed
    assert load.load(str(llama), dtype="bf16", stream=True, progress=told).streamed
    assert told.notes == []


def test_what_must_stay_in_memory_has_to_fit(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "available_bytes", lambda _: 1000)
    with pytest.raises(LoadError, match="by reading layers as they are used"):
        load.load(str(llama), dtype="bf16", stream=True)


def test_experts_that_loading_stacks_count_as_held(tmp_path: Path) -> None:
    found = {}
    for name in ("llama", "mixtral"):
        where = files.write(tmp_path / name, families.build(name, dtype=torch.bfloat16))
        config = AutoConfig.from_pretrained(where)
        bare = random_weights.skeleton(config, torch.bfloat16)
        found[name] = streaming.footprint(bare, checks.weights(where))
    assert found["llama"].restacked == 0
    assert found["mixtral"].restacked > 0
    assert found["llama"].layer > 0 < found["llama"].resident


def test_random_weights_are_not_streamed() -> None:
    with pytest.raises(LoadError, match="has no files"):
        load.load("random:smollm2-135m", stream=True)


def test_an_absent_shard_is_named(tmp_path: Path) -> None:
    model = families.build("llama", dtype=torch.bfloat16)
    folder = files.write(tmp_path / "tiny", model, max_shard_size="20KB")
    shard = sorted(set(json.loads((folder / checks.INDEX).read_text())["weight_map"].values()))[1]
    (folder / shard).unlink()
    with pytest.raises(LoadError, match=shard):
        load.load(str(folder), stream=True)


def test_a_format_that_cannot_be_computed_with_is_named(llama: Path) -> None:
    file = llama / checks.WEIGHTS
    weights = {name: each.to(torch.float8_e4m3fn) for name, each in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(LoadError, match="F8_E4M3"):
        load.load(str(llama), stream=True)
