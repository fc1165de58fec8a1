"""One run of a verb: where it writes, how it loads, and what every document opens with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import typer

import skimp
from skimp.cli import output
from skimp.errors import PlanError, SkimpError
from skimp.progress import Progress, RichProgress

if TYPE_CHECKING:
    from rich.console import Console

    from skimp.models.anatomy import Anatomy
    from skimp.models.load import Loaded
    from skimp.plan import Plan

COMMAND = "skimp.command"
_Perhaps = TypeVar("_Perhaps", "Plan", "Plan | None")  # a plan stays one
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Run:
    """The common options of one run. Tables go to `console`, progress to standard error."""

    command: str
    json_file: Path | None
    seed: int
    device: str
    dtype: str
    console: Console
    progress: Progress

    @classmethod
    def start(
        cls,
        ctx: typer.Context,
        *,
        json_file: Path | None = None,
        seed: int = 0,
        device: str = "cpu",
        dtype: str = "auto",
        threads: int | None = None,
    ) -> Run:
        """Check what can be checked before the long work, and set the number of threads.

        Raises:
            SkimpError: `--json` cannot be written, or the device or dtype is not there.
        """
        output.check_file(json_file, "--json")
        if device != "cpu" or dtype != "auto":
            from skimp.models.placement import resolve_device, resolve_dtype

            resolve_dtype(dtype, resolve_device(device))
        if threads is not None:
            import torch

            from skimp import kernels

            torch.set_num_threads(threads)
            kernels.set_threads(threads)
        return cls(
            command=ctx.meta.get(COMMAND, "skimp"),
            json_file=json_file,
            seed=seed,
            device=device,
            dtype=dtype,
            console=output.console(stderr=json_file == output.STDOUT),
            progress=RichProgress(),
        )

    def load(self, source: str, *, stream: bool | None = False) -> Loaded:
        """Load a model with the options given; `stream` as in :func:`skimp.load`."""
        from skimp.models.load import load

        return load(
            source,
            dtype=self.dtype,
            device=self.device,
            seed=self.seed,
            progress=self.progress,
            stream=stream,
        )

    def header(
        self, source: str, anatomy: Anatomy, dtype: str, plan: Plan | None, **changes: Any
    ) -> dict[str, Any]:
        """The keys that every document opens with."""
        from skimp.measure.machine import identity

        return {
            "skimp": skimp.__version__,
            "model": {
                "source": source,
                "type": anatomy.model_type,
                "layers": anatomy.dense_layers,
                "parameters": anatomy.parameters,
                "dtype": dtype,
                "fingerprint": anatomy.fingerprint,
                **changes,
            },
            "plan": plan.to_dict() if plan is not None else None,
            "seed": self.seed,
            "device": self.device,
            "machine": identity(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.command,
        }

    def loaded_header(self, loaded: Loaded, anatomy: Anatomy, plan: Plan | None) -> dict[str, Any]:
        """`header` for a model that was loaded."""
        return self.header(loaded.source, anatomy, dtype_of(loaded.model), plan)

    def finish(self, document: Mapping[str, Any]) -> None:
        """Write the JSON document, if one was asked for."""
        if self.json_file == output.STDOUT:
            typer.echo(output.dump(document), nl=False)
        elif self.json_file is not None:
            output.write_text(self.json_file, output.dump(document), "--json")
            self.progress.note(f"Wrote {self.json_file}.")


def dtype_of(model: Any) -> str:
    """The name of a model's number format, e.g. `bfloat16`."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def read_plan(path: Path) -> Plan:
    """Read a plan file, or the plan.yaml of a folder that skimp wrote."""
    from skimp.plan import Plan

    path = path / "plan.yaml" if path.is_dir() else path
    if path.suffix == ".json":
        raise PlanError(
            f"--plan: {path} is a result file, which holds no fitted values; give the plan.yaml "
            "that `skimp plan --out` wrote."
        )
    return Plan.read(path)


def check_keep(keep: float | None, scope: str = "prompt") -> None:
    """Refuse an `--experts KEEP` that is no share, or a `--scope`, before anything is loaded."""
    from skimp.methods.experts.section import Scope

    if scope not in get_args(Scope):
        raise PlanError(f"--scope: {scope!r} is none of {', '.join(get_args(Scope))}.")
    if keep is None and scope != "prompt":
        raise PlanError("--scope: it says who picks what --experts keeps; give --experts too.")
    if keep is not None and not 0 < keep <= 1:
        raise PlanError(f"--experts: {keep} is no share above 0 and up to 1.")


