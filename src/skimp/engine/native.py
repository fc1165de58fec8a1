"""Decoding by the native program: no Python and no torch between two operations of a step."""

import threading
import time
from typing import Any

import torch
from torch import Tensor

from skimp import kernels
from skimp.engine.experts import Carried
from skimp.engine.program.bind import Program, fits
from skimp.engine.program.capture import capture
from skimp.engine.program.listing import Listing, NotLowered
from skimp.engine.program.lower import lower
from skimp.engine.program.used import Used
from skimp.engine.runners import SlotRunner
from skimp.engine.slots import SlotShape
from skimp.engine.state import State
from skimp.kernels.library import at_hand, library
from skimp.kernels.tuning import settle_threads

# Reading a step off the model's code takes about so many seconds. Once as much was spent on
# decoding without it, it pays: at worst a request takes twice what hindsight would have.
_PATIENCE = 0.3


class NativeRunner(SlotRunner):
    """Prefills as its parent does and decodes natively once that pays.

    Attributes:
        refused: why a batch is decoded by torch after all, by batch size.
    """

    gathers = False  # the program reads rows where they lie at the rate of a run

    def __init__(self, model: Any, shapes: dict[int, SlotShape]) -> None:
        super().__init__(model, shapes)
        self.refused: dict[int, str] = {}
        self._programs: dict[int, Program] = {}
        self._spent: dict[int, float] = {}
        self._lock = threading.Lock()  # a program has one arena
        self._tensors = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }

    def decode(self, state: State, tokens: Tensor) -> Tensor:
        program = self.program(state.batch)
        if program is not None:
            with self._lock:
                return program.step(
                    state.cache, state.pads, state.length, tokens, _used(state.experts)
                )
        start = time.perf_counter()
        logits = super().decode(state, tokens)
        self._spent[state.batch] = self._spent.get(state.batch, 0) + time.perf_counter() - start
        return logits

    def program(self, batch: int, *, now: bool = False) -> Program | None:
        """The native step for a batch, if it is at hand or pays by now (`now`: in any case)."""
        if batch in self._programs or batch in self.refused:
            return self._programs.get(batch)
        if not now and (self._spent.get(batch, 0) < _PATIENCE or not self._settled()):
            return None
        with self._lock:
            try:
                listing, native = self._listing(batch), library()
                assert native is not None
                self._programs[batch] = Program(
                    listing, self._tensors, native.handle, settle_threads()
                )
            except NotLowered as error:
                self.refused[batch] = str(error)
        return self._programs.get(batch)

    def _settled(self) -> bool:
        """Whether it is known if there is a library; until then torch decodes."""
        return at_hand() is not None or not kernels.being_made()

    def _listing(self, batch: int) -> Listing:
        if library() is None:
            raise NotLowered(f"the native library is missing: {kernels.why_not()}")
        if not fits(batch):
            raise NotLowered("a batch this large, for which torch's matrix products are quicker")
        try:
            return lower(capture(self.model, self.shapes, batch), batch)
        except NotLowered:
            raise
        except Exception as error:  # the model's own code, which may do anything
            raise NotLowered(f"code that needs values ({type(error).__name__})") from error


def _used(carried: Carried | None) -> dict[int, Used]:
    chosen = {} if carried is None else carried.chosen
    return {
        layer: Used(each.rows, each.mask, each.fill, each.order) for layer, each in chosen.items()
    }


def wanted(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether native decoding is for this device and type of numbers."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
