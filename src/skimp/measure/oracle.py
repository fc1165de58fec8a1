"""How long a plan will take, foretold from what it costs and what the machine reaches.

Parts of a model run one after the other, so their times add up; within a part reading and
multiplying overlap, so it takes the longer of the two (the roofline: Williams et al. 2009). On top
comes what no roofline knows, the :class:`Overheads`: launches, small operations, kernels that stay
behind. They are solved for from timings of a few plans (:func:`measure_overheads`); until then
few are assumed.
"""

from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields, replace
from itertools import product
from math import isfinite, prod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from skimp.errors import SkimpError
from skimp.measure import cost
from skimp.measure.machine import Machine
from skimp.models.anatomy import Anatomy, Sublayer
from skimp.models.carve import KEEP
from skimp.workload import Workload

Pass = Literal["prefill", "decode"]

# The fewest launches of eager torch. A pass: gather the embedding, norm, head, pick. A sublayer:
# norm, products in, what lies between, product out, sum. A fill: product in, product out and sum.
_LEAST_LAUNCHES = {"step": 4, "sublayer": 5, "fill": 2}
# Of the pull towards the assumed overheads, beside timings whose relative errors count 1 each.
_PULL = 1e-6


@dataclass(frozen=True)
class Overheads:
    """What one pass takes beyond its roofline.

    `step`: s per pass. `sublayer`: s per kept sublayer. `fill`: s per fill that computes anything.
    `activation`: s per number that a product reads or writes for a token. `weights`, `kv`: by what
    share the products with weights, and what is done on the KV cache, take longer than their
    rooflines.

    Raises:
        SkimpError: one of them is negative or not finite.
    """

    step: float = 0.0
    sublayer: float = 0.0
    fill: float = 0.0
    activation: float = 0.0
    weights: float = 0.0
    kv: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (isfinite(value) and value >= 0):
                raise SkimpError(f"overheads: {name} is {value}; give a number of at least 0.")

    @classmethod
    def least(cls, machine: Machine) -> "Overheads":
        """A cautious guess, where nothing was timed: the fewest launches, and nothing else.

        So what is won by leaving out launches is not overstated. On a GPU not even those count,
        because they overlap with the work.
        """
        if machine.device != "cpu":
            return cls()
        return cls(**{name: count * machine.launch for name, count in _LEAST_LAUNCHES.items()})


@dataclass(frozen=True)
class Parts:
    """Where the seconds of a pass go; they add up to `seconds`.

    `bytes`: reading weights and cache. `flops`: what multiplying takes longer than reading, part by
    part. `overhead`: everything else.
    """

    bytes: float
    flops: float
    overhead: float

    @property
    def seconds(self) -> float:
        return self.bytes + self.flops + self.overhead


@dataclass(frozen=True)
class Prediction:
    """A prefill of the whole batch and its mean decode step, in s, and where the time goes."""

    prefill: Parts
    decode: Parts

    @property
    def prefill_s(self) -> float:
        return self.prefill.seconds

    @property
    def tpot_s(self) -> float:
        return self.decode.seconds

    def as_dict(self) -> dict[str, Any]:
        return {"prefill_s": self.prefill_s, "tpot_s": self.tpot_s, **asdict(self)}


@dataclass(frozen=True)
class Timing:
    """A measured pass: median seconds of a prefill or of a decode step at the workload."""

    anatomy: Anatomy
    workload: Workload
    seconds: float


