"""The engine: a planned model that reads prompts and decodes at the speed of its bytes."""

import operator
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skimp.engine import gates, hugging, limits, native, shadow
from skimp.engine.attention import Unsupported
from skimp.engine.compiled import CompiledRunner
from skimp.engine.exits import Exits
from skimp.engine.experts import Carried, Desk
from skimp.engine.generation import Answer, Generation, Request, Timing
from skimp.engine.native import NativeRunner
from skimp.engine.probing import slot_shapes
from skimp.engine.runners import PlainRunner, Runner, SlotRunner, pad_left
from skimp.engine.sampling import Sampling
from skimp.engine.state import State
from skimp.engine.ways import ASKED, Asked, Way
from skimp.errors import RequestError
from skimp.kernels.native import MOST_ROWS
from skimp.methods.apply import apply
from skimp.methods.exit.section import by_exit
from skimp.methods.experts.section import Experts, by_prompt
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

Prompts = Sequence[Sequence[int]] | Tensor
Decode = Literal["auto", "native", "compiled", "eager"]
_KINDS: dict[str, type[SlotRunner]] = {
    "native": NativeRunner,
    "compiled": CompiledRunner,
    "eager": SlotRunner,
}


def as_lists(prompts: Prompts) -> list[list[int]]:
    """Token ids as plain lists.

    Raises:
        RequestError: they are no lists of whole numbers, for example text.
    """
    try:
        rows: Any = prompts.tolist() if isinstance(prompts, Tensor) else prompts
        return [[operator.index(token) for token in row] for row in rows]
    except TypeError as error:
        raise RequestError(
            "prompts: they are no lists of tokens; give a list of token ids for each prompt, or a "
            "tensor [B, P] of them, and turn text into tokens first."
        ) from error


