"""What this machine is and what it reaches: the yardstick beside every measured number.

A rate is the best of several tries of several plain ways, because anything else running on the
machine can only slow a try down. So it is a floor of what the machine can do, and a share of it
that comes out above 1 says that the yardstick was taken on a busy machine. A profile that shows
signs of that is measured again whenever it is asked for, until it is steady.
"""

import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any

import psutil
import torch

from skimp.measure import probes, rates
from skimp.measure.probes import synchronize
from skimp.measure.rates import Rate, Rates
from skimp.models.cache import root
from skimp.progress import SILENT, Progress

__all__ = ["Machine", "identity", "profile", "synchronize"]

_TRIES, _TRIES_AGAIN = 3, 2
_RATES = ("bandwidth", "matmul", "launch")
_STEADY = 0.1  # how far the try that confirms a rate may stay behind it, as a share


@dataclass(frozen=True)
class Machine:
    """`bandwidth`: bytes/s read, `matmul`: FLOP/s at `dtype`, `launch`: s for the least op.

    `products`: (rows, FLOP/s) of products with so many rows and weights that no cache holds.
    `spread`: for each of the three rates, how much better the best try was, as a share, than the
    next best one on a machine left alone, or None if there was none. `busy`: share of all cores
    that other programs took in the quietest measurement. `kernels`: instruction set of the native
    kernels that took part, or None. `measured`: when last, UTC.
    """

    device: str
    cpu: str
    cores: int
    threads: int
    memory: int
    torch: str
    dtype: str
    bandwidth: float
    matmul: float
    launch: float
    products: tuple[tuple[int, float], ...] = ()
    spread: Mapping[str, float | None] = field(default_factory=dict)
    busy: float = 0.0
    kernels: str | None = None
    measured: str = ""

    @property
    def steady(self) -> bool:
        """Whether every rate was confirmed while the machine was left alone."""
        gaps = [self.spread.get(name) for name in _RATES]
        return all(gap is not None and gap <= _STEADY for gap in gaps)

    def matmul_at(self, rows: float) -> float:
        """FLOP/s of a product with `rows` rows (the tokens of a pass), weights read from memory."""
        return rates.rate_at(self.products, rows) if self.products else self.matmul

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "steady": self.steady}


def identity() -> dict[str, Any]:
    """The `machine` block of a result file: what was run on, nothing measured, nobody named."""
    block: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=True) or 1,
        "threads": torch.get_num_threads(),
        "memory": psutil.virtual_memory().total,
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
    }
    if torch.cuda.is_available():
        block["gpu"] = torch.cuda.get_device_name()
    return block


def profile(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    *,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> Machine:
    """Measure the machine in a few seconds, or read what was measured before.

    Kept in `machine.json` in the cache folder by device, threads, dtype, torch version and native
    kernels. What is not steady yet is measured again, more briefly. `fresh` measures again in any
    case. Either keeps the better rates. `threads` None: torch's current number, which is restored
    afterwards.
    """
    device = torch.device(device)
    threads = threads or torch.get_num_threads()
    name = str(dtype).removeprefix("torch.")
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    isa = probes.native_state()["isa"] if device.type == "cpu" else None
    words = (shown, _cpu_model(), f"{threads} threads", name, torch.__version__, isa or "torch")
    key = " | ".join(words)
    known = _read().get(key)
    if known is not None and known.steady and not fresh:
        return known
    tries = _TRIES if known is None or fresh else _TRIES_AGAIN
    with progress.task(f"measuring the machine, {name}, {threads} threads", tries) as step:
        found = probes.measure(device, dtype, threads, tries=tries, step=step)
    if known is not None:
        found = found.joined(_rates_of(known))
    machine = Machine(
        device=shown,
        cpu=_cpu_model(),
        cores=psutil.cpu_count(logical=True) or 1,
        threads=threads,
        memory=psutil.virtual_memory().total,
        torch=torch.__version__,
        dtype=name,
        bandwidth=found.read.best,
        matmul=found.matmul.best,
        launch=1 / found.launch.best,
        products=tuple(sorted(found.products.items())),
        spread=dict(zip(_RATES, (found.read.gap, found.matmul.gap, found.launch.gap), strict=True)),
        busy=found.busy,
        kernels=isa,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _write({**_read(), key: machine})
    return machine


def _rates_of(machine: Machine) -> Rates:
    """What `machine` was made from."""
    best = {"bandwidth": machine.bandwidth, "matmul": machine.matmul, "launch": 1 / machine.launch}
    gaps = {name: machine.spread[name] for name in best}
    read, matmul, launch = (
        Rate(rate, 0.0 if (gap := gaps[name]) is None else rate / (1 + gap))
        for name, rate in best.items()
    )
    return Rates(read, matmul, launch, dict(machine.products), machine.busy)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _file() -> Path:
    return root() / "machine.json"


def _read() -> dict[str, Machine]:
    """What was measured before; what is missing or damaged is only measured again."""
    try:
        entries = json.loads(_file().read_text()).items()
    except (OSError, ValueError, AttributeError):
        return {}
    known = {key: _restored(values) for key, values in entries}
    return {key: machine for key, machine in known.items() if machine is not None}


def _restored(values: Any) -> Machine | None:
    """A machine from its entry in the file, or None if that makes no sense."""
    try:
        products = tuple((int(rows), float(rate)) for rows, rate in values["products"])
        machine = Machine(**{**values, "products": products})
        gaps = [machine.spread[name] for name in _RATES]
        shares = (machine.busy, *(gap for gap in gaps if gap is not None))
        speeds = (machine.bandwidth, machine.matmul, machine.launch, *dict(products).values())
        sane = all(isfinite(speed) and speed > 0 for speed in speeds)
        whole = products and all(isfinite(share) and share >= 0 for share in shares)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    return machine if sane and whole else None


def _write(known: dict[str, Machine]) -> None:
    path = _file()
    text = json.dumps({key: asdict(machine) for key, machine in known.items()}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may be reading: replace the file in one step.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError:
        pass  # a read-only home costs a few seconds a run, not the run
