"""The target `openvino`: the planned model as a graph, traced from the folder that skimp writes.

optimum-intel traces the modules as they run, so whatever stands in a dropped sublayer's place is
traced too. It pins another transformers than skimp runs on; so it has an environment of its own,
whose interpreter is named by `--engine-python`, and :mod:`.convert` runs there.
"""

import json
import tempfile
from functools import cache
from pathlib import Path

from skimp.errors import ExportError
from skimp.export.interpreter import Interpreter
from skimp.export.target import Check, Obstacle, Product
from skimp.methods import folder as planned_folder

CHECK = Check(
    script="checks/openvino.py",
    module="openvino",
    install='pip install "optimum-intel[openvino]"',
    tells=("logits", "tokens"),
)
# Those that were tried. optimum-intel 2.2 knows Gemma 2 and 3 too, but only with a transformers
# that does not read the configs of today's.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_SCRIPT = Path(__file__).with_name("convert.py")


class OpenVINO:
    """A graph with the KV cache inside, and the tokenizer; weights compressed by NNCF."""

    name = "openvino"
    engines = ("OpenVINO", "OpenVINO GenAI", "optimum-intel")
    holds = "all that is static, of " + ", ".join(FAMILIES)
    lacks = "other families; takes the interpreter of an environment with optimum-intel to write"
    formats = ("f16", "f32", "int8", "int4")
    check = CHECK

    def obstacles(self, product: Product, form: str) -> list[Obstacle]:
        """Families that were not tried, and an interpreter that cannot convert."""
        del form
        kind, found = product.dense.model_type, []
        if kind not in FAMILIES:
            reason = f"{kind} models were not tried (known: {', '.join(FAMILIES)})"
            found.append(Obstacle("model", reason, "export `--to transformers`"))
        interpreter = _interpreter(product)
        if not _converts(interpreter.path):
            reason = f"{interpreter.path} has no optimum-intel, which converts"
            remedy = f"install it there (`{CHECK.install}`) or name another interpreter"
            found.append(Obstacle("--engine-python", reason, remedy))
        return found

    def write(self, product: Product, form: str, folder: Path) -> Path:
        """Write the model for transformers, then have it converted.

        Raises:
            ExportError: the conversion fails.
        """
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".openvino.") as scratch:
            source = Path(scratch) / "model"
            source.mkdir()
            planned_folder.write(product.model, product.tokenizer, product.plan, source)
            job = {
                "model": str(source.absolute()),
                "out": str(folder.absolute()),
                "family": product.dense.model_type,
                "form": form,
            }
            convert(job, _interpreter(product))
        if product.tokenizer is not None:
            product.tokenizer.save_pretrained(folder)
        return folder

    def loading(self, product: Product, form: str) -> str:
        """How to load it."""
        del form
        return _LOADING + (_GENAI if product.tokenizer is not None else "")


TARGET = OpenVINO()
_LOADING = """\
```python
from optimum.intel import OVModelForCausalLM

model = OVModelForCausalLM.from_pretrained("MODEL")
```
OpenVINO rounds what it computes, and the KV cache to 8 bits, unless `INFERENCE_PRECISION_HINT` and
`KV_CACHE_PRECISION` tell it not to. Only attention that is there has a cache.
"""
_GENAI = """\
Or by OpenVINO GenAI alone:
```python
import openvino_genai

print(openvino_genai.LLMPipeline("MODEL", "CPU").generate("Once", max_new_tokens=32))
```
"""


def _interpreter(product: Product) -> Interpreter:
    return Interpreter.of(product.python, HF_HUB_OFFLINE="1")


@cache
def _converts(path: str) -> bool:
    """Whether optimum and OpenVINO are there."""
    return Interpreter(path).has("optimum", "openvino")


def convert(job: dict[str, str], interpreter: Interpreter) -> None:
    """Run :mod:`.convert`.

    Raises:
        ExportError: the interpreter cannot be run, or the conversion fails.
    """
    done = interpreter.run(_SCRIPT, json.dumps(job))
    if done.status:
        raise ExportError(f"--to openvino: the conversion failed ({done.last_words}).")
