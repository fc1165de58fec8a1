"""Checks of a model folder that come before any weight is read.

transformers meets most of these faults with a warning, a default or a long traceback; here each is
one sentence that names the file and the remedy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skimp.errors import LoadError
from skimp.models import safetensors_header
from skimp.models.safetensors_header import Stored

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
)
"""Files, any one of which can hold a tokenizer's vocabulary."""

_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
# These keep an is_decoder switch in their config although they are decoders without it.
_ALWAYS_CAUSAL = frozenset({"gpt_neox", "gpt_neox_japanese", "reformer"})


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or raise LoadError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LoadError(f"{path} is not readable JSON ({error}).") from None
    if not isinstance(content, dict):
        raise LoadError(f"{path} must hold a JSON object.")
    return content


def check_folder(folder: Path) -> dict[str, Any]:
    """Return the content of the folder's config.json, after looking at what files are there.

    Raises:
        LoadError: empty folder, no config.json, or an adapter.
    """
    names = {path.name for path in folder.iterdir()}
    if not names:
        raise LoadError(f"the folder {folder} is empty; give one with {CONFIG} and {WEIGHTS}.")
    if "adapter_config.json" in names and CONFIG not in names:
        raise LoadError(
            f"{folder} holds a PEFT adapter, not a model; merge it into its base model first "
            "(peft's merge_and_unload) and save that."
        )
    if CONFIG not in names:
        raise LoadError(f"{folder} has no {CONFIG}; give the folder of a transformers model.")
    return read_json(folder / CONFIG)


def has_tokenizer(folder: Path) -> bool:
    """Say whether the folder holds any file that a tokenizer is made from."""
    return any((folder / name).is_file() for name in TOKENIZERS)


def require_tokenizer(folder: Path) -> None:
    """Raise LoadError unless the folder holds a tokenizer."""
    if not has_tokenizer(folder):
        raise LoadError(
            f"{folder} has no tokenizer (no {TOKENIZERS[0]} or {TOKENIZERS[1]}); copy the model's "
            "tokenizer files into it."
        )


def count_weights(folder: Path) -> int:
    """Return the numbers in the folder's safetensors files; raises what `weights` does."""
    return sum(stored.numel for stored in weights(folder).values())


def weights(folder: Path) -> dict[str, Stored]:
    """Return what the folder's safetensors files hold, after checking that all are whole.

    Raises:
        LoadError: only pickled weights, no weights, a shard of the index missing, a file truncated.
    """
    if (folder / WEIGHTS).is_file():
        shards: dict[str, set[str]] = {WEIGHTS: set()}
    elif (folder / INDEX).is_file():
        shards = _shards(folder / INDEX)
    else:
        raise LoadError(_no_weights(folder, sorted(path.name for path in folder.iterdir())))
    found: dict[str, Stored] = {}
    for name, tensors in shards.items():
        if not (folder / name).is_file():
            raise LoadError(f"{folder} lacks {name}, which {INDEX} lists; download it again.")
        held = safetensors_header.read(folder / name)
        if absent := sorted(tensors - held.keys()):
            raise LoadError(f"{folder / name} lacks the tensor {absent[0]}, which {INDEX} lists.")
        found |= held
    return found


def _shards(index: Path) -> dict[str, set[str]]:
    """Return shard file name -> tensors it must hold."""
    shards: dict[str, set[str]] = {}
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise LoadError(f"{index} has no weight_map; download it again.")
    for tensor, name in places.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise LoadError(f"{index} names the shard {name!r}, which is not a file beside it.")
        if not name.endswith(".safetensors"):
            raise LoadError(f"{index} names the shard {name}, which is not a safetensors file.")
        shards.setdefault(name, set()).add(tensor)
    return dict(sorted(shards.items()))


def _no_weights(folder: Path, names: list[str]) -> str:
    pickled = [name for name in names if name.endswith(PICKLED) and name not in _NOT_WEIGHTS]
    if pickled:
        return (
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when opened; "
            "convert them to safetensors (transformers' save_pretrained writes them)."
        )
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    if others and others[0].endswith(".gguf"):
        return f"{folder} has no {WEIGHTS}; to load {others[0]}, give the path of that file."
    if others:
        return f"{folder} has {others[0]} but neither {WEIGHTS} nor {INDEX}; rename or re-save it."
    return f"{folder} has no weights; it needs {WEIGHTS} or {INDEX} with its shards."


def check_config(config: dict[str, Any], where: str, *, trust_remote_code: bool = False) -> None:
    """Refuse what is no plain causal language model, judging by its config.json alone.

    Raises:
        LoadError: unknown or missing model_type, code of its own, quantized weights, an encoder,
            an encoder-decoder, a multimodal model or another task's head.
    """
    from transformers import CONFIG_MAPPING, __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if config.get("auto_map") and kind not in CONFIG_MAPPING:
        if trust_remote_code:
            return
        raise LoadError(
            f"{where} needs Python code of its own (auto_map); read that code, and pass "
            "trust_remote_code=True if you trust it."
        )
    if not isinstance(kind, str):
        raise LoadError(f"{where} has no model_type; add the one of its family, e.g. llama.")
    if kind not in CONFIG_MAPPING:
        raise LoadError(
            f"{where} has model_type {kind!r}, which transformers {__version__} does not know; "
            "correct it or upgrade transformers."
        )
    if "quantization_config" in config:
        raise LoadError(
            f"{where} describes weights that are already quantized (quantization_config); load the "
            "unquantized model."
        )
    heads = config.get("architectures") or []
    wrong_head = heads and not any(_is_causal(str(head)) for head in heads)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or wrong_head:
        what = f"{kind} ({', '.join(map(str, heads))})" if heads else kind
        raise LoadError(f"{where} is {what}; skimp needs a causal language model (…ForCausalLM).")


def _is_causal(head: str) -> bool:
    # A bare …Model is let through: its weights tell whether the head is there.
    if head.endswith("EncoderModel"):
        return False
    return head.endswith(("ForCausalLM", "LMHeadModel", "ModelWithLMHead", "Model"))


def check_decoder(config: PreTrainedConfig, where: str) -> None:
    """Refuse encoders, whose tokens see what follows, and encoder-decoder models.

    Raises:
        LoadError: `config` belongs to one.
    """
    both = getattr(config, "is_encoder_decoder", False)
    encoder = not getattr(config, "is_decoder", True) and config.model_type not in _ALWAYS_CAUSAL
    if encoder or both:
        kind = "an encoder-decoder" if both else "an encoder"
        raise LoadError(
            f"{where} is {config.model_type}, {kind}; skimp needs a decoder-only causal language "
            "model."
        )
