"""What the records say: medians with intervals, ratios between partners, shares of the roofline."""

from dataclasses import dataclass
from statistics import median, quantiles

from bench.peering.schedule import Record

from skimp.measure.statistics import median_interval, round_ratio_interval

Pair = tuple[float, float]


@dataclass(frozen=True)
class Ratio:
    """The first engine's time over this one's: above 1 is faster. Medians over turns of a round
    trip together, with their 95% intervals."""

    prefill: float
    prefill_interval: Pair
    decode: float
    decode_interval: Pair


@dataclass(frozen=True)
class Figures:
    """One engine's figures. Times in s, medians with 95% intervals; `tpot_s` is one decode step's.

    `tpot_spread`: quartiles over all steps timed. `step_bytes`: what a step must read, by counting;
    `roofline_share`: the time that reading it takes at the machine's bandwidth, over `tpot_s`.
    `idle_cpu_share`: CPU time used while others ran, over that time. `ratio` is None for the first.
    """

    prefill_s: float
    prefill_interval: Pair
    tpot_s: float
    tpot_interval: Pair
    tpot_spread: Pair
    tokens_per_s: float
    step_bytes: float
    roofline_share: float
    idle_cpu_share: float
    ratio: Ratio | None


def figures(
    record: Record, first: Record | None, *, step_bytes: float, bandwidth: float
) -> Figures:
    """Work out an engine's figures.

    Args:
        record: of the engine.
        first: of the engine it is compared with, timed in the same turns; None for that one itself.
        step_bytes: bytes that one decode step must read.
        bandwidth: bytes/s that the machine reads.
    """
    prefill = median_interval(record.prefills)
    decode = median_interval(_by_turn(record))
    steps = [seconds for turn in record.steps for seconds in turn]
    low, _, high = quantiles(steps, n=4) if len(steps) > 1 else (steps[0],) * 3
    return Figures(
        prefill_s=prefill.estimate,
        prefill_interval=prefill.pair,
        tpot_s=decode.estimate,
        tpot_interval=decode.pair,
        tpot_spread=(low, high),
        tokens_per_s=1 / decode.estimate,
        step_bytes=step_bytes,
        roofline_share=step_bytes / bandwidth / decode.estimate,
        idle_cpu_share=record.idle_cpu / record.idle if record.idle else 0.0,
        ratio=_ratio(first, record) if first is not None else None,
    )


def _ratio(first: Record, record: Record) -> Ratio:
    prefill = round_ratio_interval(first.prefills, record.prefills)
    decode = round_ratio_interval(_by_turn(first), _by_turn(record))
    return Ratio(prefill.estimate, prefill.pair, decode.estimate, decode.pair)


def _by_turn(record: Record) -> list[float]:
    """The median step of each turn: other programs add time now and then, to few steps."""
    return [median(turn) for turn in record.steps]
