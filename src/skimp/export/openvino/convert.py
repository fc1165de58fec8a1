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
        ov_config=settings(job["form"]),
        trust_remote_code=False,
    )
    describe(source, out, job["family"])
    if (source / "tokenizer_config.json").is_file():
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
        exporter.export_tokenizer(tokenizer, out, task="text-generation-with-past")


def settings(form: str) -> Any:
    """What NNCF does to the weights: nothing, 8 bits a row, or 4 bits by groups of inputs."""
    if form in ("f32", "f16"):
        return intel.OVConfig(dtype={"f32": "fp32", "f16": "fp16"}[form])
    # Where groups do not divide a map's inputs (fills of a low rank), it gets smaller ones.
    more = {"group_size": GROUP, "group_size_fallback": "adjust"} if form == "int4" else {}
    bits = {"int8": 8, "int4": 4}[form]
    return intel.OVConfig(quantization_config=intel.OVWeightQuantizationConfig(bits=bits, **more))


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
