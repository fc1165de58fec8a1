"""What the full model's run over text shows: states after layers, and the tokens it then takes.

Documents are split once, and every later step says which part it may look at: translators and the
screen are fitted on `fit`, rules trained and layers chosen on `control`, and `promise` is for
nothing but the promise, since tokens of one document resemble each other.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.errors import CalibrationError
from skimp.methods.moments import Moments
from skimp.models.anatomy import Anatomy
from skimp.models.head import Head, final_norm
from skimp.progress import Progress

PartName = Literal["fit", "control", "promise"]
SHARES: dict[PartName, float] = {"fit": 0.4, "control": 0.15, "promise": 0.45}
LEAST_DOCUMENTS = 12
_ROWS = 1024  # states that the full head reads at once
LIKELY = 32  # of the full model's tokens, those that the screen counts


@dataclass(frozen=True)
class States:
    """Tokens of some documents as the full model saw them.

    `after[l]` [n, d] is the state after layer l of the dense model, before the final norm, in the
    model's dtype; `token` [n] what the full model takes next; `document` [n] numbers documents.
    """

    after: dict[int, Tensor]
    token: Tensor
    document: Tensor

    def __len__(self) -> int:
        return len(self.token)

    def some(self, count: int, seed: int = 0) -> "States":
        """At most `count` of the tokens, drawn evenly."""
        if len(self) <= count:
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        rows = order[:count].sort().values
        after = {layer: state[rows] for layer, state in self.after.items()}
        return States(after, self.token[rows], self.document[rows])


@dataclass(frozen=True)
class Likely:
    """Final-normalised `states` [n, d], their likeliest tokens and those' shares, both [n, 32]."""

    states: Tensor
    tokens: Tensor
    shares: Tensor
    document: Tensor


@dataclass(frozen=True)
class Gathered:
    """All that fitting needs of the text; `moments` by layer are those of the `fit` documents."""

    moments: dict[int, Moments]
    likely: Likely
    control: States
    promise: States
    documents: dict[str, int]
    tokens: dict[str, int]


def split(count: int, seed: int = 0) -> dict[PartName, list[int]]:
    """Numbers of documents for each part; no document is in two.

    Raises:
        CalibrationError: too few documents to hold any of them out.
    """
    if count < LEAST_DOCUMENTS:
        raise CalibrationError(
            f"--data: exits need at least {LEAST_DOCUMENTS} documents to be split, but there are "
            f"{count}; give a longer text."
        )
    order = list(range(count))
    random.Random(seed).shuffle(order)
    first = round(count * SHARES["fit"])
    second = first + max(2, round(count * SHARES["control"]))
    return {"fit": order[:first], "control": order[first:second], "promise": order[second:]}


def position(source: int, anatomy: Anatomy) -> int:
    """Where in the planned model a layer of the dense one ends: at it, or at the kept one before.

    Raises:
        CalibrationError: every layer up to it was left out.
    """
    kept = [number for number, la in enumerate(anatomy.layers) if la.source <= source]
    if not kept:
        raise CalibrationError(
            f"exit.probe: the plan leaves out layer {source} and all before it; probe a later one."
        )
    return kept[-1]


