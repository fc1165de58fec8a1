"""One layer of the planned model during a fit, beside what the dense one did there.

Where a layer is just its branches added up, each branch is run once and apart; elsewhere (parallel
or scaled branches) the whole layer is run again after every change.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from skimp.calibration.replay import BranchTrace, Replay
from skimp.methods.moments import Moments
from skimp.models.anatomy import KINDS, Kind

Seen = Sequence[tuple[dict[Kind, BranchTrace], Tensor]]


class Walk:
    """The states of one layer, batch by batch; branches must be passed in running order.

    Args:
        replay: of the model, fills and repairs of earlier layers in place.
        index: the layer.
        states: planned states [B, S, d] that enter it, a batch each.
        seen: traces and output of the dense layer, a batch each.
        apart: whether branches can be run one by one.
    """

    def __init__(
        self, replay: Replay, index: int, states: Sequence[Tensor], seen: Seen, apart: bool
    ) -> None:
        self.replay, self.index = replay, index
        self._entry = list(states)
        self._states = list(states)
        self._seen = seen
        self._apart = apart
        self._traces: list[BranchTrace] = []
        self._entering: list[Tensor] = []

    def fill_moments(self, kind: Kind) -> Moments:
        """Normalised inputs, and what would have to be added in the branch's place."""
        moments = Moments()
        for batch in range(len(self._states)):
            real = self.replay.batches[batch].real
            if self._apart:
                state = self._states[batch]
                entered = self.replay.normalise(self.index, kind, state)
                wanted = _behind(self._seen[batch][0][kind]) - state
            else:
                trace, lacking = self._trace(kind, batch)
                entered, wanted = trace.input, trace.output + lacking
            moments.add(entered[real], wanted[real])
        return moments

    def repair_moments(self, kind: Kind, path: str) -> Moments:
        """What enters the output projection at `path`, and what its output lacks."""
        self._traces, self._entering = [], []
        seen: list[Tensor] = []

        def enter(_: nn.Module, args: tuple) -> None:
            seen[:] = [args[0]]

        module = self.replay.layers[self.index].get_submodule(path)
        handle = module.register_forward_pre_hook(enter)
        moments = Moments()
        try:
            for batch in range(len(self._states)):
                trace, lacking = self._trace(kind, batch)
                real = self.replay.batches[batch].real
                entering = seen[0].view(*real.shape, -1)
                moments.add(entering[real], lacking[real])
                self._traces.append(trace)
                self._entering.append(entering)
        finally:
            handle.remove()
        return moments

    def pass_branch(self, kind: Kind) -> None:
        """Go on behind the branch as it now stands."""
        if self._apart:
            self._states = [
                state + self.replay.branch(self.index, kind, state, batch).output
                for batch, state in enumerate(self._states)
            ]

    def pass_repaired(self, kind: Kind, path: str) -> None:
        """Go on behind a branch whose output projection was just repaired: only that runs again."""
        if self._apart:
            module = self.replay.layers[self.index].get_submodule(path)
            pairs = zip(self._states, self._entering, strict=True)
            self._states = [state + module(entering) for state, entering in pairs]

    def finish(self) -> list[Tensor]:
        """The planned states behind the layer."""
        if self._apart:
            return self._states
        return [self.replay.layer(self.index, s, b) for b, s in enumerate(self._entry)]

    def _trace(self, kind: Kind, batch: int) -> tuple[BranchTrace, Tensor]:
        """The branch at the current state, and what the residual stream lacks behind it."""
        traces, dense_after = self._seen[batch]
        goal = traces[kind]
        if self._apart:
            trace = self.replay.branch(self.index, kind, self._states[batch], batch)
        else:
            found, after = self.replay.watch(self.index, [kind], self._entry[batch], batch)
            trace = found[kind]
            if self.replay.family.parallel and kind == KINDS[-1]:
                # Both branches met one state: what the first made good is not added twice.
                return trace, dense_after - after
        return trace, _behind(goal) - _behind(trace)


def _behind(trace: BranchTrace) -> Tensor:
    """The residual stream behind a branch."""
    return trace.state + trace.output
