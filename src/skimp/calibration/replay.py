"""Run a model layer by layer, so that work before a change is never done twice.

Documents are padded on the right: under a causal mask real tokens never see what follows them, so
no attention mask is needed and pad positions are simply not scored. The layers run are the modules
that stand in the model at construction; what surgery does *inside* a layer is seen, carving is not
to happen meanwhile.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skimp.models.anatomy import KINDS, Kind
from skimp.models.families import Branch, Family
from skimp.models.reading import family_of
from skimp.models.some_logits import last_only
from skimp.models.surgery import Surgery


@dataclass(frozen=True)
class Batch:
    """Token ids [B, S], padded on the right, and which of them are real [B, S]."""

    ids: Tensor
    real: Tensor

    @property
    def tokens(self) -> int:
        return int(self.real.sum())


def pack(documents: Sequence[Tensor], *, tokens: int = 2048) -> list[Batch]:
    """Batches of similar length with at most `tokens` entries each; order by length."""
    batches: list[Batch] = []
    rows: list[Tensor] = []
    for document in sorted(documents, key=len):
        if rows and (len(rows) + 1) * len(document) > tokens:
            batches.append(_pad(rows))
            rows = []
        rows.append(document)
    if rows:
        batches.append(_pad(rows))
    return batches


def _pad(rows: list[Tensor]) -> Batch:
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        real[index, : len(row)] = True
    return Batch(ids, real)


class _StandIn(nn.Module):
    """Stands in a layer's place, and answers for the layer where the model asks it for more."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.__dict__["layer"] = layer
        self.outputs = outputs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def pack(self, hidden: Tensor) -> Any:
        return hidden if self.outputs == 1 else (hidden, *[None] * (self.outputs - 1))