def predict(
    anatomy: Anatomy,
    workload: Workload,
    machine: Machine,
    *,
    prefill: Overheads | None = None,
    decode: Overheads | None = None,
) -> Prediction:
    """Foretell prefill and decode time of a model, dense or planned.

    Args:
        anatomy: the model's; `methods.registry.reduce` makes a plan's from the dense one.
        workload: what is asked of it.
        machine: the yardstick, measured at the model's dtype.
        prefill: overheads of a prefill; None: :meth:`Overheads.least`.
        decode: overheads of a decode step; None: likewise.

    Raises:
        SkimpError: the machine has a rate that is not positive, or was measured at a dtype of
            another size than the model's.
    """
    found = {
        name: _parts(_Roof.of(anatomy, workload, machine, name), overheads, machine)
        for name, overheads in (("prefill", prefill), ("decode", decode))
    }
    if anatomy.refresh:
        found["decode"] = _with_refresh(found["decode"], anatomy, workload, machine, prefill)
    return Prediction(**found)


def _with_refresh(
    step: Parts,
    anatomy: Anatomy,
    workload: Workload,
    machine: Machine,
    prefill: Overheads | None,
) -> Parts:
    """The mean step where every so many tokens are read again by one pass, as prompts are.

    The bytes of that pass are in the step's already; its products and overheads come on top.
    """
    tokens = anatomy.refresh + 1
    again = replace(workload, prompt=tokens, new=1)
    more = _parts(_Roof.of(anatomy, again, machine, "prefill"), prefill, machine)
    return Parts(
        bytes=step.bytes,
        flops=step.flops + more.flops / tokens,
        overhead=step.overhead + more.overhead / tokens,
    )


def measure_overheads(
    timings: Iterable[Timing],
    machine: Machine,
    kind: Pass,
    *,
    assumed: Overheads | None = None,
) -> Overheads:
    """Solve for the overheads that explain measured times best, none of them below 0.

    Least squares of the relative errors, so that short and long passes count alike. What the
    timings do not tell apart stays at what was assumed (None: :meth:`Overheads.least`): a fill's
    overhead, say, where no timed plan has one. To tell all apart, time plans with several numbers
    of sublayers and of fills, at several contexts and batches.

    Raises:
        SkimpError: no timings, or one that is not positive; and as `predict`.
    """
    known = list(timings)
    if not known:
        raise SkimpError("timings: there are none; time at least one plan.")
    for timing in known:
        if not (isfinite(timing.seconds) and timing.seconds > 0):
            raise SkimpError(f"timings: {timing.seconds} s is no time; give positive seconds.")
    roofs = [_Roof.of(timing.anatomy, timing.workload, machine, kind) for timing in known]
    took = np.array([timing.seconds for timing in known])
    rows = np.array([roof.features() for roof in roofs]) / took[:, None]
    left = 1 - np.array([roof.seconds for roof in roofs]) / took
    start = np.array(astuple(assumed or Overheads.least(machine)))
    # Scaled to columns of length 1, so that the pull does not depend on units.
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1.0
    pull = np.sqrt(_PULL) * np.eye(len(start))
    solved = _non_negative(
        np.vstack([rows / scale, pull]), np.concatenate([left, pull @ (start * scale)])
    )
    return Overheads(*(float(value) for value in solved / scale))


@dataclass(frozen=True)
class _Roof:
    """The rooflines of a pass and what its overheads are counted by; times in s."""

    weight_bytes: float
    weight_flops: float
    kv_bytes: float
    kv_flops: float
    sublayers: int
    fills: int
    activations: float

    @classmethod
    def of(cls, anatomy: Anatomy, workload: Workload, machine: Machine, kind: str) -> "_Roof":
        _check(machine, anatomy)
        spent = (cost.prefill_cost if kind == "prefill" else cost.decode_cost)(anatomy, workload)
        tokens = workload.batch * (workload.prompt if kind == "prefill" else 1)
        kinds = spent.kinds()
        kv = kinds.pop("kv")
        reading, beyond = 0.0, 0.0
        for tally in kinds.values():
            read = tally.bytes / machine.bandwidth
            reading += read
            beyond += max(0.0, _multiplying(tally, anatomy.element_bytes, machine) - read)
        cached = kv.bytes / machine.bandwidth
        every = [s for layer in anatomy.layers for s in (layer.attention, layer.ffn)]
        return cls(
            weight_bytes=reading,
            weight_flops=beyond,
            kv_bytes=cached,
            kv_flops=max(0.0, kv.flops / machine.matmul - cached),
            sublayers=sum(1 for sublayer in every if sublayer.state == KEEP),
            fills=sum(1 for sublayer in every if sublayer.state != KEEP and sublayer.parts),
            activations=tokens * sum(_activations(sublayer) for sublayer in every),
        )

    @property
    def seconds(self) -> float:
        return self.weight_bytes + self.weight_flops + self.kv_bytes + self.kv_flops

    def features(self) -> tuple[float, ...]:
        """What each overhead is multiplied by, in the order of its fields."""
        by_name = {
            "step": 1.0,
            "sublayer": float(self.sublayers),
            "fill": float(self.fills),
            "activation": self.activations,
            "weights": self.weight_bytes + self.weight_flops,
            "kv": self.kv_bytes + self.kv_flops,
        }
        return tuple(by_name[field.name] for field in fields(Overheads))