def with_experts(
    plan: _Perhaps,
    keep: float | None,
    anatomy: Anatomy,
    scope: str = "prompt",
    repair: str | None = None,
    *,
    more: Mapping[str, Any] | None = None,
) -> _Perhaps:
    """The plan (or an empty one) with `--experts KEEP`; PlanError if it has experts already.

    `more`: further fields of the section.
    """
    from skimp.methods.experts.section import read_section
    from skimp.plan import Plan

    if keep is None:
        return plan
    whole = plan or Plan.empty(anatomy)
    if "experts" in whole.sections:
        raise PlanError("--experts: the plan has experts of its own; give one or the other.")
    section: dict[str, Any] = {"keep": float(keep), "scope": scope, **(more or {})}
    if scope == "calibrated" and repair == "full":  # ranks are for sublayers that are dropped
        section["repair"] = repair
    return whole.with_section("experts", read_section(section).to_dict())


def with_exit(plan: _Perhaps, file: Path | None, anatomy: Anatomy) -> _Perhaps:
    """The plan (or an empty one) with the exits of `--exit FILE`, fitted values and evidence too.

    Raises:
        PlanError: the plan has exits already, or the file none for this model.
    """
    from skimp.methods.exit.section import SECTION
    from skimp.plan import Plan

    if file is None:
        return plan
    whole = plan or Plan.empty(anatomy)
    if SECTION in whole.sections:
        raise PlanError("--exit: the plan has exits of its own; give one or the other.")
    found = read_plan(file)
    if SECTION not in found.sections:
        raise PlanError(f"--exit: {file} has no `exit` section; write one with `skimp fit-exit`.")
    found.check_model(anatomy)
    values = {key: value for key, value in found.values.items() if key.startswith(f"{SECTION}.")}
    made = whole.with_section(SECTION, found.sections[SECTION]).with_values(values)
    shown = found.evidence.get(SECTION)
    return made if shown is None else made.with_evidence(**{SECTION: shown})


def plan_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each plan file: its stem, or its path where stems are the same."""
    stems = [(path if path.is_dir() else path.with_suffix("")).name for path in paths]
    names = [
        stem if stems.count(stem) == 1 else str(path)
        for stem, path in zip(stems, paths, strict=True)
    ]
    if len(set(names)) < len(names):
        raise PlanError("--plan: a plan is given twice; name each once.")
    return names


def require_dense(loaded: Loaded, verb: str) -> None:
    """Refuse a model that already carries a plan where a dense one is needed."""
    if loaded.plan is not None and any(loaded.plan.sections.values()):
        raise PlanError(
            f"{loaded.source} already carries a plan; give `skimp {verb}` the dense model."
        )


def require_tokenizer(loaded: Loaded, purpose: str) -> Any:
    """The tokenizer, or SkimpError: random weights have none."""
    if loaded.tokenizer is None:
        raise SkimpError(
            f"{loaded.source} has no tokenizer, which {purpose} needs; give a trained model such "
            "as demo."
        )
    return loaded.tokenizer


def layer_list(text: str | None, option: str) -> list[int]:
    """Read `3,4,7` or `20-23,27`; SkimpError, naming the option, on anything else."""
    found: list[int] = []
    for item in (text or "").replace(" ", "").split(",") if text else ():
        match = _RANGE.fullmatch(item)
        if match is None:
            raise SkimpError(
                f"{option}: {item!r} is no layer; write a list such as 3,4,7 or 20-23."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= first + 10_000:
            raise SkimpError(f"{option}: {item!r} is no range of layers; write it as 20-23.")
        found.extend(range(first, last + 1))
    if len(set(found)) < len(found):
        raise SkimpError(f"{option}: a layer is named twice in {text!r}.")
    return sorted(found)


def layer_words(layers: list[int] | tuple[int, ...]) -> str:
    """Layers in short: `0-6, 9, 11-12`; a dash if there is none."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    spans = (f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return ", ".join(spans) or "–"


def dropped_of(plan: Plan) -> dict[str, list[int]]:
    """`{attention, ffn}`: the layers whose sublayers a plan leaves out."""
    from skimp.methods.registry import sections

    section = sections(plan).get("drop")
    if section is None:
        return {"attention": [], "ffn": []}
    return {"attention": list(section.attention), "ffn": list(section.ffn)}


def neuron_words(keep: float | list[float], scope: str, repair: str, **_: Any) -> str:
    """What an `experts` section keeps, in short."""
    if isinstance(keep, list):
        share = f"{min(keep):.0%} to {max(keep):.0%}, layer by layer"
    else:
        share = f"{keep:.0%} of each layer's"
    if scope == "calibrated":
        return f"{share}, for good" + ("" if repair == "none" else "; output maps repaired")
    return f"{share}, by each answer, those that its prompt needed"
