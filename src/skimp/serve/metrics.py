"""What Prometheus may read of a server: counters, histograms, and the scheduler's own figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from skimp.serve.jobs import Stats

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_EACH = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metrics:
    """One server's metrics, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, stats: Callable[[], Stats | None]) -> None:
        """`stats`: reads the scheduler's figures; None as long as there is no scheduler."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_Scheduling(stats))
        self._requests = Counter(
            "skimp_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "skimp_request_seconds",
            "From a request's first byte to its answer's last.",
            ["route"],
            registry=registry,
        )
        self._read = Counter(
            "skimp_prompt_tokens",
            "Prompt tokens taken on.",
            ["side"],
            registry=registry,
        )
        self._emitted = Counter(
            "skimp_generated_tokens", "Tokens sent in answers.", ["side"], registry=registry
        )
        self._first = Histogram(
            "skimp_time_to_first_token_seconds",
            "From a request's arrival to the first token of an answer.",
            ["side"],
            buckets=_FIRST,
            registry=registry,
        )
        self._each = Histogram(
            "skimp_time_per_token_seconds",
            "Between two tokens of an answer.",
            ["side"],
            buckets=_EACH,
            registry=registry,
        )
        self._depth = Summary(
            "skimp_exit_depth_layers",
            "Layers after which a token was decided; sum over count is the mean exit depth.",
            ["side"],
            registry=registry,
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def read(self, side: str, tokens: int) -> None:
        """Prompts were taken on."""
        self._read.labels(side).inc(tokens)

    def token(self, side: str, gap_s: float | None, first_s: float, depth: int | None) -> None:
        """A token came; `gap_s` after the one before it, None if it was the first."""
        self._emitted.labels(side).inc()
        if gap_s is None:
            self._first.labels(side).observe(first_s)
        else:
            self._each.labels(side).observe(gap_s)
        if depth is not None:
            self._depth.labels(side).observe(depth)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Scheduling(Collector):
    """The scheduler's figures, read when somebody asks."""

    def __init__(self, stats: Callable[[], Stats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        if stats is None:
            return
        gauges = {
            "waiting": (stats.waiting, "Answers in the queue."),
            "running": (stats.running, "Answers being written."),
            "kv_columns": (stats.columns, "Columns of KV cache held, over all sequences."),
        }
        for name, (value, words) in gauges.items():
            yield GaugeMetricFamily(f"skimp_{name}", words, value)
        seconds = {
            "queue": (stats.queue_s, "Seconds that answers waited before their prompt was read."),
            "prefill": (stats.prefill_s, "Seconds of reading prompts."),
            "decode": (stats.decode_s, "Seconds of decoding."),
        }
        for name, (value, words) in seconds.items():
            yield CounterMetricFamily(f"skimp_{name}_seconds", words, value)
        outcomes = CounterMetricFamily("skimp_answers", "Answers by their end.", labels=["end"])
        for end in ("finished", "cancelled", "timed_out", "failed", "refused"):
            outcomes.add_metric([end], getattr(stats, end))
        yield outcomes
        steps = CounterMetricFamily(
            "skimp_decode_steps", "Decode steps by how many took part.", labels=["batch"]
        )
        for batch, count in sorted(stats.steps.items()):
            steps.add_metric([str(batch)], count)
        yield steps