def _parts(roof: _Roof, overheads: Overheads | None, machine: Machine) -> Parts:
    constants = astuple(overheads or Overheads.least(machine))
    return Parts(
        bytes=roof.weight_bytes + roof.kv_bytes,
        flops=roof.weight_flops + roof.kv_flops,
        overhead=sum(a * b for a, b in zip(constants, roof.features(), strict=True)),
    )


def _multiplying(tally: cost.Tally, element_bytes: int, machine: Machine) -> float:
    """Seconds for the products of one kind of part.

    How fast they go depends on how many rows each weight is multiplied with: the tokens of the
    pass, but of a mixture of experts only those that picked the expert. The tally has it: two FLOPs
    a weight and row.
    """
    if not tally.flops:
        return 0.0
    rows = tally.flops / (2 * tally.bytes / element_bytes)
    return tally.flops / machine.matmul_at(rows)


def _activations(sublayer: Sublayer) -> float:
    """About how many numbers a sublayer's products read and write for one token.

    A part's shape is that of its largest matrix; smaller ones that it holds besides are taken to be
    as wide in proportion to their weights.
    """
    total = 0.0
    for part in sublayer.parts:
        if len(part.shape) > 1:
            *experts, rows, columns = part.shape
            picked = sublayer.active_share * prod(experts) if experts else 1.0
            total += picked * (rows + columns) * part.parameters / prod(part.shape)
    return total


def _check(machine: Machine, anatomy: Anatomy) -> None:
    rates = {name: getattr(machine, name) for name in ("bandwidth", "matmul", "launch")}
    rates |= {f"products at {rows} rows": rate for rows, rate in machine.products}
    for name, rate in rates.items():
        if not (isfinite(rate) and rate > 0):
            raise SkimpError(
                f"machine: {name} is {rate}, which no machine has; measure it with `skimp machine`."
            )
    dtype = getattr(torch, machine.dtype, None)
    if not isinstance(dtype, torch.dtype) or dtype.itemsize != anatomy.element_bytes:
        raise SkimpError(
            f"machine: it was measured at {machine.dtype}, but the model's numbers have "
            f"{anatomy.element_bytes} bytes; measure it at the model's dtype."
        )


def _non_negative(rows: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x ≥ 0 that minimises |rows·x − wanted|.

    Where x is positive it solves the problem without bounds; so with as few unknowns as here, every
    choice of those that are positive is tried.
    """
    best, found = float("inf"), np.zeros(rows.shape[1])
    for chosen in product((False, True), repeat=rows.shape[1]):
        mask = np.array(chosen)
        tried = np.zeros(rows.shape[1])
        if any(chosen):
            tried[mask] = np.linalg.lstsq(rows[:, mask], wanted, rcond=None)[0]
        error = float(np.linalg.norm(rows @ tried - wanted))
        if (tried >= 0).all() and error < best:
            best, found = error, tried
    return found
