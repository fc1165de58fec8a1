"""The model that all engines run: its sizes, a prompt for it, and the files some engines read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench.peering.roster import Entry, Kind

from skimp.cli.common import layer_list, read_plan, require_dense
from skimp.errors import SkimpError
from skimp.export.gguf import target as gguf
from skimp.export.target import Product
from skimp.measure.cost import decode_cost
from skimp.measure.memory import available_bytes
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.models.load import load
from skimp.models.placement import gigabytes
from skimp.models.quiet import quiet
from skimp.plan import Plan
from skimp.progress import Progress
from skimp.workload import Workload

_TEXT = (
    "The sun rises in the east and sets in the west. Water freezes at zero degrees Celsius and "
    "boils at one hundred degrees. There are seven days in a week: Monday, Tuesday,"
)
_RANDOM_PROMPT = 32  # tokens, where there is no tokenizer to read the text with


@dataclass(frozen=True)
class Subject:
    """The model as data. `prompt`: token ids of a text, or random ones (`text` is then None).
    `head`: what every result file says of the model."""

    anatomy: Anatomy
    prompt: list[int]
    text: str | None
    head: dict[str, Any]


class Model:
    """The model itself, loaded once by the caller of the engines, to be read off and exported."""

    def __init__(self, source: str, seed: int, progress: Progress) -> None:
        loaded = load(source, dtype="bf16", seed=seed, progress=progress)
        require_dense(loaded, "bench")
        self._model: Any = loaded.model
        anatomy = Anatomy.of(self._model)
        ids, text = _prompt(loaded.tokenizer, anatomy.vocabulary, seed)
        head = {
            "source": source,
            "type": anatomy.model_type,
            "layers": anatomy.dense_layers,
            "parameters": anatomy.parameters,
            "dtype": "bfloat16",
            "fingerprint": anatomy.fingerprint,
        }
        self.subject = Subject(anatomy, ids, text, head)

    def export(self, form: str, folder: Path) -> Path:
        """Write the model in `form` (`folder`, or a number format of GGUF) below `folder`.

        Raises:
            SkimpError: it cannot be written so, or the package that writes it is missing.
        """
        if form == "folder":
            path = folder / "model"
            if not path.exists():
                with quiet():
                    self._model.save_pretrained(path)
            return path
        path = folder / f"{form}.gguf"
        if not path.exists():
            # Engines are given token ids, so the file needs no tokenizer.
            anatomy = self.subject.anatomy
            plan = Plan.empty(anatomy)
            product = Product(self._model, None, plan, anatomy, self.subject.head["source"], form)
            found = gguf.TARGET.obstacles(product, form)
            if found:
                raise SkimpError(f"it cannot be written as GGUF: {found[0]}")
            gguf.write(product, form, path)
        return path


def resolve(entry: Entry, subject: Subject) -> tuple[Entry, Anatomy]:
    """The entry with its argument as its worker wants it, and the anatomy of what it runs.

    Raises:
        SkimpError: a plan or a list of layers that does not fit the model.
    """
    if not entry.argument:
        return entry, subject.anatomy
    if entry.kind.argument is None:
        plan = read_plan(Path(entry.argument))
        path = Path(entry.argument).resolve()
        path = path / "plan.yaml" if path.is_dir() else path
        return replace(entry, argument=str(path)), reduce(plan, subject.anatomy)
    layers = dropped_attention(entry)
    section = {"attention": layers, "ffn": [], "fill": "zero"}
    plan = Plan.empty(subject.anatomy).with_section("drop", section)
    text = ",".join(str(layer) for layer in layers)
    return replace(entry, argument=text), reduce(plan, subject.anatomy)


def dropped_attention(entry: Entry) -> list[int]:
    """The layers in `LAYERS` or `PLAN` behind an engine's name."""
    if not Path(entry.argument).exists():
        return layer_list(entry.argument, f"--engines {entry.name}")
    layers = read_plan(Path(entry.argument)).sections.get("drop", {}).get("attention", [])
    if not layers:
        raise SkimpError(f"--engines: the plan {entry.argument} drops no attention.")
    return list(layers)


def step_bytes(anatomy: Anatomy, window: Workload, kind: Kind) -> float:
    """Bytes that one decode step must read, in the number formats of an engine's kind."""
    cost = decode_cost(anatomy, window)
    bits = 8 * anatomy.element_bytes
    return (cost.weight_bytes * kind.weight_bits + cost.kv_bytes * kind.kv_bits) / bits


def require_room(entries: Sequence[Entry], anatomies: Mapping[str, Anatomy]) -> None:
    """Raise SkimpError unless all engines' weights fit into memory side by side."""
    need = sum(anatomies[entry.name].parameters * entry.kind.weight_bits / 8 for entry in entries)
    free = available_bytes(torch.device("cpu"))
    if need > free:
        raise SkimpError(
            f"--engines: {len(entries)} engines hold {gigabytes(need)} of weights at once and "
            f"{gigabytes(free)} are free; time fewer of them in one run."
        )


def _prompt(tokenizer: Any, vocabulary: int, seed: int) -> tuple[list[int], str | None]:
    if tokenizer is None:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(vocabulary, (_RANDOM_PROMPT,), generator=generator)
        return ids.tolist(), None
    return tokenizer(_TEXT)["input_ids"], _TEXT
