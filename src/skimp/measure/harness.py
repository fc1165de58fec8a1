"""The harness's view of a live model. Imports lm_eval: import this module late."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import StoppingCriteria, StoppingCriteriaList

from skimp.errors import EvaluationError
from skimp.measure.depths import Leaving
from skimp.measure.scorer import Scorer, Way, evaluating
from skimp.progress import SILENT, Progress

NEW_TOKENS = 256  # the harness's own default for tasks that set none


class LiveModel(TemplateLM):
    """A transformers model and its tokenizer as a harness model; tokenizes exactly as `hf` does.

    Contexts and continuations are encoded by the harness's `_encode_pair`, special tokens follow
    the tokenizer's default, and an empty context becomes the BOS (else EOS) token.

    Attributes:
        left: with `leaving` the depths of each request's scored tokens, by the id of the request.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_tokens: int = 2048,
        way: Way = "auto",
        seed: int = 0,
        leaving: Leaving | None = None,
        progress: Progress = SILENT,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = resolve_max_length(model.config, tokenizer)
        self.scorer = Scorer(
            model,
            max_length=self.max_length,
            batch_tokens=batch_tokens,
            way=way,
            leaving=leaving,
        )
        self.left: dict[int, tuple[int, ...]] = {}
        self._depths: list[tuple[int, ...]] = []
        self._asked: Sequence[Instance] = ()
        self._seed = seed
        self._progress = progress
        self._prefix = tokenizer.decode(self.prefix_token_id)
        self._encoded: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if first is None else first

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        if add_special_tokens is None and has_bos_prefix(string, self._prefix):
            add_special_tokens = False
        if add_special_tokens is not None:
            return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        # The choices of an item repeat its context.
        if string not in self._encoded:
            self._encoded[string] = self.tokenizer.encode(string)
        return self._encoded[string]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        for request in requests:
            context, continuation = _parts(request)
            if not context and not self.tokenizer.encode(continuation, add_special_tokens=False):
                raise EvaluationError(_nothing_to_score(request))
        self._asked = requests
        found = super().loglikelihood(requests, disable_tqdm=True)
        self.left.update(zip(map(id, requests), self._depths, strict=True))
        self._encoded.clear()
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for asked, (pair, context, continuation) in zip(self._asked, requests, strict=True):
            where = f"task {asked.task_name}, item {asked.doc_id} (from 0)"
            if not context or not continuation:
                raise EvaluationError(
                    f"{where}: the continuation {pair[1]!r} after {pair[0][-40:]!r} has no tokens "
                    "of its own to score; give the choice some text."
                )
            if len(continuation) > self.max_length:
                raise EvaluationError(
                    f"{where}: a continuation of {len(continuation)} tokens does not fit into the "
                    f"model's {self.max_length}: {pair[1][:40]!r}; shorten it."
                )
        pairs = [(context, continuation) for _, context, continuation in requests]
        scored = self.scorer.score(pairs, self._progress)
        self._depths = [found.depths for found in scored]
        return [(found.logprob, found.greedy) for found in scored]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        pairs: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                pairs.append(make_disjoint_window(window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, found in zip(owners, self.scorer.score(pairs, self._progress), strict=True):
            totals[owner] += found.logprob
            before = self.left.get(id(requests[owner]), ())
            self.left[id(requests[owner])] = before + found.depths
        self._encoded.clear()
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        texts: dict[int, str] = {}
        with self._progress.task("generating", len(requests)) as step, evaluating(self.model):
            for numbers, settings in self._alike(requests):
                contexts = [requests[number].args[0] for number in numbers]
                for number, text in zip(numbers, self._generated(contexts, settings), strict=True):
                    texts[number] = text
                    step()
        return [texts[number] for number in range(len(requests))]

    def _alike(self, requests: list[Instance]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Batches of request numbers with the same settings and similar length, longest first."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(_parts(request)[1]), []).append(number)
        for group in groups.values():
            settings = _parts(requests[group[0]])[1]
            new = normalize_gen_kwargs(settings, NEW_TOKENS).get("max_gen_toks", NEW_TOKENS)
            lengths = {n: len(self.tok_encode(requests[n].args[0])) for n in group}
            ordered = sorted(group, key=lambda n: -lengths[n])
            while ordered:
                size = max(1, self.scorer.batch_tokens // (lengths[ordered[0]] + new))
                yield ordered[:size], settings
                ordered = ordered[size:]

    def _generated(self, contexts: list[str], settings: dict[str, Any]) -> list[str]:
        options: dict[str, Any] = dict(normalize_gen_kwargs(settings, NEW_TOKENS))
        end = self.tokenizer.decode(self.eot_token_id)
        stops = handle_stop_sequences(options.pop("until"), eos=end)
        new, sampled = options.pop("max_gen_toks"), options.pop("do_sample")
        if not sampled:
            options.pop("temperature", None)
        if new >= self.max_length:
            raise EvaluationError(
                f"max_gen_toks: {new} new tokens leave no room for a prompt in the model's "
                f"{self.max_length}; set fewer in the task's generation_kwargs."
            )
        ids, mask = self._left_padded(contexts, self.max_length - new)
        stop = StoppingCriteriaList([_Stops(self.tokenizer, stops, ids.shape[1])])
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(self._seed)
            out = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=new,
                do_sample=sampled,
                stopping_criteria=stop,
                pad_token_id=self._padding(),
                **options,
            )
        texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [postprocess_generated_text(text, stops, None) for text in texts]

    def _left_padded(self, contexts: list[str], room: int) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = [
            self.tok_encode(context)[-room:] or [self.prefix_token_id] for context in contexts
        ]
        width = max(map(len, encoded))
        ids = torch.full((len(encoded), width), self._padding(), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        return ids.to(self.scorer.device), mask.to(self.scorer.device)

    def _padding(self) -> int:
        found = self.tokenizer.pad_token_id
        return self.eot_token_id if found is None else found


def _parts(request: Instance) -> tuple[Any, ...]:
    """(context, continuation or generation settings)."""
    return request.arguments


class _Stops(StoppingCriteria):
    """Each sequence ends when one of the stop strings stands in its new text."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt: int) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._prompt = prompt
        # A stop string may straddle tokens of any length, but hardly more of them than it has
        # characters (bytes, for byte-level tokens).
        self._tail = max((len(stop.encode()) for stop in self._stops), default=1) + 1

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        tail = input_ids[:, self._prompt :][:, -self._tail :]
        texts = self._tokenizer.batch_decode(tail)
        done = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _nothing_to_score(request: Instance) -> str:
    return (
        f"task {request.task_name}: item {request.doc_id} has neither a context nor a "
        "continuation to score; give it some text."
    )
