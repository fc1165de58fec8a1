"""How much CPU time programs that are not ours took while engines were timed."""

import time

import psutil


class Strangers:
    """From its making to `cores`: what the whole machine was busy with, less our own share."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """(clock, busy CPU time of the machine, CPU time of this process), in s."""
        times = psutil.cpu_times()._asdict()
        # Time that a hypervisor gave to other guests is busy too; guests' is counted in `user`.
        kinds = ("user", "nice", "system", "irq", "softirq", "steal")
        busy = sum(times.get(kind, 0.0) for kind in kinds)
        return time.perf_counter(), busy, time.process_time()

    def cores(self, engines: float) -> float | None:
        """Cores that others kept busy on average; `engines` is the CPU time of the engines in s.

        None where the system's figures cannot be right, as in some sandboxes.
        """
        clock, busy, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        # Busy time counts in ticks: the less was measured, the less it can tell.
        if clock <= 0 or busy < 0.9 * (engines + own):
            return None
        return max(0.0, busy - engines - own) / clock
