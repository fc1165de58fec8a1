"""`skimp generate`: text from the dense or the planned model, as it comes."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skimp.cli import figures, options, output
from skimp.cli.common import (
    Run,
    check_keep,
    read_plan,
    require_dense,
    require_tokenizer,
    with_exit,
    with_experts,
)
from skimp.errors import SkimpError

if TYPE_CHECKING:
    from skimp.engine import Engine, Request, Sampling, Timing


def generate(
    ctx: typer.Context,
    model: options.Model,
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help="Text; - reads standard input.", show_default=False),
    ],
    plan: options.PlanFile = None,
    experts: options.Keep = None,
    exit: options.ExitFile = None,
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
    min_p: Annotated[
        float | None,
        typer.Option("--min-p", help="Draw from tokens at least this share as likely as the best."),
    ] = None,
    repetition_penalty: Annotated[
        float,
        typer.Option("--repetition-penalty", help="Above 1 disfavours tokens that came before."),
    ] = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="End before this text; may be repeated."),
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
    skimp generate demo "Name three rivers." --stop "4." --temperature 0.7 --min-p 0.05
    cat article.txt | skimp generate demo - --no-chat --temperature 0.7 --top-p 0.9
    """
    del debug
    from skimp import kernels
    from skimp.cli.prompts import encode
    from skimp.engine import Engine, Request
    from skimp.models.anatomy import Anatomy

    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise SkimpError("PROMPT: it is empty; give some text to continue.")
    if "" in (stop or ()):
        raise SkimpError("--stop: it is empty, and every text holds it; leave it out.")
    sampling = _sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    check_keep(experts)
    chosen = read_plan(plan) if plan is not None else None
    loaded = run.load(model)
    require_tokenizer(loaded, "`skimp generate`")
    if chosen is not None or experts is not None or exit is not None:
        require_dense(loaded, "generate --plan")
    anatomy = Anatomy.of(loaded.model)
    chosen = with_exit(with_experts(chosen, experts, anatomy), exit, anatomy)
    ids = encode(loaded.tokenizer, text, chat=chat)
    engine = Engine(loaded.model, chosen)
    request = Request(
        [ids],
        max_new_tokens,
        sampling=sampling,
        ends=engine.ends,
        stop=stop or (),
        tokenizer=loaded.tokenizer,
        context=engine.anatomy.context_length,
    )
    header = run.loaded_header(loaded, Anatomy.of(loaded.model), chosen or loaded.plan)
    del loaded  # and with it what the plan leaves out
    answer = _answer(run, engine, request)
    run.finish({**header, "prompt": text, **answer})
    if kernels.being_made():
        with run.progress.task("Compiling kernels for later runs, once"):
            kernels.available()


def _sampling(
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    repetition_penalty: float,
    seed: int,
) -> Sampling:
    from skimp.engine import Sampling

    if not math.isfinite(temperature):
        raise SkimpError(f"--temperature: {temperature} is no temperature; give 0 or more.")
    if temperature == 0 and any(option is not None for option in (top_p, top_k, min_p)):
        raise SkimpError(
            "--top-p, --top-k and --min-p draw tokens, so they need --temperature above 0."
        )
    for name, share in (("--top-p", top_p), ("--min-p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise SkimpError(f"{name}: {share} is no probability; give one above 0 and up to 1.")
    if not (math.isfinite(repetition_penalty) and repetition_penalty > 0):
        raise SkimpError(f"--repetition-penalty: {repetition_penalty} is not above 0; 1 is none.")
    return Sampling(
        temperature,
        top_k=top_k or 0,
        top_p=1.0 if top_p is None else top_p,
        min_p=min_p or 0.0,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )


def _answer(run: Run, engine: Engine, request: Request) -> dict[str, Any]:
    """Stream the answer to the screen; the verb's own keys of the document."""
    screen = sys.stderr if run.json_file == output.STDOUT else sys.stdout
    generation = engine.start(request)
    written, depths = 0, list[int]()
    for step in generation:
        piece = step.pieces[0] or ""
        if step.depths is not None and step.tokens[0] is not None:
            depths.append(step.depths[0])
        written += len(piece)
        screen.write(piece)
        screen.flush()
    (answer,) = generation.answers
    text = answer.text or ""
    screen.write(f"{text[written:]}\n")
    screen.flush()
    timing, prompt = generation.timing, len(request.prompts[0])
    run.progress.note(_speed_words(prompt, len(answer.tokens), answer.ended, timing))
    if depths:
        left = 1 - sum(depths) / len(depths) / len(engine.anatomy.layers)
        run.progress.note(f"{figures.share(left)} of the layers were left out, token by token.")
    return {
        "text": text,
        "tokens": {"prompt": prompt, "new": len(answer.tokens)},
        "prefill_s": timing.prefill_s,
        "tokens_per_s": timing.tokens_per_s,
        "stopped": answer.ended,
        "depths": depths if engine.exits is not None else None,
    }


def _speed_words(prompt: int, new: int, ended: str, timing: Timing) -> str:
    words = f"{prompt} prompt tokens read in {figures.seconds(timing.prefill_s)}, {new} new tokens"
    if timing.tokens_per_s:
        words += f" at {figures.significant(timing.tokens_per_s)} tokens/s"
    why = {
        "end": "",
        "stop": " (up to --stop)",
        "length": " (cut at --max-new-tokens)",
        "context": " (context is full)",
    }
    return words + why[ended] + "."
