"""Fit and judge plans, here or in several processes: one unit of work, one code path.

A worker loads the model by its source and reads the search's texts from the state folder; it gets a
plan's file and gives plain numbers. So the same function serves in this process, in processes of
this machine, and on a Ray cluster that shares the folder.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skimp.calibration.text import Calibration
from skimp.errors import SkimpError
from skimp.finder.judge import Judge, fit
from skimp.finder.texts import Texts, Windows
from skimp.plan import Plan

Sums = list[list[float]]
_TEXTS = "texts.safetensors"


@dataclass(frozen=True)
class Job:
    """A plan to fit (`asked`), where to write it fitted (`fitted`)."""

    asked: Path
    fitted: Path


@dataclass(frozen=True)
class Site:
    """What a worker needs to begin: the model's source, and the folder with the texts."""

    source: str
    dtype: str
    device: str
    threads: int
    folder: Path


Do = Callable[[Job], Sums]


def make(model: nn.Module, texts: Texts) -> Do:
    """The unit of work, on a model that is at hand."""
    judge = Judge(model, texts.judging)

    def do(job: Job) -> Sums:
        if not job.fitted.exists():
            fit(model, Plan.read(job.asked), texts.fitting).write(job.fitted)
        return judge(Plan.read(job.fitted)).tolist()

    return do


@contextmanager
def workers(
    number: int, site: Site, here: Callable[[], Do], ray: str | None = None
) -> Iterator[Callable[[Sequence[Job]], Iterator[Sums]]]:
    """Yield a function that does jobs in order: here, in processes, or on a Ray cluster.

    Args:
        number: of processes; 1: this one alone.
        here: makes the unit of work for this process.
        ray: address of a cluster, or "auto".

    Raises:
        SkimpError: Ray is asked for and not installed, or cannot be reached.
    """
    with ExitStack() as stack:

        def start() -> Any:
            pool = _ray_pool(number, site, ray) if ray else _pool(number, site)
            stack.callback(pool.join)
            stack.callback(pool.terminate)
            return pool

        # Both are made at the first job: until then the machine is the search's.
        pool, own = cache(start), cache(here)

        def do(jobs: Sequence[Job]) -> Iterator[Sums]:
            # One job alone is done here: a worker would have a part of the threads only.
            if ray is None and (number == 1 or len(jobs) == 1):
                return map(own(), jobs) if jobs else iter(())
            return pool().imap(_work, jobs) if jobs else iter(())

        yield do


def _pool(number: int, site: Site) -> Any:
    import multiprocessing

    return multiprocessing.get_context("spawn").Pool(number, _begin, (site,))


def _ray_pool(number: int, site: Site, address: str) -> Any:
    try:
        from ray.util.multiprocessing import Pool
    except ImportError:
        raise SkimpError("--ray: Ray is not installed; pip install 'skimp[ray]'.") from None
    try:
        return Pool(number, _begin, (site,), ray_address=address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SkimpError(f"--ray: no cluster answers at {address} ({error}).") from None


_DO: list[Do] = []
"""What this worker process does; a process works for one search only."""


def _begin(site: Site) -> None:
    import signal

    import skimp

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the search's to answer
    torch.set_num_threads(site.threads)
    dtype: Any = site.dtype if site.dtype == "auto" else getattr(torch, site.dtype)
    loaded = skimp.load(site.source, dtype=dtype, device=site.device)
    _DO[:] = [make(loaded.model, read_texts(site.folder))]


def _work(job: Job) -> Sums:
    return _DO[0](job)


def write_texts(folder: Path, texts: Texts) -> None:
    """Put the texts where workers find them."""
    from safetensors.torch import save_file

    held = {
        name: tensor
        for part, windows in (("choosing", texts.choosing), ("judging", texts.judging))
        for name, tensor in (
            (f"{part}.ids", windows.ids.contiguous()),
            (f"{part}.owners", windows.owners),
            (f"{part}.prompt", torch.tensor(windows.prompt)),
        )
    }
    fitting = texts.fitting
    held |= {f"fitting.{n:06d}": each.clone() for n, each in enumerate(fitting.documents)}
    words = {"source": fitting.source, "seed": str(fitting.seed)}
    scratch = folder / f".{_TEXTS}"
    save_file(held, scratch, metadata=words)
    scratch.replace(folder / _TEXTS)


def has_texts(folder: Path) -> bool:
    """Whether the texts of a search are there."""
    return (folder / _TEXTS).exists()


def read_texts(folder: Path) -> Texts:
    """The inverse of `write_texts`."""
    from safetensors import safe_open

    with safe_open(folder / _TEXTS, "pt") as file:
        words = file.metadata()
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    documents = tuple(held[name] for name in sorted(held) if name.startswith("fitting."))
    calibration = Calibration(
        documents, (words["source"],) * len(documents), words["source"], int(words["seed"])
    )
    choosing, judging = (
        Windows(held[f"{part}.ids"], held[f"{part}.owners"], int(held[f"{part}.prompt"]))
        for part in ("choosing", "judging")
    )
    return Texts(calibration, choosing, judging)
