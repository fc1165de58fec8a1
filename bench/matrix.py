"""Which target holds which plan of which family, and does its engine say what the plan says.

    python bench/matrix.py --engine vllm=VENV/bin/python --engine llama_cpp=VENV/bin/python

Every registered target is tried in every family and plan: written and verified in its engine, or
refused, with the field that stands in the way. Families are tiny random models, with heads as wide
as engines' kernels ask for; `--model demo` adds a trained one. Results go to
`bench/results/matrix.json` row by row, so that a run that was interrupted goes on where it ended
(`--fresh` starts anew).
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM

import skimp
from skimp.calibration.text import Calibration, bundled_documents
from skimp.cli import output
from skimp.errors import ExportError, SkimpError
from skimp.export.registry import TARGETS
from skimp.export.target import Product, Target
from skimp.export.verify import verify
from skimp.export.write import Refused, export
from skimp.measure.machine import identity
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

RESULTS = Path(__file__).parent / "results" / "matrix.json"
_TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-biased": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "tie_word_embeddings": True},
    "phi3": {},
    "gpt2": {"n_embd": 128, "n_head": 4, "n_layer": 4, "n_inner": 256},
}
# The sections of a plan, from the number of layers; -1 is the last layer.
PLANS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "nothing": {},
    "attention": {"drop": {"attention": [1, 2], "fill": "zero"}},
    "attention 0": {"drop": {"attention": [0], "fill": "zero"}},
    "FF": {"drop": {"ffn": [1, -1], "fill": "zero"}},
    "layers": {"drop": {"layers": [1], "ffn": [2], "fill": "zero"}},
    "mean": {"drop": {"attention": [0, 2], "ffn": [1], "fill": "mean"}},
    "linear": {"drop": {"attention": [0, 2], "ffn": [1], "fill": "linear:8", "repair": "full"}},
    "narrower FFs": {"experts": {"keep": 0.5, "scope": "calibrated", "block": 32}},
    "both": {
        "drop": {"attention": [1], "fill": "mean"},
        "experts": {"keep": 0.75, "scope": "calibrated"},
    },
}


@dataclass(frozen=True)
class Subject:
    """A dense model and text to fit plans on."""

    name: str
    model: Any
    tokenizer: Any
    text: Calibration


def tiny(name: str) -> Subject:
    """A random model of a family; weights are large enough that nothing in it is negligible."""
    config = AutoConfig.for_model(name.partition("-")[0], **{**_TINY, **FAMILIES[name]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(std=1.5 / weight.shape[-1] ** 0.5)
            else:
                weight.data.add_(torch.randn_like(weight) * 0.2)
    model.tie_weights()
    random = torch.Generator().manual_seed(0)
    documents = tuple(torch.randint(3, 512, (96,), generator=random) for _ in range(24))
    return Subject(name, model, None, Calibration(documents, ("random",) * 24, "random tokens"))


def trained(source: str) -> Subject:
    """A model from any source, its plans fitted on the bundled prompts alone, which is quick."""
    loaded = skimp.load(source, dtype="float32")
    documents = tuple(bundled_documents(loaded.tokenizer))
    text = Calibration(documents, ("prompt",) * len(documents), "bundled prompts")
    return Subject(source, loaded.model, loaded.tokenizer, text)


def plan_of(subject: Subject, sections: Mapping[str, Mapping[str, Any]], anatomy: Anatomy) -> Plan:
    """The plan, fitted."""
    last = anatomy.dense_layers
    plan = Plan.empty(anatomy)
    for name, section in sections.items():
        whole = {
            key: [layer % last for layer in value] if isinstance(value, list) else value
            for key, value in section.items()
        }
        plan = plan.with_section(name, whole)
    return skimp.fit(subject.model, subject.tokenizer, plan, calibration=subject.text)


def one(made: Product, target: Target, form: str, prompts: int) -> dict:
    """Write and verify; what became of it."""
    with tempfile.TemporaryDirectory(prefix="skimp-matrix.") as scratch:
        try:
            written = export(made, target, form, Path(scratch) / made.name)
        except Refused as error:
            return {"status": "refused", "reasons": [str(each) for each in error.obstacles]}
        except SkimpError as error:
            return {"status": "failed", "reasons": [str(error)]}
        found: dict[str, Any] = {"status": "written", "folder_bytes": written.bytes}
        check = target.check
        if check is None or (
            made.python is None and find_spec(check.module.partition(".")[0]) is None
        ):
            return {**found, "reasons": ["its engine is not installed"]}
        try:
            result = verify(made, target, written, python=made.python, prompts=prompts)
        except ExportError as error:
            return {"status": "failed", "reasons": [str(error)]}
    words = {True: "verified", False: "differs", None: "compared"}
    shown = {key: value for key, value in result.to_dict().items() if key != "differences"}
    return {**found, "status": words[result.passed], **shown, "sentence": result.sentence}


def rows(
    subjects: list[str], plans: list[str], targets: list[str], forms: list[str]
) -> Iterator[tuple[str, str, str, str]]:
    """(subject, plan, target, format) of all that is to be tried."""
    for subject in subjects:
        for plan in plans:
            for name in targets:
                wanted = [form for form in forms if form in TARGETS[name].formats]
                for form in wanted or TARGETS[name].formats[:1]:
                    yield subject, plan, name, form


def main(
    families: Annotated[str, typer.Option(help="Names by commas; none for --model alone.")] = (
        ",".join(FAMILIES)
    ),
    model: Annotated[list[str] | None, typer.Option(help="A trained model beside them.")] = None,
    plans: Annotated[str, typer.Option(help="Names by commas.")] = ",".join(PLANS),
    targets: Annotated[str, typer.Option(help="Names by commas.")] = ",".join(TARGETS),
    forms: Annotated[str, typer.Option(help="Number formats by commas.")] = "f32",
    engine: Annotated[list[str] | None, typer.Option(help="MODULE=PYTHON of an engine.")] = None,
    prompts: Annotated[int, typer.Option(help="Prompts of each verification.")] = 50,
    fresh: Annotated[bool, typer.Option(help="Forget what is in the file.")] = False,
    out: Annotated[Path, typer.Option(help="The results.")] = RESULTS,
) -> None:
    """Fill in the matrix."""
    interpreters = dict(each.split("=", 1) for each in engine or [])
    document: dict[str, Any] = {"rows": []}
    if out.is_file() and not fresh:
        document = json.loads(out.read_text())
    done = {tuple(row[key] for key in KEYS): row for row in document["rows"]}
    subjects = [*filter(None, families.split(",")), *(model or [])]
    wanted = list(rows(subjects, plans.split(","), targets.split(","), forms.split(",")))
    for name in subjects:
        todo = [key for key in wanted if key[0] == name and _open(done.get(key))]
        if not todo:
            continue
        subject = tiny(name) if name in FAMILIES else trained(name)
        for plan in dict.fromkeys(key[1] for key in todo):
            for key, row in _tried(subject, plan, todo, interpreters, prompts):
                done[key] = row
                typer.echo(f"{' · '.join(key)}: {row['status']} ({row['seconds']:.0f} s)")
                document = {
                    "skimp": skimp.__version__,
                    "date": datetime.now(UTC).isoformat(timespec="seconds"),
                    "machine": identity(),
                    "rows": list(done.values()),
                }
                out.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(out, output.dump(document), "--out")


KEYS = ("subject", "plan", "target", "form")


def _open(row: Mapping[str, Any] | None) -> bool:
    """Whether a row is still to be filled in: not tried yet, or written without an engine."""
    return row is None or row["status"] in ("written", "failed")


def _tried(
    subject: Subject,
    plan: str,
    todo: list[tuple[str, str, str, str]],
    interpreters: Mapping[str, str],
    prompts: int,
) -> Iterator[tuple[tuple[str, str, str, str], dict[str, Any]]]:
    anatomy = Anatomy.of(subject.model)
    mine = [key for key in todo if key[1] == plan]
    try:
        fitted = plan_of(subject, PLANS[plan], anatomy)
    except SkimpError as error:
        for key in mine:
            row = {"status": "no such plan", "reasons": [str(error)], "seconds": 0.0}
            yield key, {**dict(zip(KEYS, key, strict=True)), **row}
        return
    with skimp.apply(subject.model, fitted, anatomy=anatomy):
        made = Product(
            subject.model, subject.tokenizer, fitted, anatomy, subject.name, "matrix-model"
        )
        for key in mine:
            start = time.perf_counter()
            target = TARGETS[key[2]]
            path = interpreters.get(target.check.module) if target.check else None
            told = replace(made, python=Path(path) if path else None)
            row = one(told, target, key[3], prompts)
            row["seconds"] = time.perf_counter() - start
            yield key, {**dict(zip(KEYS, key, strict=True)), **row}


if __name__ == "__main__":
    typer.run(main)
