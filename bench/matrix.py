"""Which target holds which plan of which family, and does its engine say what the plan says.

    python bench/matrix.py --engine vllm=VENV/bin/python --engine llama_cpp=VENV/bin/python

Every registered target is tried in every family and plan: written and verified in its engine, or
refused, with the field that stands in the way. Families are tiny random models, with heads as wide
as engines' kernels ask for; `--model demo` adds a trained one. Engines take long to start, so one
process of each is asked about all plans of a family. Results go to `bench/results/matrix.json`
row by row, so that a run that was interrupted goes on where it ended (`--fresh` starts anew).

    python bench/matrix.py --table

prints what is in that file as a Markdown table.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM

import skimp
from skimp.calibration.text import Calibration, bundled_documents
from skimp.cli import output
from skimp.errors import ExportError, SkimpError
from skimp.export.ask import Answer, Question, ask_all
from skimp.export.interpreter import Interpreter
from skimp.export.registry import TARGETS
from skimp.export.target import Product, Target
from skimp.export.verify import compare, question_for
from skimp.export.write import Refused, Written, export
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
# Mild ones for a trained model of 30 layers, since no engine can repeat logits that a plan has made
# noise. The layers are those that `skimp plan demo --rule cosine --drop-attention 3` chooses.
_LATE = [25, 26, 29]
TRAINED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "late": {
        "drop": {"attention": _LATE, "fill": "mean"},
        "experts": {"keep": 0.9, "scope": "calibrated", "block": 32},
    },
    "late linear": {"drop": {"attention": _LATE, "fill": "linear:16", "repair": "full"}},
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


def rows(
    subjects: list[str], plans: list[str], targets: list[str], forms: list[str]
) -> Iterator[tuple[str, str, str, str]]:
    """(subject, plan, target, format) of all that is to be tried."""
    for subject in subjects:
        # Tiny models have no late layers.
        for plan in (plan for plan in plans if subject not in FAMILIES or plan not in TRAINED):
            for name in targets:
                wanted = [form for form in forms if form in TARGETS[name].formats]
                for form in wanted or TARGETS[name].formats[:1]:
                    yield subject, plan, name, form


def main(
    families: Annotated[str, typer.Option(help="Names by commas; none for --model alone.")] = (
        ",".join(FAMILIES)
    ),
    model: Annotated[list[str] | None, typer.Option(help="A trained model beside them.")] = None,
    plans: Annotated[str, typer.Option(help="Names by commas.")] = ",".join((*PLANS, *TRAINED)),
    targets: Annotated[str, typer.Option(help="Names by commas.")] = ",".join(TARGETS),
    forms: Annotated[str, typer.Option(help="Number formats by commas.")] = "f32",
    engine: Annotated[list[str] | None, typer.Option(help="MODULE=PYTHON of an engine.")] = None,
    prompts: Annotated[int, typer.Option(help="Prompts of each verification.")] = 50,
    fresh: Annotated[bool, typer.Option(help="Forget what is in the file.")] = False,
    table: Annotated[bool, typer.Option(help="Print the file as Markdown; try nothing.")] = False,
    out: Annotated[Path, typer.Option(help="The results.")] = RESULTS,
) -> None:
    """Fill in the matrix, or print it."""
    if table:
        typer.echo(markdown(json.loads(out.read_text())["rows"]))
        return
    interpreters = {
        module: Path(python) for module, _, python in (each.partition("=") for each in engine or [])
    }
    earlier = json.loads(out.read_text())["rows"] if out.is_file() and not fresh else []
    done = {tuple(row[key] for key in KEYS): row for row in earlier}
    subjects = [*filter(None, families.split(",")), *(model or [])]
    wanted = list(rows(subjects, plans.split(","), targets.split(","), forms.split(",")))
    for name in subjects:
        todo = [key for key in wanted if key[0] == name and _open(done.get(key))]
        if not todo:
            continue
        subject = tiny(name) if name in FAMILIES else trained(name)
        with tempfile.TemporaryDirectory(prefix="skimp-matrix.") as scratch:
            for key, row in fill_in(subject, todo, interpreters, prompts, Path(scratch)):
                done[key] = {**dict(zip(KEYS, key, strict=True)), **row}
                _save(out, list(done.values()))
                typer.echo(f"{' · '.join(key)}: {row['status']}")


def _save(out: Path, rows: list[dict[str, Any]]) -> None:
    document = {
        "skimp": skimp.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": identity(),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(out, output.dump(document), "--out")


Key = tuple[str, str, str, str]
KEYS = ("subject", "plan", "target", "form")
OPEN = ("no engine", "failed")


def _open(row: Mapping[str, Any] | None) -> bool:
    """Whether a row is still to be filled in."""
    return row is None or row["status"] in OPEN


@dataclass(frozen=True)
class Asked:
    """A model that was written, and what its engine is to be asked."""

    written: Written
    question: Question


def fill_in(
    subject: Subject,
    todo: list[Key],
    interpreters: Mapping[str, Path],
    prompts: int,
    folder: Path,
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """What became of each combination of a subject: all are written, asked about, then compared."""
    anatomy = Anatomy.of(subject.model)
    fitted: dict[str, Plan] = {}
    asked: dict[Key, Asked] = {}
    for plan in dict.fromkeys(key[1] for key in todo):
        mine = [key for key in todo if key[1] == plan]
        try:
            fitted[plan] = plan_of(subject, {**PLANS, **TRAINED}[plan], anatomy)
        except SkimpError as error:
            for key in mine:
                yield key, {"status": "no such plan", "reasons": [str(error)]}
            continue
        with _applied(subject, fitted[plan], anatomy) as made:
            for key in mine:
                found = _write(made, key, interpreters, prompts, folder / str(len(asked)))
                if isinstance(found, Asked):
                    asked[key] = found
                else:
                    yield key, found
    answers = dict(_answers(asked, interpreters))
    for plan in dict.fromkeys(key[1] for key in answers):
        with _applied(subject, fitted[plan], anatomy) as made:
            for key, answer in answers.items():
                if key[1] == plan:
                    yield key, _compared(made, asked[key], answer, folder)


@contextmanager
def _applied(subject: Subject, plan: Plan, anatomy: Anatomy) -> Iterator[Product]:
    with skimp.apply(subject.model, plan, anatomy=anatomy):
        yield Product(subject.model, subject.tokenizer, plan, anatomy, subject.name, "matrix-model")


def _python(target: Target, interpreters: Mapping[str, Path]) -> Path | None:
    return interpreters.get(target.check.module) if target.check else None


def _write(
    made: Product, key: Key, interpreters: Mapping[str, Path], prompts: int, folder: Path
) -> Asked | dict[str, Any]:
    """Write one; what to ask of it, or the row that says why not."""
    target, form = TARGETS[key[2]], key[3]
    assert target.check is not None
    told = replace(made, python=_python(target, interpreters))
    try:
        written = export(told, target, form, folder)
    except Refused as error:
        if any(each.field.startswith("--engine") for each in error.obstacles):
            return {"status": "no engine", "reasons": ["its interpreter was not named"]}
        return {"status": "refused", "reasons": [str(each) for each in error.obstacles]}
    except SkimpError as error:
        return {"status": "failed", "reasons": [str(error)]}
    return Asked(written, question_for(told, target.check, written, prompts))


def _answers(
    asked: Mapping[Key, Asked], interpreters: Mapping[str, Path]
) -> Iterator[tuple[Key, Answer | ExportError | None]]:
    """Each engine's answers, from one process; None where it is not installed."""
    engines = dict.fromkeys(TARGETS[key[2]].check.module for key in asked)
    for module in engines:
        mine = [key for key in asked if TARGETS[key[2]].check.module == module]
        check, python = TARGETS[mine[0][2]].check, interpreters.get(module)
        if Interpreter.of(python).has(module):
            questions = [asked[key].question for key in mine]
            yield from zip(mine, ask_all(check, questions, python=python), strict=True)
        else:
            yield from ((key, None) for key in mine)