@torch.no_grad()
def gather(
    replay: Replay,
    layers: Sequence[int],
    progress: Progress,
    *,
    seed: int = 0,
    likely: int = 20_000,
) -> Gathered:
    """Run the text once and keep what later steps need of it.

    Args:
        replay: the planned model over the text, a document a row.
        layers: of the dense model, ascending, after which states are kept.
        likely: states whose likeliest tokens are looked up for the screen, at most.
    """
    model: Any = replay.model
    anatomy, head, norm = Anatomy.of(model), Head.of(model), final_norm(model)
    places = {layer: position(layer, anatomy) for layer in layers}
    parts = split(sum(len(batch.ids) for batch in replay.batches), seed)
    where = {number: name for name, numbers in parts.items() for number in numbers}
    collector = _Collector(
        layers, norm, head, sum(batch.tokens for batch in replay.batches), likely
    )
    number = 0
    with progress.task("reading the text", len(replay.batches)) as step:
        for index, batch in enumerate(replay.batches):
            after = _run(replay, index, set(places.values()))
            documents = range(number, number + len(batch.ids))
            for name in parts:
                rows = [row for row, each in enumerate(documents) if where[each] == name]
                if rows:
                    real = batch.real[rows]
                    numbers = torch.tensor([documents[row] for row in rows])
                    numbers = numbers[:, None].expand(real.shape)[real.cpu()]
                    states = {la: after[places[la]][rows][real] for la in layers}
                    collector.add(name, states, after[-1][rows][real], numbers)
            number += len(batch.ids)
            step()
    return collector.done(parts)


def _run(replay: Replay, batch: int, wanted: set[int]) -> dict[int, Tensor]:
    """States after the wanted positions, and after the last under -1."""
    hidden, found = replay.entry[batch], {}
    for index in range(len(replay.layers)):
        hidden = replay.layer(index, hidden, batch)
        if index in wanted:
            # Some families add to their input in place in the next layer.
            found[index] = hidden.clone()
    found[-1] = hidden
    return found


class _Collector:
    """Takes states as they come and keeps of them what their part is for."""

    def __init__(
        self, layers: Sequence[int], norm: nn.Module, head: Head, tokens: int, likely: int
    ) -> None:
        self._norm, self._head = norm, head
        self._moments = {layer: Moments() for layer in layers}
        self._held: dict[PartName, list[tuple[dict[int, Tensor], Tensor, Tensor]]] = {
            "control": [],
            "promise": [],
        }
        self._likely: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._tokens: dict[str, int] = dict.fromkeys(SHARES, 0)
        self._every = max(1, round(tokens * SHARES["fit"] / likely))

    def add(
        self, name: PartName, states: dict[int, Tensor], final: Tensor, documents: Tensor
    ) -> None:
        self._tokens[name] += len(documents)
        if name != "fit":
            token = _taken(self._head, self._norm(final))
            held = {layer: state.clone() for layer, state in states.items()}
            self._held[name].append((held, token.cpu(), documents))
            return
        target = self._norm(final)
        for layer, state in states.items():
            self._moments[layer].add(self._norm(state), target)
        some = target[:: self._every]
        tokens, shares = _likeliest(self._head, some)
        self._likely.append((some.cpu(), tokens.cpu(), shares.cpu(), documents[:: self._every]))

    def done(self, parts: dict[PartName, list[int]]) -> Gathered:
        return Gathered(
            self._moments,
            Likely(*(torch.cat(each) for each in zip(*self._likely, strict=True))),
            _join(self._held["control"]),
            _join(self._held["promise"]),
            {str(name): len(numbers) for name, numbers in parts.items()},
            self._tokens,
        )


def _join(held: list[tuple[dict[int, Tensor], Tensor, Tensor]]) -> States:
    layers = held[0][0]
    after = {layer: torch.cat([states[layer] for states, _, _ in held]) for layer in layers}
    return States(after, torch.cat([t for _, t, _ in held]), torch.cat([d for _, _, d in held]))


def _chunks(head: Head, z: Tensor) -> Iterator[Tensor]:
    for some in z.split(_ROWS):
        yield head.logits(some)


def _taken(head: Head, z: Tensor) -> Tensor:
    return torch.cat([logits.argmax(-1) for logits in _chunks(head, z)])


def _likeliest(head: Head, z: Tensor) -> tuple[Tensor, Tensor]:
    tokens, shares = [], []
    for logits in _chunks(head, z):
        values, ids = logits.float().topk(min(LIKELY, logits.shape[-1]), dim=-1)
        tokens.append(ids)
        shares.append((values - logits.float().logsumexp(-1, keepdim=True)).exp())
    return torch.cat(tokens), torch.cat(shares)
