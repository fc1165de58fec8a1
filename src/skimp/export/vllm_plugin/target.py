"""The target `vllm-plugin`: what `skimp apply` writes, for a vLLM that has skimp beside it.

It is what other targets for vLLM are not: it holds every static plan as it is, with fills of a low
rank as cheap as they are, for families that stock vLLM knows only dense.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from skimp.export import decilm, transformers
from skimp.export.forms import PLAIN
from skimp.export.target import Obstacle, Product
from skimp.export.vllm_plugin.families import STOCK

CHECK = replace(decilm.CHECK, install="pip install vllm && pip install --no-deps skimp")
_ELSEWHERE = "export `--to transformers`"
# What vLLM's classes multiply by in FFs; it refuses any other.
_ACTIVATIONS = {"gemma2": ("gelu_pytorch_tanh",), "gemma3_text": None}
_SILU = ("silu", "swish")


class VllmPlugin:
    """Safetensors by the names of transformers, and the layout in config.json."""

    name = "vllm-plugin"
    engines = ("vLLM",)
    holds = "all that is static, of " + ", ".join(STOCK)
    lacks = "other families; needs skimp installed beside vLLM"
    formats = PLAIN
    check = CHECK

    def obstacles(self, product: Product, form: str) -> list[Obstacle]:
        """What vLLM's own class of the family does not know."""
        return list(_obstacles(product, form))

    def write(self, product: Product, form: str, folder: Path) -> Path:
        """Write as `skimp apply` does."""
        return transformers.TARGET.write(product, form, folder)

    def loading(self, product: Product, form: str) -> str:
        """How to load it, and what to mind."""
        del form
        widths = sorted(_widths(product))
        shared = _WIDTHS.format(widths=", ".join(map(str, widths))) if widths else ""
        return _LOADING + shared


TARGET = VllmPlugin()
_LOADING = """\
```sh
pip install --no-deps skimp    # in vLLM's environment; it brings nothing else
vllm serve MODEL
```
vLLM finds skimp's plugin by itself. Fills are computed in the model's own number format, whatever
quantization vLLM is told to use for the rest; with tensor parallelism each device has all of them.
LoRA adapters for what was left out, and drafts trained on the dense model, do not fit.
"""
_WIDTHS = """\
FFs here are {widths} neurons wide; `--tensor-parallel-size` must divide them.
"""


def _obstacles(product: Product, form: str) -> Iterator[Obstacle]:
    kind, config = product.dense.model_type, product.config
    if kind not in STOCK:
        known = ", ".join(STOCK)
        yield Obstacle("model", f"the plugin knows no {kind} (known: {known})", _ELSEWHERE)
        return
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "silu")
    allowed = _ACTIVATIONS.get(kind, _SILU)
    if allowed is not None and activation not in allowed:
        yield Obstacle("hidden_act", f"vLLM's {kind} has no {activation}", _ELSEWHERE)
    if kind.startswith("gemma") and form == "f16":
        yield Obstacle("--format", f"vLLM refuses {kind} in float16", "give bf16 or f32")
    types = set(getattr(config, "layer_types", None) or ())
    if kind in ("qwen2", "qwen3") and len(types) > 1:
        reason = f"vLLM's {kind} has attention windows in all layers or in none"
        yield Obstacle("layer_types", reason, _ELSEWHERE)
    if kind == "qwen3" and getattr(config, "attention_bias", False):
        reason = "vLLM's qwen3 leaves out the bias behind attention, without a word"
        yield Obstacle("attention_bias", reason, _ELSEWHERE)


def _widths(product: Product) -> set[int]:
    """Of the FFs that the plan narrowed."""
    block = getattr(product.config, "skimp", None) or {"layout": {"kept": ()}}
    return {entry["neurons"]["width"] for entry in block["layout"]["kept"] if "neurons" in entry}