def _compared(
    made: Product, asked: Asked, answer: Answer | ExportError | None, folder: Path
) -> dict[str, Any]:
    """The row of a model that was written."""
    found: dict[str, Any] = {"folder_bytes": asked.written.bytes}
    try:
        if answer is None:
            return {"status": "no engine", "reasons": ["its engine is not installed"], **found}
        if isinstance(answer, ExportError):
            raise answer
        result = compare(made, asked.written, asked.question, answer)
    except ExportError as error:
        return {"status": "failed", "reasons": [str(error).replace(f"{folder}/", "")]}
    words = {True: "verified", False: "differs", None: "compared"}
    shown = {key: value for key, value in result.to_dict().items() if key != "differences"}
    return {"status": words[result.passed], **found, **shown, "sentence": result.sentence}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Models and formats by targets: how many plans hold, and how far off logits are at most."""
    targets = [name for name in TARGETS if any(row["target"] == name for row in rows)]
    lines = [["model", "format", *targets], ["---"] * (2 + len(targets))]
    for subject, form in dict.fromkeys((row["subject"], row["form"]) for row in rows):
        mine = [row for row in rows if (row["subject"], row["form"]) == (subject, form)]
        cells = (_cell([row for row in mine if row["target"] == name]) for name in targets)
        lines.append([subject, form, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(rows: list[dict[str, Any]]) -> str:
    """Such as `7 of 9, 1.2e-05`; what was never tried does not count."""
    tried = [row for row in rows if row["status"] not in (*OPEN, "no such plan")]
    held = [row for row in tried if row["status"] in ("verified", "compared")]
    failed = sum(row["status"] == "failed" for row in rows)
    words = [f"{len(held)} of {len(tried)}"] if tried else []
    if held:
        words.append(f"{max(row['max_difference'] or 0.0 for row in held):.1g}")
    elif tried and all(row["status"] == "refused" for row in tried):
        words = ["refused"]
    for status, count in (
        ("differs", sum(row["status"] == "differs" for row in tried)),
        ("failed", failed),
    ):
        if count:
            words.append(f"**{count} {status}**")
    return ", ".join(words) or "–"


if __name__ == "__main__":
    typer.run(main)
