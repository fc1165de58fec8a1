"""What looks at hidden states on their way through the layers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skimp.methods.exit.controllers import controller
from skimp.methods.exit.features import features, likeliest
from skimp.methods.exit.screened import Screen
from skimp.methods.exit.section import Exit
from skimp.methods.exit.translate import Affine
from skimp.methods.exit.values import threshold
from skimp.models.head import Head


@dataclass
class Trace:
    """What a decode step's later probes need of its earlier ones.

    `candidates` int32 [K] or [B, K], where a full head shortlists; the likeliest token [B] and the
    score [B] of the probe before.
    """

    candidates: Tensor | None = None
    token: Tensor | None = None
    score: Tensor | None = None


@dataclass(frozen=True)
class Look:
    """What a probe saw: a sequence leaves where `score` [B] reaches the threshold.

    `logits` [B, K] belong to the tokens `candidates` [B, K] (ascending), or [B, V] to all of them
    (None), in the model's final kind. `token` [B] is the likeliest.
    """

    score: Tensor
    candidates: Tensor | None
    logits: Tensor
    token: Tensor

    def full(self, vocabulary: int) -> Tensor:
        """Logits [B, V]: minus infinity where a token is no candidate."""
        if self.candidates is None:
            return self.logits
        shape = (len(self.logits), vocabulary)
        empty = self.logits.new_full(shape, float("-inf"))
        return empty.scatter_(1, self.candidates.expand_as(self.logits).long(), self.logits)


class Probes:
    """The probes of an `exit` section. It belongs to an engine and holds nothing of a request.

    Attributes:
        sources: the layers of the dense model after which it looks, ascending.
        threshold: a sequence leaves where its score is at least this.
    """

    def __init__(
        self,
        section: Exit,
        values: Mapping[str, Tensor],
        norm: nn.Module,
        head: Head,
        *,
        bar: float | None = None,
    ) -> None:
        """`norm` and `head` are the model's own; `bar` is taken instead of a fitted threshold."""
        self.sources = section.probe
        self.threshold = threshold(section, values) if bar is None else bar
        self._norm, self._head, self._count = norm, head, section.candidates
        self._translators = [Affine.of(la, values, head.weight) for la in section.probe]
        self._rule = controller(section, values, head.weight.device)
        self._screen = Screen(values, head) if section.screen else None

    def begin(self, batch: int) -> Trace:
        """What one decode step of `batch` sequences hands from probe to probe."""
        del batch
        return Trace()

    @torch.no_grad()
    def look(self, index: int, hidden: Tensor, trace: Trace) -> Look:
        """Look at hidden states [B, d], before the final norm, after layer `sources[index]`.

        Rows of the batch do not depend on each other. `trace` is kept up.
        """
        seen, found = self.see(index, hidden, trace)
        score = trace.score = self._rule.score(index, seen, trace.score)
        return replace(found, score=score)

    @torch.no_grad()
    def see(self, index: int, hidden: Tensor, trace: Trace) -> tuple[Tensor, Look]:
        """The features [B, F] that `look` scores, and what it returns but for the score."""
        z = self.state(index, hidden)
        if self._screen is not None:
            found = self._screen.see(z, trace.token)
            trace.token = found.token
            candidates = self._screen.tokens[found.kind]
            look = Look(found.features[:, -1], candidates, found.logits, found.token)
            return found.features, look
        candidates, logits = self._read(z, trace)
        values, place = likeliest(logits)
        token = place
        if candidates is not None:
            token = candidates.gather(-1, place.unsqueeze(-1)).squeeze(-1).long()
        same = (place * 0 if trace.token is None else token == trace.token).float()
        trace.token = token
        seen = features(logits, values, same, same * 0)
        return seen, Look(seen[:, -1], candidates, logits, token)

    def state(self, index: int, hidden: Tensor) -> Tensor:
        """The translated final-normalised state [B, d] that a probe reads."""
        z, translator = self._norm(hidden), self._translators[index]
        return z if translator is None else translator(z)

    def _read(self, z: Tensor, trace: Trace) -> tuple[Tensor | None, Tensor]:
        """Candidates [B, K] and their logits, or None and all."""
        if not self._count:
            return None, self._head.logits(z)
        if trace.candidates is not None:
            return trace.candidates, self._head.rows(z, trace.candidates)
        logits = self._head.logits(z)
        chosen = logits.topk(self._count, dim=-1).indices.sort(-1).values
        trace.candidates = chosen.int()
        return trace.candidates, logits.gather(-1, chosen)