class Engine:
    """Runs `model` with `plan` on it; the caller's model is not touched.

    The engine shares the weights that the plan keeps. What it leaves out is freed once the caller
    lets go of `model`. Requests are independent: each carries its own :class:`State`, and any
    number of them may be interleaved.

    `decode` says how tokens are decoded: "native" (a C program read off the model's own code; CPUs
    only), "compiled" (torch.compile, CUDA graphs on a GPU), "eager" (torch, one operation at a
    time), or "auto", what suits the device. `experts` says how torch decodes where prompts choose
    neurons: by their weights "in place", by copies "gathered" into buffers, or "auto", whichever is
    measured to be quicker; the C program reads them in place.

    Attributes:
        model: the planned model the engine runs.
        anatomy: of the planned model.
        plain: why the model runs on transformers' own cache instead of the engine's, or None.
        exits: what lets tokens leave early, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan | None = None,
        *,
        decode: Decode = "auto",
        experts: Asked = "auto",
    ) -> None:
        if decode != "auto" and decode not in _KINDS:
            raise RequestError(
                f"decode: {decode!r} is no way of decoding; use auto, {', '.join(_KINDS)}."
            )
        if experts not in ASKED:
            raise RequestError(
                f"experts: {experts!r} is no way to read weights; use {', '.join(ASKED)}."
            )
        self.model: Any = shadow.shadow(model)
        if plan is not None:
            apply(self.model, plan)
        section = by_prompt(plan)
        self._desk = Desk(self.model, section, experts) if section else None
        self.anatomy = Anatomy.of(self.model)
        self.exits = _exits(self.model, self.anatomy, plan)
        places = self.exits.places if self.exits else ()
        self.plain: str | None = None
        self.runner: Runner
        own = shadow.attention_names(self.model)
        try:
            shadow.use_slots(self.model)
            shapes = slot_shapes(self.model, self.anatomy)
            self.runner = self._kind(decode)(self.model, shapes, places)
        except Unsupported as error:
            shadow.restore(own)
            self.plain = str(error)
            self.runner = PlainRunner(self.model, self.anatomy)

    def _kind(self, decode: Decode) -> type[SlotRunner]:
        if decode == "native" and self.device.type != "cpu":
            raise RequestError(
                f"decode: 'native' is for CPUs and the model is on {self.device}; use auto."
            )
        copies = self._desk is not None and self._desk.asked == "gathered"
        if decode == "native" and copies:
            raise RequestError(
                "experts: 'gathered' is for decoding by torch, and decode is 'native'; use auto."
            )
        if decode == "compiled" and self.exits is not None:
            raise RequestError(
                "decode: 'compiled' is one graph, which no token can leave; use auto or eager."
            )
        if decode != "auto":
            return _KINDS[decode]
        if native.wanted(self.device, self.dtype) and not copies:
            return NativeRunner
        compiles = self.device.type == "cuda" and self.exits is None
        return CompiledRunner if compiles else SlotRunner

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def warm_up(self, batch: int = 1) -> str | None:
        """Make the fast decode step for a batch now; why there is none, or None if there is."""
        if isinstance(self.runner, NativeRunner):
            shape = self.runner.shape(batch)
            self.runner.program(shape, now=True)
            for queries in range(2, self._columns(batch) + 1):
                self.runner.program(self.runner.shape(batch, queries), now=True)
            return self.runner.refused.get(shape)
        return self.plain or "decoding runs on torch for this device and type of numbers"

    def _columns(self, batch: int) -> int:
        """The most columns that a native step may have to run at once."""
        if self.exits is None or not self.exits.exact:
            return 1
        return min(self.exits.section.max_pending + 1, MOST_ROWS // batch)

    def path(self, batch: int = 1) -> str:
        """What decodes a warmed-up batch: "native", "compiled", "torch" or "transformers"."""
        if self.plain is not None:
            return "transformers"
        if isinstance(self.runner, CompiledRunner):
            return "compiled"
        return "torch" if self.warm_up(batch) else "native"

    def experts_way(self, batch: int = 1) -> Way | None:
        """How torch reads the weights of a batch's experts, with what was measured; None before a
        first answer, or where there is nothing to choose."""
        return None if self._desk is None else self._desk.ways.get(batch)

    @torch.inference_mode()
    def prefill(
        self, prompts: Prompts, new: int, *, chunk: int | None = None
    ) -> tuple[Tensor, State]:
        """Read prompts and make room for `new` more tokens each.

        Args:
            prompts: token ids, of any lengths; shorter ones are padded on the left.
            new: tokens that may follow, by `decode` or `extend`.
            chunk: read at most this many columns at a time (less memory for long prompts).

        Returns:
            Logits [B, V] of the token after each prompt, and the request's state.

        Raises:
            RequestError: an empty prompt, one that does not fit into the model's context, or a
                batch that does not fit into memory.
        """
        rows = as_lists(prompts)
        limits.check_prompts(rows, new, self.anatomy)
        tokens, pads = pad_left(rows, pad=0)
        capacity = tokens.shape[1] + new
        limits.check_memory(self.runner, len(rows), capacity, self.device)
        state = State(
            cache=self.runner.new_cache(len(rows), capacity),
            pads=pads.to(self.device),
            padded=bool(pads.any()),
            capacity=capacity,
        )
        return self.extend(state, tokens.to(self.device), chunk=chunk), state

    @torch.inference_mode()
    def extend(self, state: State, tokens: Tensor, *, chunk: int | None = None) -> Tensor:
        """Read more tokens [B, Q] of every sequence; logits [B, V] after the last."""
        if chunk is not None and chunk < 1:
            raise RequestError(f"chunk: {chunk} columns cannot be read; give at least 1, or None.")
        limits.check_tokens(state, tokens, self.anatomy.vocabulary, dimensions=2)
        limits.check_room(state, tokens.shape[1])
        self.settle(state)
        logits = None
        for part in tokens.split(chunk or tokens.shape[1], dim=1):
            with self._desk.reading(state, part.shape[1]) if self._desk else nullcontext():
                logits = self.runner.prefill(state, part)
            state.length += part.shape[1]
        if self.exits is not None:
            self.exits.read_whole(state)
        assert logits is not None
        return logits

    @torch.inference_mode()
    def decode(self, state: State, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token a sequence, `tokens` [B]."""
        limits.check_tokens(state, tokens, self.anatomy.vocabulary, dimensions=1)
        limits.check_room(state, 1)
        recent = self._desk.due(state) if self._desk else None
        if recent is not None:
            return self._refresh(state, recent, tokens)
        with self._desk.decoding(state, tokens, self.runner) if self._desk else nullcontext():
            if self.exits is None:
                logits = self.runner.decode(state, tokens)
            else:
                logits = self.exits.decode(self.runner, state, tokens)
        state.length += 1
        return logits

    @torch.inference_mode()
    def settle(self, state: State) -> None:
        """Do what early exits have put off, so that the cache is whole; else nothing."""
        if self.exits is None or state.exits is None or not state.exits.pending:
            return
        with self._desk.answering(state, self.runner) if self._desk else nullcontext():
            self.exits.settle(self.runner, state)

    @property
    def experts(self) -> Experts | None:
        """The plan's section on neurons that prompts choose, or None."""
        return None if self._desk is None else self._desk.section

    def together(self, parts: Sequence[Carried]) -> Carried:
        """What sequences that were read apart, each with its experts, are decoded with as one."""
        assert self._desk is not None
        return self._desk.together(parts)

    def _refresh(self, state: State, recent: Tensor, tokens: Tensor) -> Tensor:
        """Read the last tokens again with all neurons, which also mends their cache entries.

        Where entries have made way since, only the new tokens are read so.
        """
        self.settle(state)
        if not self.runner.can_rewind(state):
            return self.extend(state, tokens[:, None])
        state.length -= recent.shape[1]
        return self.extend(state, torch.cat([recent, tokens[:, None]], 1))

    def start(self, request: Request, timing: Timing | None = None) -> Generation:
        """Serve a request step by step: iterate over what this returns."""
        return Generation(self, replace(request, prompts=as_lists(request.prompts)), timing)

    def generate(
        self,
        prompts: Prompts,
        new: int,
        *,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        tokenizer: Any = None,
    ) -> list[Answer]:
        """Continue prompts by at most `new` tokens each; a full context ends a text early.

        Args:
            prompts: token ids.
            sampling: greedy if None.
            stop: strings that end a text; they need the tokenizer.
            tokenizer: turns the answers' tokens into text.
        """
        request = Request(
            as_lists(prompts),
            new,
            sampling=sampling or Sampling(),
            ends=self.ends,
            stop=stop,
            tokenizer=tokenizer,
            context=self.anatomy.context_length,
        )
        generation = self.start(request)
        for _ in generation:
            pass
        return generation.answers

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text, by the model's generation config (else its config)."""
        config = getattr(self.model, "generation_config", None) or self.model.config
        ends = getattr(config, "eos_token_id", None)
        if ends is None:
            return frozenset()
        return frozenset([ends] if isinstance(ends, int) else ends)

    @property
    def custom_generate(self) -> Any:
        """For transformers: `model.generate(..., custom_generate=engine.custom_generate)`."""
        return hugging.custom_generate(self)


def _exits(model: nn.Module, anatomy: Anatomy, plan: Plan | None) -> Exits | None:
    section = by_exit(plan)
    if plan is None or section is None:
        return None
    gates.put_gates(model, anatomy)
    return Exits(model, anatomy, section, plan.values)
