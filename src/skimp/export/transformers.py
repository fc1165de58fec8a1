"""The target `transformers`: a folder that loads without skimp and holds all that is static."""

from pathlib import Path

from skimp.export.forms import PLAIN, cast
from skimp.export.target import Check, Obstacle, Product
from skimp.methods import folder as planned_folder

CHECK = Check(
    script="checks/transformers.py",
    module="transformers",
    install="pip install transformers torch",
    tells=("logits", "tokens"),
)


class Transformers:
    """Safetensors and one small modelling file under the family's own class."""

    name = "transformers"
    engines = ("transformers",)
    holds = "all that is static: dropped sublayers with any fill, repairs, narrower FFs"
    lacks = "what is decided at run time; loads with trust_remote_code only"
    formats = PLAIN
    check = CHECK

    def obstacles(self, product: Product, form: str) -> list[Obstacle]:
        """Nothing: every model that skimp plans has a transformers class."""
        del product, form
        return []

    def write(self, product: Product, form: str, folder: Path) -> Path:
        """Write as `skimp apply` does."""
        planned_folder.write(cast(product.model, form), product.tokenizer, product.plan, folder)
        return folder

    def loading(self, product: Product, form: str) -> str:
        """How to load it."""
        del product, form
        return """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("MODEL", trust_remote_code=True, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("MODEL")
```
The remote code is one file, `modeling_planned.py`, that depends on torch and transformers alone.
"""


TARGET = Transformers()