class _Recorder(_StandIn):
    """Passes the hidden state on and keeps the other arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = kwargs.pop("hidden_states", None)
        if hidden is None:
            hidden, args = args[0], args[1:]
        self.__dict__["call"] = (args, kwargs)
        self.__dict__["hidden"] = hidden
        return self.pack(hidden)


class _Emitter(_StandIn):
    """Emits a given hidden state, whatever enters."""

    def __init__(self, hidden: Tensor, layer: nn.Module, outputs: int) -> None:
        super().__init__(layer, outputs)
        self.__dict__["hidden"] = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.pack(self.hidden)


class BranchTrace(NamedTuple):
    """What a branch met, all [B, S, d]: residual state before it, normalised input, contribution.

    The contribution is what is added to the residual stream, post-norm included.
    """

    state: Tensor
    input: Tensor
    output: Tensor


class _Watch:
    """Hooks on one branch of one layer."""

    def __init__(self, layer: nn.Module, branch: Branch) -> None:
        first = layer.get_submodule(branch.modules[0])
        entry = layer.get_submodule((*branch.before, *branch.modules)[0])
        last = layer.get_submodule((*branch.modules, *branch.after)[-1])
        self.state = self.input = self.output = torch.empty(0)
        self.arguments: tuple[tuple, dict[str, Any]] = ((), {})
        self._handles = [
            entry.register_forward_pre_hook(self._enter, with_kwargs=True),
            first.register_forward_pre_hook(self._read, with_kwargs=True),
            last.register_forward_hook(self._write),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.state = _hidden(args, kwargs)

    def _read(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.input = _hidden(args, kwargs)
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.arguments = (args if "hidden_states" in kwargs else args[1:], others)

    def _write(self, _: nn.Module, __: Any, output: Any) -> None:
        # Some families add to this tensor in place afterwards.
        self.output = (output[0] if isinstance(output, tuple) else output).clone()


def _hidden(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


class Replay:
    """A model taken apart into entry, layers and head, over fixed batches.

    `layers` are the decoder blocks in order; `entry[b]` is the hidden state [B, S, d] that enters
    the first of them in batch b.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self.model: Any = model
        self.family: Family = family_of(model)
        parent, _, name = self.family.layers.rpartition(".")
        self._parent, self._name = model.get_submodule(parent), name
        self.layers: list[nn.Module] = list(model.get_submodule(self.family.layers).children())
        self.device = next(model.parameters()).device
        self.batches = [Batch(b.ids.to(self.device), b.real.to(self.device)) for b in batches]
        recorded = [self._record(batch) for batch in self.batches]
        self.entry: list[Tensor] = [entry for entry, _ in recorded]
        self._calls = [calls for _, calls in recorded]
        self._arguments: dict[tuple[int, Kind, int], tuple[tuple, dict[str, Any]]] = {}

    @torch.no_grad()
    def layer(self, index: int, hidden: Tensor, batch: int) -> Tensor:
        """Hidden state [B, S, d] after layer `index`, from the one before it."""
        return self.differentiable(index, hidden, batch)

    def differentiable(self, index: int, hidden: Tensor, batch: int) -> Tensor:
        """The same, through which gradients flow where they are enabled."""
        args, kwargs = self._calls[batch][index]
        output = self.layers[index](hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def additive(self, index: int, hidden: Tensor, batch: int) -> bool:
        """Whether layer `index` is just its branches added to the residual stream in turn.

        Then they can be run one by one (see `branch`); scaled or parallel branches cannot.
        """
        if self.family.parallel:
            return False
        traces, after = self.watch(index, KINDS, hidden, batch)
        apart = hidden
        for kind in KINDS:
            apart = apart + self.branch(index, kind, apart, batch).output
        return traces["ffn"].output.shape == apart.shape and torch.equal(apart, after)

    def run(self, hidden: Tensor, batch: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Hidden state after layers `start` to `stop` (exclusive; default: all)."""
        for index in range(start, len(self.layers) if stop is None else stop):
            hidden = self.layer(index, hidden, batch)
        return hidden

    def run_all(
        self, states: Sequence[Tensor], start: int = 0, stop: int | None = None
    ) -> list[Tensor]:
        """`run` of every batch, `states` in their order; each layer is done with before the next.

        So weights that are read from a file are read once, however many batches there are.
        """
        states = list(states)
        for index in range(start, len(self.layers) if stop is None else stop):
            states = [self.layer(index, hidden, batch) for batch, hidden in enumerate(states)]
        return states

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Tensor:
        """Final norm, head and whatever the family does to logits: [n, d] to [n, V]."""
        return self.differentiable_logits(rows)

    def differentiable_logits(self, rows: Tensor) -> Tensor:
        """The same, through which gradients flow where they are enabled."""
        emit = _Emitter(rows[None], self.layers[0], self.family.layer_outputs)
        ids = torch.zeros(1, rows.shape[0], dtype=torch.long, device=self.device)
        with self._in_place_of_layers([emit]):
            return self.model(input_ids=ids, use_cache=False).logits[0]

    @torch.no_grad()
    def watch(
        self, index: int, kinds: Iterable[Kind], hidden: Tensor, batch: int
    ) -> tuple[dict[Kind, BranchTrace], Tensor]:
        """Run layer `index` and report what the branches in `kinds` read and wrote.

        Returns the traces and the hidden state [B, S, d] after the layer.
        """
        layer = self.layers[index]
        watches: dict[Kind, _Watch] = {
            kind: _Watch(layer, getattr(self.family, kind)) for kind in kinds
        }
        try:
            result = self.layer(index, hidden, batch)
        finally:
            for each in watches.values():
                each.remove()
        traces: dict[Kind, BranchTrace] = {}
        for kind, each in watches.items():
            self._arguments[index, kind, batch] = each.arguments
            starts = kind == "attention" or self.family.parallel
            state = hidden if starts else each.state.view_as(hidden)
            trace = (state, each.input.view_as(hidden), each.output.view_as(hidden))
            traces[kind] = BranchTrace(*trace)
        return traces, result

    @torch.no_grad()
    def normalise(self, index: int, kind: Kind, state: Tensor) -> Tensor:
        """What a branch reads [B, S, d] at the residual state [B, S, d]."""
        row: Branch = getattr(self.family, kind)
        for name in row.before:
            state = self.layers[index].get_submodule(name)(state)
        return state

    @torch.no_grad()
    def branch(self, index: int, kind: Kind, state: Tensor, batch: int) -> BranchTrace:
        """Run one branch alone on the residual state [B, S, d], its norms included.

        Only where `additive` says that branches can be run apart, and after `watch` has seen the
        layer in this batch, since that is when the branch's other arguments become known.
        """
        row: Branch = getattr(self.family, kind)
        layer = self.layers[index]
        hidden = entered = self.normalise(index, kind, state)
        args, kwargs = self._arguments[index, kind, batch]
        for name in row.modules:
            hidden = layer.get_submodule(name)(hidden, *args, **kwargs)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            args, kwargs = (), {}
        for name in row.after:
            hidden = layer.get_submodule(name)(hidden)
        return BranchTrace(state, entered, hidden)

    @torch.no_grad()
    def _record(self, batch: Batch) -> tuple[Tensor, list[tuple[tuple, dict[str, Any]]]]:
        outputs = self.family.layer_outputs
        recorders = [_Recorder(layer, outputs) for layer in self.layers]
        with self._in_place_of_layers(recorders):
            last = last_only(self.model, batch.ids.shape[1], self.device)
            self.model(input_ids=batch.ids, use_cache=False, **last)
        return recorders[0].hidden, [recorder.call for recorder in recorders]

    @contextmanager
    def _in_place_of_layers(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        surgery = Surgery()
        try:
            surgery.set(self._parent, self._name, nn.ModuleList(modules))
            if len(modules) < len(self.layers):
                surgery.set(self.model.config, "num_hidden_layers", len(modules))
            yield
        finally:
            surgery.undo()
