"""Decoding by the native program: no Python and no torch between two operations of a step."""

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from skimp import kernels
from skimp.engine.experts import Carried
from skimp.engine.gates import Projection, Stretch
from skimp.engine.program.bind import Bound, Program, SlotTable, fits
from skimp.engine.program.capture import Shape, capture
from skimp.engine.program.listing import Listing, NotLowered
from skimp.engine.program.lower import lower
from skimp.engine.program.used import Used
from skimp.engine.runners import SlotRunner
from skimp.engine.slots import SlotShape
from skimp.engine.state import State
from skimp.kernels.library import at_hand, library
from skimp.kernels.tuning import settle_threads
from skimp.methods.experts.select import Chosen

# Reading a step off the model's code takes about so many seconds. Once as much was spent on
# decoding without it, it pays: at worst a request takes twice what hindsight would have.
_PATIENCE = 0.3


class NativeRunner(SlotRunner):
    """Prefills as its parent does and decodes natively once that pays.

    Attributes:
        refused: why steps of a shape are done by torch after all.
    """

    gathers = False  # the program reads rows where they lie at the rate of a run

    def __init__(
        self, model: Any, shapes: dict[int, SlotShape], places: Collection[int] = ()
    ) -> None:
        super().__init__(model, shapes, places)
        self.refused: dict[Shape, str] = {}
        self._programs: dict[Shape, Program] = {}
        self._spent: dict[Shape, float] = {}
        self._lock = threading.Lock()  # a program has one arena
        self._tensors = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }

    def decode(self, state: State, tokens: Tensor) -> Tensor:
        program = self.program(Shape(state.batch))
        if program is not None:
            with self._lock:
                return program.step(_bound(state, state.length + 1), tokens[:, None])
        with self._timed(Shape(state.batch)):
            return super().decode(state, tokens)

    def walk(self, state: State, stretch: Stretch, tokens: Tensor, end: int) -> Tensor:
        shape = self.shape(state.batch, tokens.shape[1])
        # A slot whose oldest entries make way cannot hold several new ones at once.
        holds = shape.queries == 1 or end - state.base <= _table(state).smallest
        program = self.program(shape) if holds else None
        if program is not None:
            last = None if stretch.head else stretch.last
            bound = _bound(state, end, shape.queries)
            with self._lock:
                return program.walk(bound, tokens, stretch.hidden, stretch.first, last)
        with self._timed(shape):
            return super().walk(state, stretch, tokens, end)

    def project(self, state: State, projection: Projection, end: int) -> None:
        shape = Shape(state.batch, projects=projection.attentive)
        program = self.program(shape)
        if program is not None:
            with self._lock:
                return program.project(_bound(state, end), projection.hidden, projection.first)
        with self._timed(shape):
            return super().project(state, projection, end)

    def shape(self, batch: int, queries: int = 1) -> Shape:
        """The step over `queries` columns of a batch that can be left where the runner's can."""
        return Shape(batch, queries, self.places)

    def program(self, shape: Shape, *, now: bool = False) -> Program | None:
        """The native step of a shape, if it is at hand or pays by now (`now`: in any case)."""
        if shape in self._programs or shape in self.refused:
            return self._programs.get(shape)
        if not now and (self._spent.get(shape, 0) < _PATIENCE or not self._settled()):
            return None
        with self._lock:
            try:
                listing, native = self._listing(shape), library()
                assert native is not None
                self._programs[shape] = Program(
                    listing, self._tensors, native.handle, settle_threads()
                )
            except NotLowered as error:
                self.refused[shape] = str(error)
        return self._programs.get(shape)

    def _settled(self) -> bool:
        """Whether it is known if there is a library; until then torch decodes."""
        return at_hand() is not None or not kernels.being_made()

    @contextmanager
    def _timed(self, shape: Shape) -> Iterator[None]:
        """Adds to what was spent on steps of a shape without a program."""
        start = time.perf_counter()
        yield
        self._spent[shape] = self._spent.get(shape, 0) + time.perf_counter() - start

    def _listing(self, shape: Shape) -> Listing:
        if library() is None:
            raise NotLowered(f"the native library is missing: {kernels.why_not()}")
        if not fits(shape.batch * shape.queries):
            raise NotLowered("a batch this large, for which torch's matrix products are quicker")
        try:
            return lower(capture(self.model, self.shapes, shape))
        except NotLowered:
            raise
        except Exception as error:  # the model's own code, which may do anything
            raise NotLowered(f"code that needs values ({type(error).__name__})") from error


def _table(state: State) -> SlotTable:
    if state.table is None:
        state.table = SlotTable(state.cache)
    return state.table


def _bound(state: State, end: int, queries: int = 1) -> Bound:
    """The request's part in a step over the `queries` columns before `end`."""
    return Bound(_table(state), state.pads, end - queries, _used(state.experts, queries))


def _used(carried: Carried | None, queries: int) -> dict[int, Used]:
    chosen = {} if carried is None else carried.chosen
    return {layer: _of_columns(each, queries) for layer, each in chosen.items()}


def _of_columns(chosen: Chosen, queries: int) -> Used:
    """A row of mask and fill for every column of a sequence."""
    mask, fill = (
        each if each is None or queries == 1 else each.repeat_interleave(queries, 0)
        for each in (chosen.mask, chosen.fill)
    )
    return Used(chosen.rows, mask, fill, chosen.order)


def wanted(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether native decoding is for this device and type of numbers."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
