"""How far the oracle is off: random plans and workloads, predicted and then timed.

    python bench/oracle.py --pairs 40 --json oracle.json

Every pair is timed next to a reading of the memory's bandwidth, and its time is brought to the
median reading, since other programs slow both alike. Overheads are solved for on half of the pairs
and the errors reported on the other half, both ways round.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

import skimp
from skimp import kernels
from skimp.cli import output
from skimp.engine import Engine, State
from skimp.engine.runners import cache_tensors
from skimp.measure.machine import Machine, identity, profile
from skimp.measure.oracle import Timing, measure_overheads, predict
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import RichProgress
from skimp.workload import Workload

_MODELS = ("demo", "random:llama-1.1b,layers=8")
_DECODES = ((64, 1), (512, 1), (1900, 1), (64, 4), (512, 4))  # context, batch
_PREFILLS = ((64, 1), (256, 1), (256, 4))  # prompt, batch
_STEPS, _PREFILL_TRIES = 16, 3


def main(
    pairs: Annotated[int, typer.Option(min=4, help="Plans with a workload, per pass.")] = 40,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Predict and time random plans; print how far the predictions were off."""
    output.check_file(json_file, "--json")
    random = torch.Generator().manual_seed(seed)
    taken: dict[str, list[tuple[Timing, str, float]]] = {"decode": [], "prefill": []}
    with RichProgress().task("pairs", 2 * pairs) as step, torch.inference_mode():
        for index, source in enumerate(_MODELS):
            model = skimp.load(source, dtype="bfloat16").model
            count = pairs // 2 + (pairs % 2 if index == 0 else 0)
            for number in range(count):
                engine = Engine(model, _plan(Anatomy.of(model), number, random))
                engine.warm_up(1)
                for name, timed in (("decode", _decode), ("prefill", _prefill)):
                    timing, reading = timed(engine, number)
                    taken[name].append((timing, source, reading))
                    step()
    document: dict[str, Any] = {"machine": identity(), "seed": seed, "threads": kernels.threads()}
    base = profile("cpu", torch.bfloat16)
    for name, rows in taken.items():
        document[name] = _judge(name, rows, base)
    if json_file is not None:
        json_file.write_text(output.dump(document), encoding="utf-8")


def _plan(anatomy: Anatomy, number: int, random: torch.Generator) -> Plan:
    """Dense first; then random numbers of random attention and FF sublayers left out."""
    plan = Plan.empty(anatomy)
    if number == 0:
        return plan
    layers = anatomy.dense_layers
    order = torch.randperm(layers, generator=random).tolist()
    others = torch.randperm(layers, generator=random).tolist()
    attention = int(torch.randint(1, layers, (), generator=random))
    ffn = int(torch.randint(0, layers // 2, (), generator=random)) if number % 2 else 0
    return plan.with_section("drop", {"attention": order[:attention], "ffn": others[:ffn]})


def _decode(engine: Engine, number: int) -> tuple[Timing, float]:
    context, batch = _DECODES[number % len(_DECODES)]
    cache = engine.runner.new_cache(batch, context + _STEPS)
    for tensor in cache_tensors(cache):
        tensor.fill_(0.01)  # memory that nobody wrote is read from a cache
    state = State(cache, torch.zeros(batch, dtype=torch.long), False, context + _STEPS, context)
    tokens = torch.ones(batch, dtype=torch.long)
    engine.warm_up(batch)
    readings, took = [_reading()], []
    for _ in range(_STEPS):
        took.append(_seconds(lambda: engine.decode(state, tokens)))
        readings.append(_reading())
    workload = Workload(context, _STEPS, batch)
    return Timing(engine.anatomy, workload, median(took)), median(readings)


def _prefill(engine: Engine, number: int) -> tuple[Timing, float]:
    prompt, batch = _PREFILLS[number % len(_PREFILLS)]
    tokens = torch.ones(batch, prompt, dtype=torch.long)
    readings, took = [], []
    for _ in range(_PREFILL_TRIES):
        took.append(_seconds(lambda: engine.prefill(tokens, 1)))
        readings.append(_product())
    workload = Workload(prompt, 1, batch)
    return Timing(engine.anatomy, workload, median(took)), median(readings)


_WEIGHT: list[torch.Tensor] = []


def _reading() -> float:
    """Bytes/s that the native product reads just now."""
    if not _WEIGHT:
        _WEIGHT.extend(torch.ones(12, 2048, 2048, dtype=torch.bfloat16).unbind())
    row = torch.ones(1, 2048, dtype=torch.bfloat16)
    seconds = _seconds(lambda: [kernels.linear(row, weight) for weight in _WEIGHT])
    return sum(weight.nbytes for weight in _WEIGHT) / seconds


def _product() -> float:
    """FLOP/s of a matrix product just now."""
    left = torch.ones(256, 2048, dtype=torch.bfloat16)
    seconds = _seconds(lambda: left @ _WEIGHT[0].T)
    return 2 * 256 * 2048 * 2048 / seconds


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _judge(name: str, rows: list[tuple[Timing, str, float]], base: Machine) -> dict[str, Any]:
    """Errors on the half that the overheads were not solved for."""
    usual = median(reading for _, _, reading in rows)
    machine = replace(base, bandwidth=usual) if name == "decode" else base
    timings = [replace(t, seconds=t.seconds * reading / usual) for t, _, reading in rows]
    found: list[dict[str, Any]] = []
    for half in (0, 1):
        solved = measure_overheads(timings[1 - half :: 2], machine, name)  # pyright: ignore
        for timing, (_, source, _) in zip(timings[half::2], rows[half::2], strict=True):
            predicted = predict(timing.anatomy, timing.workload, machine, **{name: solved})
            seconds = predicted.prefill_s if name == "prefill" else predicted.tpot_s
            found.append(
                {
                    "model": source,
                    "workload": str(timing.workload),
                    "predicted_s": seconds,
                    "measured_s": timing.seconds,
                    "error": seconds / timing.seconds - 1,
                }
            )
    errors = sorted(abs(row["error"]) for row in found)
    typer.echo(
        f"{name}: {len(errors)} pairs, median error {median(errors):.1%}, "
        f"nine in ten within {errors[len(errors) * 9 // 10]:.1%}, worst {errors[-1]:.1%}"
    )
    return {"median": median(errors), "worst": errors[-1], "yardstick": usual, "pairs": found}


if __name__ == "__main__":
    typer.run(main)
