"""Turn a folder that skimp wrote into OpenVINO's format, by optimum-intel; runs without skimp.

Reads a job from standard input, one JSON object: `model`, a folder that loads with transformers;
`out`, an empty folder; `family`, the dense model's type; `form`, the number format.
"""

import copy
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers

exporter: Any = import_module("optimum.exporters.openvino.convert")
intel: Any = import_module("optimum.intel")
nncf: Any = import_module("nncf")
openvino: Any = import_module("openvino")

GROUP = 128


def main() -> None:
    """Do the job on standard input."""
    job: dict[str, Any] = json.load(sys.stdin)
    source, out = Path(job["model"]), Path(job["out"])
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        dtype=torch.float32,
        trust_remote_code=True,
        local_files_only=True,
        use_safetensors=True,
        attn_implementation="sdpa",
    ).eval()
    renumber(model, job["family"])
    exporter.export_from_model(
        model,
        out,
        task="text-generation-with-past",
        stateful=True,
        ov_config=intel.OVConfig(dtype="fp16" if job["form"] == "f16" else "fp32"),
        trust_remote_code=False,
    )
    if job["form"].startswith("int"):
        compress(out, job["form"])
    describe(source, out, job["family"])
    if (source / "tokenizer_config.json").is_file():
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
        exporter.export_tokenizer(tokenizer, out, task="text-generation-with-past")


def compress(out: Path, form: str) -> None:
    """Let NNCF round the weights to 8 bits a row, or to 4 bits by groups of inputs.

    With 4 bits embedding and head have 8, and fills of a low rank, which no group fits, too.
    """
    modes = nncf.CompressWeightsMode
    more: dict[str, Any] = {"mode": modes.INT8_ASYM}
    if form == "int4":
        fallback = nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        )
        more = {"mode": modes.INT4_ASYM, "group_size": GROUP, "advanced_parameters": fallback}
    path = out / "openvino_model.xml"
    model = openvino.Core().read_model(path)
    compressed = nncf.compress_weights(model, **more)
    # The weights that were read lie in the file that is about to be replaced.
    openvino.save_model(compressed, out / "fresh.xml", compress_to_fp16=False)
    del model, compressed
    for suffix in (".xml", ".bin"):
        (out / f"fresh{suffix}").replace(path.with_suffix(suffix))


def renumber(model: Any, family: str) -> None:
    """Give the cache entries of kept attentions only, in order; the exporter makes inputs of all.

    The exporter asks the model's config how many there are; the decoder keeps a config that says
    how many layers it has.
    """
    block = model.config.skimp["layout"] if hasattr(model.config, "skimp") else None
    model.config.export_model_type = family
    if block is None:
        return
    decoder_path, _, name = block["layers"].rpartition(".")
    decoder = model.get_submodule(decoder_path)
    decoder.config = copy.deepcopy(model.config)
    path, slot = block["attention"]["modules"][0], 0
    for layer, entry in zip(getattr(decoder, name), block["kept"], strict=True):
        if entry["attention"] == "keep":
            layer.get_submodule(path).layer_idx = slot
            slot += 1
    model.config.num_hidden_layers = slot


def describe(source: Path, out: Path, family: str) -> None:
    """Write the config of the family, so that nothing of skimp's is asked for when loading."""
    data = json.loads((source / "config.json").read_text())
    block = data.pop("skimp", None)
    data.pop("auto_map", None)
    data["model_type"] = family
    data["architectures"] = [block["model_class"]] if block else data["architectures"]
    (out / "config.json").write_text(json.dumps(data, indent=2) + "\n")
    for left in out.glob("*.py"):  # transformers copies remote code along
        left.unlink()


if __name__ == "__main__":
    main()
