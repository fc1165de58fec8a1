"""Log-likelihoods of continuations under a live model, each shared token computed once.

The harness's own scorer runs every (context, continuation) pair by itself and the vocabulary over
every position. Here pairs are packed into tries (see :mod:`skimp.measure.packing`) and the head
sees the scored positions only; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skimp.errors import EvaluationError
from skimp.measure.depths import Leaving
from skimp.measure.likelihood import Likelihood, head_sees, likelihoods
from skimp.measure.packing import (
    ROW_TOKENS,
    Layout,
    Row,
    Scored,
    attention,
    batches,
    chain_rows,
    packed_rows,
)
from skimp.measure.phased import phased
from skimp.measure.simulated import Simulated, chooser_of
from skimp.methods.experts.deciding import Chooser
from skimp.methods.experts.modules import guided
from skimp.progress import SILENT, Progress

Way = Literal["auto", "packed", "plain", "phased"]
LOGIT_ELEMENTS = 2**26  # scored positions x vocabulary held at once: 256 MB in fp32
PROBE_TAIL = 8


class Scorer:
    """Scores token sequences under `model`, which may carry a plan.

    Ways of running it:
        packed: sequences share one row under a tree-shaped attention mask. Fastest.
        plain: one padded row per sequence, for models that cannot take such a mask.
        phased: the context as a prefill, each continuation through its KV cache, as when serving.
            For plans that leave something out while decoding only: a single pass over context and
            continuation together is all prefill and would show such a plan at no loss.
        auto: packed where this model, as it stands, is found to give the plain results under it.

    Experts that a prompt chooses are simulated, packed or plain (:mod:`skimp.measure.simulated`).
    With `leaving` (of `model`, which carries the plan) tokens leave early, in one pass as well:
    from the last token of the context on, as if that came first (:mod:`skimp.measure.depths`).

    Args:
        max_length: longest input in tokens; longer ones lose their beginning, as in the harness.
        batch_tokens: padded tokens per forward pass (one sequence may exceed it).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_length: int,
        batch_tokens: int = 2048,
        way: Way = "auto",
        leaving: Leaving | None = None,
    ) -> None:
        self.model: Any = model
        self.leaving = leaving
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.way: Way = way
        self._config: Any = self.model.config.get_text_config()
        self._takes_masks: dict[int, bool] = {}

    @property
    def simulated(self) -> bool:
        """Whether this model, as it stands, is scored in simulated generation mode."""
        return chooser_of(self.model) is not None

    @property
    def taken(self) -> str:
        """The way that requests are run in (`auto` resolved, once it had to be)."""
        if self.way != "auto" or 0 not in self._takes_masks:
            return self.way
        return "packed" if self._takes_masks[0] else "plain"

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def score(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        progress: Progress = SILENT,
        label: str = "scoring",
    ) -> list[Likelihood]:
        """Log-likelihood of each (context, continuation), both non-empty token ids, in order.

        Raises:
            ValueError: a continuation does not fit into `max_length`; names the first.
            EvaluationError: the model cannot be run in the way asked for.
        """
        chooser = chooser_of(self.model)
        if chooser is not None and self.way == "phased":
            raise EvaluationError(
                "way: experts that a prompt chooses cannot be scored phased, only in simulated "
                "generation; use auto."
            )
        if self.leaving is not None and self.way == "phased":
            raise EvaluationError(
                "way: early exits are scored in one pass, which gives what decoding would; use "
                "auto, not phased."
            )
        sequences = [self._truncated(index, *request) for index, request in enumerate(requests)]
        if chooser is not None:
            sequences = [replace(sequence, apart=True) for sequence in sequences]
        results: dict[int, Likelihood] = {}
        with progress.task(label, len(requests)) as step, evaluating(self.model):
            for found in self._run(sequences, chooser):
                results.update(found)
                for _ in found:
                    step()
        return [results[index] for index in range(len(requests))]

    def _truncated(self, index: int, context: Sequence[int], continuation: Sequence[int]) -> Scored:
        if not context or not 0 < len(continuation) <= self.max_length:
            raise ValueError(
                f"request {index}: context has {len(context)} tokens and continuation "
                f"{len(continuation)}, but they must have at least 1 and the latter at most "
                f"{self.max_length}"
            )
        whole = (*context, *continuation)[-(self.max_length + 1) :]
        return Scored(index, whole[:-1], tuple(continuation))

    def _run(
        self, sequences: Sequence[Scored], chooser: Chooser | None
    ) -> Iterator[dict[int, Likelihood]]:
        if self.way == "phased":
            yield from phased(self.model, sequences)
            return
        rows = self._rows(sequences)
        head = self.model.get_output_embeddings()
        vocabulary = getattr(head, "out_features", None) or self._config.vocab_size
        for batch in batches(rows, self.batch_tokens, max(1, LOGIT_ELEMENTS // vocabulary)):
            layout = Layout.of(batch)
            with _simulating(chooser, batch, layout):
                yield self._scored(batch, layout)

    def _scored(self, batch: Sequence[Row], layout: Layout) -> dict[int, Likelihood]:
        inputs = self._inputs(batch, layout)
        if self.leaving is None:
            logits = self._logits(layout, inputs)
            return likelihoods(logits, logits.argmax(-1), layout)
        with self.leaving.watching(layout.position) as states:
            logits = self._logits(layout, inputs)
        asked = None
        if self.leaving.decide == "input":
            *asked, slot = layout.by_input()
            layout = replace(layout, slot=slot)
        left = self.leaving.leave(states, logits, asked)
        return likelihoods(left.logits, left.tokens, layout, left.depths)

    def _rows(self, sequences: Sequence[Scored]) -> list[Row]:
        if self.way == "plain" or (self.way == "auto" and not self.takes_masks(0)):
            return chain_rows(sequences)
        rows: list[Row] = []
        for row in packed_rows(sequences, min(ROW_TOKENS, self.batch_tokens)):
            window = self._window()
            windowed = window is not None and row.depth > window and not row.is_chain
            if windowed and self.way == "auto" and not self.takes_masks(window or 0):
                rows.extend(chain_rows([sequence for sequence, _ in row.wanted]))
            else:
                rows.append(row)
        return rows

    def _inputs(self, rows: Sequence[Row], layout: Layout) -> dict[str, Any]:
        """Model inputs for a batch: a tree mask only if some row branches."""
        device, width = self.device, layout.tokens.shape[1]
        inputs: dict[str, Any] = {"input_ids": layout.tokens.to(device), "use_cache": False}
        if all(row.is_chain for row in rows):
            if not layout.real.all():
                inputs["attention_mask"] = layout.real.to(device)
            return inputs
        inputs["position_ids"] = layout.depths.to(device)
        inputs["attention_mask"] = self._tree_mask(rows, width)
        return inputs

    def _tree_mask(self, rows: Sequence[Row], width: int) -> Tensor | dict[str, Tensor]:
        """Additive masks in the model's dtype; one per layer type where layers differ in window."""
        window = self._window()
        if window is None or max(row.depth for row in rows) <= window:
            return self._additive(attention(rows, width))
        windowed = self._additive(attention(rows, width, window))
        if "full_attention" not in (getattr(self._config, "layer_types", None) or ()):
            return windowed
        return {
            "full_attention": self._additive(attention(rows, width)),
            "sliding_attention": windowed,
        }

    def _additive(self, seen: Tensor) -> Tensor:
        dtype = self.model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        return mask.to(self.device)

    def _window(self) -> int | None:
        """The shortest span at which some layer stops seeing everything before it."""
        names = ("sliding_window", "attention_chunk_size", "window_size")
        spans = [getattr(self._config, name, None) for name in names]
        return min((span for span in spans if isinstance(span, int) and span > 0), default=None)

    def _logits(self, layout: Layout, inputs: dict[str, Any]) -> Tensor:
        """[distinct scored positions, vocabulary] with whatever the family does after the head."""
        position = layout.position.to(self.device)
        with torch.inference_mode(), head_sees(self.model, position) as seen:
            logits = self.model(**inputs).logits
        return logits[0] if seen else logits.flatten(0, 1)[position]

    def takes_masks(self, window: int) -> bool:
        """Whether the model gives the plain log-probabilities under a tree mask.

        Tried once on two sequences that share a prefix a little longer than `window`, because
        nothing a model declares tells: ALiBi, recurrent and fused-attention models ignore or
        refuse such masks, and a plan may have replaced the modules.
        """
        if window not in self._takes_masks:
            self._takes_masks[window] = self._try_masks(window)
        return self._takes_masks[window]

    def _try_masks(self, window: int) -> bool:
        if window + 3 * PROBE_TAIL > self.max_length:
            return False
        size = min(self._config.vocab_size, 1000)
        ids = [(7 * i * i + 3 * i + 1) % size for i in range(window + 3 * PROBE_TAIL)]
        prefix, first = tuple(ids[: -2 * PROBE_TAIL]), tuple(ids[-2 * PROBE_TAIL : -PROBE_TAIL])
        second = tuple((token + 1) % size for token in reversed(first))
        pair = [
            Scored(0, prefix + first, first),
            Scored(1, prefix + second, second),
        ]
        rows = packed_rows(pair, 4 * len(ids))
        with evaluating(self.model):
            plain = self._probed(chain_rows(pair))
            try:
                packed = self._probed(rows)
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
                return False
        error = max((packed[i] - plain[i]).abs().mean().item() for i in (0, 1))
        contrast = (plain[0] - plain[1]).abs().mean().item()
        # Rounding differs with the order of summation: some ulps of the dtype, relative to how
        # much the logits of the two sequences differ; a mask not honoured gives errors of order 1.
        return error <= min(0.3, 1e4 * torch.finfo(self.model.dtype).eps) * contrast

    def _probed(self, rows: Sequence[Row]) -> dict[int, Tensor]:
        layout = Layout.of(rows)
        logits = self._logits(layout, self._inputs(rows, layout)).float().log_softmax(-1)
        found, start = {}, 0
        for sequence in layout.owner:
            stop = start + len(sequence.targets)
            found[sequence.index] = logits[layout.slot[start:stop].to(logits.device)]
            start = stop
        return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode (no dropout) inside the block, as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _simulating(
    chooser: Chooser | None, rows: Sequence[Row], layout: Layout
) -> AbstractContextManager[None]:
    return nullcontext() if chooser is None else guided(Simulated(chooser, rows, layout))
