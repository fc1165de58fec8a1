"""`skimp generate`: text from the dense or the planned model, as it comes."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skimp.cli import options, output
from skimp.cli.common import Run, read_plan, require_dense, require_tokenizer
from skimp.cli.figures import seconds, significant
from skimp.errors import SkimpError

if TYPE_CHECKING:
    from skimp.cli.streaming import Sampling, Timing


def generate(
    ctx: typer.Context,
    model: options.Model,
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help="Text; - reads standard input.", show_default=False),
    ],
    plan: options.PlanFile = None,
    max_new_tokens: Annotated[
        int,
        typer.Option("--max-new-tokens", metavar="N", min=1, help="Tokens to generate at most."),
    ] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 always takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Draw from the likeliest tokens that hold this probability."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", metavar="N", min=1, help="Draw from this many likeliest tokens."),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Wrap the prompt in the model's chat template; by default if it has one.",
            show_default=False,
        ),
    ] = None,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Continue a prompt; the text goes to standard output, its speed to standard error.

    [bold]Examples[/]

    skimp generate demo "Why is the sky blue?"
    skimp generate demo "Why is the sky blue?" --plan plan.yaml --max-new-tokens 64
    cat article.txt | skimp generate demo - --no-chat --temperature 0.7 --top-p 0.9
    """
    del debug
    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise SkimpError("PROMPT: it is empty; give some text to continue.")
    sampling = _sampling(temperature, top_p, top_k, seed)
    chosen = read_plan(plan) if plan is not None else None
    loaded = run.load(model)
    require_tokenizer(loaded, "`skimp generate`")
    if chosen is not None:
        require_dense(loaded, "generate --plan")
    run.finish(_answer(run, loaded, chosen, text, chat, max_new_tokens, sampling))


def _sampling(temperature: float, top_p: float | None, top_k: int | None, seed: int) -> Sampling:
    from skimp.cli.streaming import Sampling

    if not math.isfinite(temperature):
        raise SkimpError(f"--temperature: {temperature} is no temperature; give 0 or more.")
    if temperature == 0 and (top_p is not None or top_k is not None):
        raise SkimpError("--top-p and --top-k draw tokens, so they need --temperature above 0.")
    if top_p is not None and not 0 < top_p <= 1:
        raise SkimpError(f"--top-p: {top_p} is no probability; give one above 0 and up to 1.")
    return Sampling(temperature, top_k or 0, 1.0 if top_p is None else top_p, seed)


def _answer(
    run: Run,
    loaded: Any,
    plan: Any,
    prompt: str,
    chat: bool | None,
    new: int,
    sampling: Sampling,
) -> dict[str, Any]:
    from skimp.cli import streaming
    from skimp.methods.apply import apply
    from skimp.models.anatomy import Anatomy

    anatomy = Anatomy.of(loaded.model)
    ids = streaming.encode(loaded.tokenizer, prompt, chat=chat)
    timing = streaming.Timing()
    screen = sys.stderr if run.json_file == output.STDOUT else sys.stdout
    given: list[str] = []
    tokens = 0
    with apply(loaded.model, plan, anatomy=anatomy) if plan is not None else nullcontext():
        pieces = streaming.Pieces(loaded.tokenizer)
        for token in streaming.generate(
            loaded.model, ids, new=new, sampling=sampling, timing=timing
        ):
            tokens += 1
            given.append(pieces.add(token))
            screen.write(given[-1])
            screen.flush()
        given.append(pieces.rest())
        screen.write(f"{given[-1]}\n")
        screen.flush()
    run.progress.note(_speed_words(len(ids), tokens, timing))
    return {
        **run.loaded_header(loaded, anatomy, plan or loaded.plan),
        "prompt": prompt,
        "text": "".join(given),
        "tokens": {"prompt": len(ids), "new": tokens},
        "prefill_s": timing.prefill_s,
        "tokens_per_s": timing.tokens_per_s,
        "stopped": timing.stopped,
    }


def _speed_words(prompt: int, new: int, timing: Timing) -> str:
    words = f"{prompt} prompt tokens read in {seconds(timing.prefill_s)}, {new} new tokens"
    if timing.tokens_per_s:
        words += f" at {significant(timing.tokens_per_s)} tokens/s"
    why = {"end": "", "length": " (cut at --max-new-tokens)", "context": " (context is full)"}
    return words + why[timing.stopped] + "."
