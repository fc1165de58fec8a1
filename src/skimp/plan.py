"""The plan: what to leave out of a model, as plain data.

A plan names the model it was made for, holds one section per method, and carries fitted tensors
(the values of fills) in a safetensors file beside it. This module knows the envelope only; each
method reads and checks its own section (:mod:`skimp.methods.registry`).
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from skimp.errors import PlanError
from skimp.models.anatomy import Anatomy

FORMAT = 1
# The plan's name inside a model folder.
PLAN_FILE = "plan.yaml"
# What pydantic says in words of its own, by the type of its complaint.
_SAID = {
    "missing": "is missing",
    "extra_forbidden": "there is no such field; mind the spelling",
}


@dataclass(frozen=True)
class ModelRef:
    """The dense model that a plan was made for."""

    type: str
    layers: int
    fingerprint: str

    @classmethod
    def of(cls, anatomy: Anatomy) -> Self:
        return cls(anatomy.model_type, anatomy.dense_layers, anatomy.fingerprint)


@dataclass(frozen=True)
class Plan:
    """What to leave out of which model. `values` are fitted tensors, named `METHOD.…`."""

    model: ModelRef
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def empty(cls, anatomy: Anatomy) -> Self:
        """The plan that leaves everything in."""
        return cls(ModelRef.of(anatomy))

    def with_section(self, name: str, section: Mapping[str, Any]) -> Self:
        """The plan with one method's section replaced; its fitted values are forgotten."""
        kept = {key: value for key, value in self.values.items() if not key.startswith(f"{name}.")}
        return replace(self, sections={**self.sections, name: dict(section)}, values=kept)

    def with_values(self, values: Mapping[str, Tensor]) -> Self:
        return replace(self, values={**self.values, **values})

    def with_evidence(self, **evidence: Any) -> Self:
        return replace(self, evidence={**self.evidence, **evidence})

    def check_model(self, anatomy: Anatomy) -> None:
        """Raise PlanError, naming the field, unless the plan was made for this very model."""
        here = ModelRef.of(anatomy)
        for name in ("type", "layers", "fingerprint"):
            wanted, found = getattr(self.model, name), getattr(here, name)
            if wanted != found:
                raise PlanError(
                    f"model.{name}: this plan was made for {wanted}, but the model has {found}; "
                    "make a plan for this model with `skimp plan`."
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to a file, without the fitted values."""
        data: dict[str, Any] = {"skimp": FORMAT, "model": dict(vars(self.model))}
        data.update({name: dict(section) for name, section in self.sections.items()})
        if self.evidence:
            data["evidence"] = dict(self.evidence)
        return data

    def digest(self) -> str:
        """32 hexadecimal digits of what it does: of sections and fitted values, not of evidence."""
        what = json.dumps([vars(self.model), dict(self.sections)], sort_keys=True).encode()
        return hashlib.sha256(what + _pack(self.values)).hexdigest()[:32]

    def write(self, path: str | Path) -> None:
        """Write the plan, and its fitted values beside it as `STEM.safetensors`; atomic each."""
        path = Path(path)
        data = self.to_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.values:
            sidecar = path.with_suffix(".safetensors")
            content = _pack(self.values)
            _write_atomically(sidecar, content)
            data["values"] = {"file": sidecar.name, "sha256": hashlib.sha256(content).hexdigest()}
        text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)
        _write_atomically(path, text.encode())

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a plan file and its values.

        Raises:
            PlanError: no such file, not a plan, or values that are missing or damaged.
        """
        path = Path(path)
        file = _parse(path)
        values = _read_values(path, file.values) if file.values else {}
        return cls(
            ModelRef(**file.model.model_dump()),
            dict(file.model_extra or {}),
            file.evidence,
            values,
        )


class _ModelBlock(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: str = Field(description="architecture family, as in the model's config.json")
    layers: int = Field(ge=1, description="layers of the dense model")
    fingerprint: str = Field(pattern=r"^sha256:[0-9a-f]{32}$")


class _ValuesBlock(BaseModel):
    model_config = ConfigDict(extra="forbid")
    file: str = Field(description="safetensors file beside the plan")
    sha256: str


class PlanFile(BaseModel):
    """The envelope of a plan file; sections of methods are its further keys."""

    model_config = ConfigDict(extra="allow")
    skimp: Literal[1] = Field(description="version of the plan format")
    model: _ModelBlock
    values: _ValuesBlock | None = None
    evidence: dict[str, Any] = Field(default_factory=dict)
    __pydantic_extra__: dict[str, dict[str, Any]]


def explain(error: ValidationError, where: str = "") -> str:
    """The first complaint of a pydantic error as one sentence that names the field."""
    first = error.errors()[0]
    field_name = ".".join(str(part) for part in first["loc"])
    said = first["msg"].rstrip(".").replace("Input should be", "must be")
    said = said.replace("valid dictionary", "valid mapping")
    return f"{where}{field_name}: {_SAID.get(first['type'], said)}."


def _parse(path: Path) -> PlanFile:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path}: there is no such plan file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read as a plan ({error}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no such date, nested too deep
        reason = str(error).replace("\n", " ")
        raise PlanError(f"{path}: is not valid YAML ({reason}).") from None
    if not isinstance(data, dict) or "skimp" not in data:
        raise PlanError(f"{path}: is not a plan: the key 'skimp: {FORMAT}' is missing.")
    try:
        return PlanFile.model_validate(data)
    except ValidationError as error:
        raise PlanError(explain(error, f"{path}: ")) from None


def _read_values(path: Path, block: _ValuesBlock) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if Path(block.file).name != block.file:
        raise PlanError(f"{path}: values.file: must be a file beside the plan, not {block.file!r}.")
    sidecar = path.parent / block.file
    try:
        content = sidecar.read_bytes()
    except OSError:
        raise PlanError(f"{path}: values.file: {sidecar} is missing or unreadable.") from None
    if hashlib.sha256(content).hexdigest() != block.sha256:
        raise PlanError(
            f"{sidecar}: is damaged or was changed: its SHA-256 differs from the plan's."
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise PlanError(f"{sidecar}: is not a safetensors file ({error}).") from None


def _pack(values: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: value.detach().cpu().contiguous() for name, value in sorted(values.items())})


def _write_atomically(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
