"""LLM-Drop (He et al., 2024) and ShortGPT (Men et al., 2024): how far a part turns the stream."""

import torch
from torch import Tensor

from skimp.calibration.replay import Replay
from skimp.finder.rules import Problem, Ruling, lowest, rule
from skimp.finder.trials import Part
from skimp.models.anatomy import KINDS


@rule("cosine")
def cosine(problem: Problem) -> Ruling:
    """Least 1 - cosine of the residual stream before and after the part (LLM-Drop)."""
    turns = _turns(problem.text.replay)
    importance = {
        part: turns[part.layer]["layer" if part.name == "layer" else part.kinds[0]]
        for name in problem.wanted
        for part in problem.candidates(name)
    }
    return lowest(problem, importance)


@rule("block-influence")
def block_influence(problem: Problem) -> Ruling:
    """Least 1 - cosine of the hidden state before and after the whole layer (ShortGPT)."""
    turns = _turns(problem.text.replay)
    importance: dict[Part, float] = {
        part: turns[part.layer]["layer"]
        for name in problem.wanted
        for part in problem.candidates(name)
    }
    return lowest(problem, importance)


def _turns(replay: Replay) -> list[dict[str, float]]:
    """Mean over tokens of 1 - cos(x, x + branch(x)) a sublayer, and of the same a layer; fp32."""
    sums: list[dict[str, float]] = [{} for _ in replay.layers]
    tokens = sum(batch.tokens for batch in replay.batches)
    states = list(replay.entry)
    for index in range(len(replay.layers)):
        for number, hidden in enumerate(states):
            real = replay.batches[number].real
            traces, states[number] = replay.watch(index, KINDS, hidden, number)
            _add(sums[index], "layer", _turn(hidden[real], states[number][real]))
            for kind, trace in traces.items():
                before = trace.state[real]
                _add(sums[index], kind, _turn(before, before + trace.output[real]))
    return [{name: total / tokens for name, total in each.items()} for each in sums]


def _turn(before: Tensor, after: Tensor) -> float:
    """Sum over rows [n, d] of 1 - cosine, in fp32."""
    return float((1 - torch.cosine_similarity(before.float(), after.float(), dim=-1)).sum())


def _add(sums: dict[str, float], name: str, value: float) -> None:
    sums[name] = sums.get(name, 0.0) + value
