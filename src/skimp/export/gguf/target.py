"""GGUF: llama.cpp, and Ollama, LM Studio and other programs built on it.

Where nothing is missing the file is a plain Llama or Qwen2; otherwise its architecture is `deci`,
llama.cpp's for the models of Puzzle (Bercovich et al., 2024), whose blocks may differ.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from pathlib import Path
from typing import Any

from skimp.errors import ExportError
from skimp.export import shaped
from skimp.export.gguf import quantizer, rope, tokenizer
from skimp.export.gguf.tensors import QUANTIZED, Layout, lay_out, write_tensors
from skimp.export.target import Check, Obstacle, Product

OWN = ("f16", "bf16", "f32", "q8_0", "q4_0")
"""Number formats written here; llama.cpp's own quantizer makes the others."""


class Gguf:
    """Planned Llama-shaped models as one GGUF file."""

    name = "gguf"
    engines = ("llama.cpp", "Ollama", "LM Studio")
    holds = "Llama, Mistral, Qwen2 and Phi-3 models: dropped sublayers with any fill, narrower FFs"
    lacks = "other families; attention windows"
    formats = (*OWN, *quantizer.FORMATS)
    check = Check(
        script="checks/llama.py",
        module="llama_cpp",
        install="pip install llama-cpp-python",
        tells=("logits", "tokens", "texts"),
    )

    def obstacles(self, product: Product, form: str) -> list[Obstacle]:
        """What stands in the way of this model; nothing if it can be written."""
        found = shaped.obstacles(product, (*shaped.MODEL_TYPES, *shaped.FUSED))
        if found:
            return found
        config = product.config
        positions = rope.unknown(config)
        if positions is not None:
            remedy = "export `--to transformers`, or `--to vllm-plugin`"
            found.append(Obstacle("rope_parameters", positions, remedy))
        vocabulary = tokenizer.read(product)
        if isinstance(vocabulary, Obstacle):
            found.append(vocabulary)
        if form not in ("f16", "bf16", "f32") and config.hidden_size % QUANTIZED:
            reason = (
                f"rows of {config.hidden_size} weights do not divide into blocks of {QUANTIZED}"
            )
            found.append(Obstacle("hidden_size", reason, "take `--format f16`"))
        if form in quantizer.FORMATS:
            found += quantizer.obstacles(product, form)
        return found

    def write(self, product: Product, form: str, folder: Path) -> Path:
        """Write the model into an empty folder; the file that an engine loads.

        Raises:
            ExportError: the gguf package is missing, or llama.cpp's quantizer fails.
        """
        path = folder / _file_name(product, form)
        if form in OWN:
            write(product, form, path)
            return path
        whole = folder / "whole.gguf"
        write(product, quantizer.source_format(product), whole)
        quantizer.quantize(product, whole, path, form)
        whole.unlink()
        return path

    def loading(self, product: Product, form: str) -> str:
        """Markdown: how to load the result in each engine, `MODEL` standing for the folder."""
        file = f"MODEL/{_file_name(product, form)}"
        lines = [
            f"llama.cpp: `llama-cli -m {file}` or `llama-server -m {file}`",
            f"Ollama: a Modelfile with the line `FROM {file}`, then `ollama create {product.name}`",
            f"LM Studio: `lms import {file}`",
            f'llama-cpp-python: `llama_cpp.Llama("{file}")`',
        ]
        vocabulary = tokenizer.read(product)
        remarks = vocabulary.remarks if isinstance(vocabulary, tokenizer.Vocabulary) else ()
        return "\n".join([*(f"- {line}" for line in lines), *(f"\n{each}" for each in remarks)])


TARGET = Gguf()


def write(product: Product, form: str, path: Path) -> Layout:
    """Write one file, its matrices in `form`, one of OWN; the product must have no obstacles.

    bfloat16 weights come out bit for bit in bf16. Tensors are written one at a time, so the file
    costs no second model in memory.

    Raises:
        ExportError: the gguf package is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise ExportError("--to gguf: needs the gguf package; pip install 'skimp[gguf]'.") from None
    vocabulary = tokenizer.read(product)
    if isinstance(vocabulary, Obstacle):
        raise ExportError(str(vocabulary))
    layout = lay_out(product, form.upper())
    writer = gguf.GGUFWriter(None, layout.architecture)
    writer.add_name(product.name)
    label = "ALL_F32" if form == "f32" else f"MOSTLY_{form.upper()}"
    writer.add_file_type(gguf.LlamaFileType[label])
    if form.startswith("q"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _describe(writer, product, layout)
    tokenizer.describe(writer, vocabulary, product)
    write_tensors(writer, product, form.upper(), layout, path)
    writer.close()
    return layout


def _file_name(product: Product, form: str) -> str:
    return f"{product.name}-{form.upper()}.gguf"


def _describe(writer: Any, product: Product, layout: Layout) -> None:
    config = product.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    plain = layout.architecture != "deci"
    own, kv = ([pair[i] for pair in layout.attends] for i in (0, 1))
    writer.add_block_count(len(layout.widths))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(layout.widths[0] if plain else list(layout.widths))
    writer.add_head_count(heads if plain else own)
    writer.add_head_count_kv(kv[0] if plain else kv)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    rope.describe(writer, config)
    writer.add_vocab_size(product.model.get_input_embeddings().weight.shape[0])
