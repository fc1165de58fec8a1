"""What a target is: an engine's format, what it holds of a plan, and how a model is written in it.

A target joins by an entry in :data:`skimp.export.registry.TARGETS`. It says what stands in the way
of a model before anything is written; what it cannot hold it never writes wrong.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from skimp.methods.exit.section import by_exit
from skimp.methods.experts.section import by_prompt
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


@dataclass(frozen=True)
class Product:
    """A model to export: `model` with `plan` applied to it, beside the anatomy before (`dense`).

    `name`: what the written model is called. `source`: where the dense model came from. `python`:
    an interpreter with the engine, for targets that it takes part in writing.
    """

    model: Any
    tokenizer: Any
    plan: Plan
    dense: Anatomy
    source: str
    name: str
    python: Path | None = None

    @property
    def anatomy(self) -> Anatomy:
        """Of the planned model."""
        return Anatomy.of(self.model)

    @property
    def config(self) -> Any:
        return self.model.config


@dataclass(frozen=True)
class Obstacle:
    """Why a target cannot hold a model: `field` of the plan or config, `reason`, and a `remedy`.

    `nearest`: changes to the plan's sections, by section and field, that the target can hold; they
    make the nearest plan. Empty where no plan of this model will do.
    """

    field: str
    reason: str
    remedy: str
    nearest: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}; {self.remedy}."


@dataclass(frozen=True)
class Check:
    """How an engine is asked what a written model says.

    `script`: a file of this package that the engine's own interpreter runs; it needs nothing of
    skimp, reads jobs as JSON from standard input and answers in JSON (the formats stand in
    :mod:`skimp.export.ask`). `module`: what must be importable there. `install`: how to get it.
    `environment`: variables the engine needs. `tells`: what is compared, "logits" or, where an
    engine gives none or computes in fewer bits, "tokens".
    """

    script: str
    module: str
    install: str
    tells: Sequence[str]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Target(Protocol):
    """A format that some engine loads.

    Attributes:
        name: as in `--to`.
        engines: what loads it, unmodified.
        holds: one line on what it can hold of a plan.
        lacks: one line on what it cannot hold, and why.
        formats: number formats of the weights, the default first.
        check: how the result is verified in its engine.
    """

    @property
    def name(self) -> str: ...
    @property
    def engines(self) -> tuple[str, ...]: ...
    @property
    def holds(self) -> str: ...
    @property
    def lacks(self) -> str: ...
    @property
    def formats(self) -> tuple[str, ...]: ...
    @property
    def check(self) -> Check | None: ...

    def obstacles(self, product: Product, form: str) -> list[Obstacle]:
        """What stands in the way of this model; nothing if it can be written."""
        ...

    def write(self, product: Product, form: str, folder: Path) -> Path:
        """Write the model into an empty folder; the file or folder that an engine loads."""
        ...

    def loading(self, product: Product, form: str) -> str:
        """Markdown: how to load the result in each engine, `MODEL` standing for its place."""
        ...


def dynamic(product: Product) -> list[Obstacle]:
    """The obstacles that every file has: what an engine would have to decide while it runs."""
    found = []
    if by_prompt(product.plan) is not None:
        found.append(
            Obstacle(
                "experts",
                "they are chosen for each prompt as skimp's engine runs, which no file can hold",
                "leave the section out, or fit one set with `scope: calibrated`",
                {"experts": {}},
            )
        )
    if by_exit(product.plan) is not None:
        found.append(
            Obstacle(
                "exit",
                "tokens leave early as skimp's engine runs, which no file can hold",
                "leave the section out, or serve the plan with `skimp serve`",
                {"exit": {}},
            )
        )
    return found
