"""What this machine is and what it reaches: the yardstick beside every measured number.

A rate is the best of several tries of several plain ways, because anything else running on the
machine can only slow a try down. So it is a floor of what the machine can do, and a share of it
that comes out above 1 says that the yardstick was taken on a busy machine.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

_READ_BYTES = 512 << 20
_BUDGET = {"bandwidth": 1.0, "matmul": 0.4, "launch": 0.1}  # s


@dataclass(frozen=True)
class Machine:
    """`bandwidth`: bytes/s read, `matmul`: FLOP/s at `dtype`, `launch`: s for the least op."""

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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


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
) -> Machine:
    """Measure the machine in about two seconds, or read what was measured before.

    Kept in `machine.json` in $SKIMP_CACHE (else ~/.cache/skimp) by device, threads, dtype and torch
    version. `fresh` measures again and keeps the better rates. `threads` None: torch's current
    number, which is restored afterwards.
    """
    device = torch.device(device)
    threads = threads or torch.get_num_threads()
    name = str(dtype).removeprefix("torch.")
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    key = " | ".join((shown, _cpu_model(), f"{threads} threads", name, torch.__version__))
    known = _read().get(key)
    if known is not None and not fresh:
        return known
    with _threads(threads), torch.inference_mode():
        rates = {
            "bandwidth": _bandwidth(device),
            "matmul": _matmul(device, dtype),
            "launch": _launch(device),
        }
    if known is not None:
        rates["bandwidth"] = max(rates["bandwidth"], known.bandwidth)
        rates["matmul"] = max(rates["matmul"], known.matmul)
        rates["launch"] = min(rates["launch"], known.launch)
    machine = Machine(
        device=shown,
        cpu=_cpu_model(),
        cores=psutil.cpu_count(logical=True) or 1,
        threads=threads,
        memory=psutil.virtual_memory().total,
        torch=torch.__version__,
        dtype=name,
        **rates,
    )
    _write({**_read(), key: machine})
    return machine


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize()


def _bandwidth(device: torch.device) -> float:
    """Bytes/s that reductions read from a buffer far larger than the processor's caches.

    No single kernel is fastest everywhere: a float sum waits for its additions on one machine, an
    integer maximum is not vectorised on the next. A copy moves every byte twice, in and out.
    """
    size = _READ_BYTES if device.type == "cpu" else 4 * _READ_BYTES
    if device.type == "cpu":
        size = min(size, psutil.virtual_memory().available // 4)
    words = torch.ones(size // 4, device=device)
    longs, rows = words.view(torch.int64), words.view(-1, 1 << 16)
    half = len(words) // 2
    ways: list[Callable[[], Any]] = [
        words.sum,
        lambda: rows.amax(1),
        longs.max,
        lambda: words[:half].copy_(words[half:]),
    ]
    return words.nbytes / _best(ways, device, _BUDGET["bandwidth"])


def _matmul(device: torch.device, dtype: torch.dtype) -> float:
    side = 1024 if device.type == "cpu" else 8192
    left, right = (torch.ones(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best([lambda: left @ right], device, _BUDGET["matmul"])


def _launch(device: torch.device) -> float:
    """Seconds that one operation on one number takes, in a row of them."""
    number = torch.ones((), device=device)
    count = 200

    def row() -> Tensor:
        for _ in range(count):
            number.neg()
        return number

    return _best([row], device, _BUDGET["launch"]) / count


def _best(ways: list[Callable[[], Any]], device: torch.device, budget: float) -> float:
    """The least time of any way; all are tried in turn until the budget (s) is spent."""
    for way in ways:
        way()
    synchronize(device)
    best, end = float("inf"), time.perf_counter() + budget
    while best == float("inf") or time.perf_counter() < end:
        for way in ways:
            start = time.perf_counter()
            way()
            synchronize(device)
            best = min(best, time.perf_counter() - start)
    return best


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _file() -> Path:
    folder = os.environ.get("SKIMP_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "skimp") / "machine.json"


def _read() -> dict[str, Machine]:
    """What was measured before; a missing or damaged file only means measuring again."""
    try:
        known = json.loads(_file().read_text())
        machines = {key: Machine(**values) for key, values in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {key: machine for key, machine in machines.items() if _sane(machine)}


def _sane(machine: Machine) -> bool:
    rates = (machine.bandwidth, machine.matmul, machine.launch)
    return all(isinstance(rate, float) and 0 < rate < float("inf") for rate in rates)


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
        pass  # a read-only home costs two seconds a run, not the run
