"""GGUF files: turned once into a folder of float32 safetensors, kept in the cache.

transformers does the dequantization. What its conversion loses is put right from the file's
own metadata (`gguf_repair`); what cannot be put right is refused rather than loaded wrong.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from skimp.errors import LoadError
from skimp.models import cache
from skimp.models.folder import reason
from skimp.models.gguf_header import Header, read
from skimp.models.gguf_repair import FREQUENCIES, repair_config, repair_tokenizer
from skimp.models.placement import gigabytes, require_memory
from skimp.progress import Progress, Step

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def folder(path: Path, *, progress: Progress, sha256: str | None = None) -> Path:
    """Return the folder that holds a GGUF file's model as safetensors, converting it if need be.

    Args:
        path: the file.
        progress: told of the conversion, which takes some 20 to 60 s for a small model.
        sha256: of the file, where it is already known; checked when converting.

    Raises:
        LoadError: no GGUF file, damaged, of a kind that cannot be converted faithfully, the
            packages for it are missing, or the cache cannot be written.
    """
    header = read(path)
    key = sha256 or _known_digest(path)
    target = cache.root() / "gguf" / key[:32]

    def build(scratch: Path) -> None:
        if sha256 is not None and cache.digest(path) != sha256:
            raise LoadError(f"{path} is damaged (its checksum is wrong); reinstall it.")
        progress.note(f"Converting {path.name} to safetensors, once; kept in {target}.")
        _convert(path, header, scratch, progress)

    source = {"file": path.name, "sha256": key, "bytes": path.stat().st_size}
    return cache.obtain(target, build, source=source, progress=progress)


def _known_digest(path: Path) -> str:
    """Return the file's SHA-256, hashing it only if its size or time of change is new."""
    stat = path.stat()
    facts: dict[str, Any] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    memo = cache.root() / "gguf" / "digests" / f"{name}.json"
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
        if {key: known[key] for key in facts} == facts and len(known["sha256"]) == 64:
            return known["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # unknown or unreadable: hash it
    facts["sha256"] = cache.digest(path)
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        cache.write_json(memo, facts)
    except OSError:
        pass  # only a shortcut; cache.obtain reports a cache that cannot be written
    return facts["sha256"]


def _convert(path: Path, header: Header, target: Path, progress: Progress) -> None:
    _require_packages()
    _refuse_unfaithful(path, header)
    bytes_out = 4 * _weights(header)  # float32
    # transformers holds the dequantized tensors and the model at once
    require_memory(str(path), 2 * bytes_out, torch.device("cpu"), "free some memory")
    if shutil.disk_usage(target).free < bytes_out:
        raise OSError(errno.ENOSPC, f"{gigabytes(bytes_out)} do not fit there")
    stages = 3 + len(header.tensors)
    with (
        progress.task(f"Converting {path.name}", stages) as step,
        _remembered(),
        _alone(path) as file,
    ):
        config = _read(path, "config", lambda: _load_config(file))
        repair_config(config, header, path)
        step()
        tokenizer = _read(path, "tokenizer", lambda: _load_tokenizer(file))
        repair_tokenizer(tokenizer, header, progress)
        tokenizer.save_pretrained(target)
        step()
        model = _read(path, "weights", lambda: _load_model(file, config, step))
        elements = _weights(header, tied=config.tie_word_embeddings)
        if model.num_parameters() != elements:
            raise LoadError(
                f"{path} holds {elements} weights but transformers' {config.model_type} takes "
                f"{model.num_parameters()} of them; load the model's safetensors folder instead."
            )
        _save(model, target)
        step()


def _require_packages() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise LoadError(
            f"GGUF files need {' and '.join(missing)}; run `pip install {' '.join(missing)}`."
        )


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Show the file to transformers in a folder of its own.

    A tokenizer.json or adapter that lies beside it would be taken instead of what the file says.
    """
    with tempfile.TemporaryDirectory() as scratch:
        link = Path(scratch) / path.name
        try:
            link.symlink_to(path.resolve())
        except OSError:  # Windows without the right to make links
            link = path.resolve()
        yield link


@contextmanager
def _remembered() -> Iterator[None]:
    """Let transformers parse the file and build its table of names once, not once per use.

    It asks for the table once per module of the model, which is half of the time otherwise.
    """
    import gguf
    import numpy

    class Reader(gguf.GGUFReader):
        """Reads its fields from a plain array: a slice of a memmap costs several times as much."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, numpy.asarray(value) if name == "data" else value)

    with (
        patch.object(gguf, "GGUFReader", lru_cache(Reader)),
        patch.object(gguf, "get_tensor_name_map", lru_cache(gguf.get_tensor_name_map)),
    ):
        yield


def _refuse_unfaithful(path: Path, header: Header) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    end = header.data_start
    for tensor in header.tensors:
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
        except (ValueError, KeyError):
            raise LoadError(
                f"{path} stores {tensor.name} in ggml type {tensor.type}, which the installed gguf "
                "package cannot read; run `pip install --upgrade gguf`."
            ) from None
        end = max(end, header.data_start + tensor.offset + tensor.elements // block * size)
    if path.stat().st_size < end:
        raise LoadError(
            f"{path} is truncated ({path.stat().st_size} of {end} bytes); download it again."
        )
    scaling = header.of_architecture("rope.scaling.type")
    # For gpt-oss transformers does carry the scaling over.
    lost = scaling not in (None, "none") and header.architecture != "gpt-oss"
    if lost or any("rope_factors" in tensor.name for tensor in header.tensors):
        raise LoadError(
            f"{path} scales its rotary frequencies ({scaling or 'longrope'}), which the conversion "
            "would lose; load the model's safetensors folder instead."
        )


def _weights(header: Header, *, tied: bool = False) -> int:
    """Return the numbers in all tensors that are weights of the model."""
    others = {FREQUENCIES, "output.weight"} if tied else {FREQUENCIES}
    return sum(tensor.elements for tensor in header.tensors if tensor.name not in others)


def _read(path: Path, part: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:
        raise LoadError(
            f"transformers cannot convert the {part} of {path} ({reason(error)}); load the model's "
            "safetensors folder instead."
        ) from error


def _load_config(path: Path) -> PreTrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{config.model_type} is no causal language model")
    return config


def _load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    # AutoTokenizer would parse the whole file once more, only to choose this class.
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)


def _load_model(path: Path, config: PreTrainedConfig, step: Step) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM
    from transformers import modeling_gguf_pytorch_utils as converter

    load: Any = AutoModelForCausalLM.from_pretrained  # its stub knows no loading info
    # Its bar over the tensors is drawn whatever the verbosity; put ours in its place.
    with patch.object(converter, "tqdm", partial(_counted, step), create=True):
        model, found = load(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **_dequantize(path),
        )
    absent = sorted(found["missing_keys"]) + sorted(name for name, *_ in found["mismatched_keys"])
    if absent:
        raise ValueError(f"{absent[0]} is missing or of another shape")
    return model


def _counted(step: Step, items: Iterable[Any], **_: Any) -> Iterator[Any]:
    for item in items:
        yield item
        step()


def _dequantize(path: Path) -> dict[str, Any]:
    """Arguments that make transformers unpack the blocks; older releases always do."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(gguf_file=path.name, dequantize=True)}


def _save(model: PreTrainedModel, target: Path) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = model.config
    for leftover in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    with torch.device("meta"):
        # A model of its own: the converted one remembers the blocks and refuses to be saved.
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig.from_model_config(config)
    plain.save_pretrained(target)
