"""How rates are taken: the best of ways and tries, on weights, threads and kernels as asked."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skimp.measure import probes
from skimp.measure.rates import Rate, Rates, prefill_rate, rate_at

CPU = torch.device("cpu")
TINY = probes.Effort(buffer=1 << 20, weight=(64, 32), rows=(1, 4, 300), seconds=0.005)

counts = st.dictionaries(st.integers(1, 4096), st.floats(1e6, 1e15), min_size=1, max_size=7)
rows = st.floats(0.1, 1e5)


@given(counts, rows, rows)
def test_more_rows_are_never_slower_a_row_and_never_done_sooner(
    measured: dict[int, float], one: float, other: float
) -> None:
    few, many = sorted((one, other))
    slow, fast = (rate_at(list(measured.items()), n) for n in (few, many))
    assert slow <= fast * (1 + 1e-9)
    assert few / slow <= many / fast * (1 + 1e-9)


@given(counts)
def test_no_rate_comes_out_below_what_was_measured(measured: dict[int, float]) -> None:
    for count, rate in measured.items():
        assert rate_at(list(measured.items()), count) >= rate * (1 - 1e-9)


def test_sound_measurements_are_kept_as_they_are() -> None:
    sound = [(1, 10.0), (4, 39.0), (16, 100.0), (64, 110.0)]
    assert [rate_at(sound, count) for count, _ in sound] == pytest.approx([10, 39, 100, 110])
    assert rate_at(sound, 2) == pytest.approx((10 * 39) ** 0.5)
    assert (rate_at(sound, 0.5), rate_at(sound, 1e6)) == (10, pytest.approx(110))


def test_what_a_disturbance_did_to_one_count_is_undone() -> None:
    assert rate_at([(1, 10.0), (4, 5.0), (16, 50.0)], 4) == pytest.approx(50 / 4)
    assert rate_at([(1, 10.0), (4, 40.0), (16, 20.0)], 16) == 40


def test_the_rate_of_prefills_is_the_best_at_many_rows() -> None:
    assert prefill_rate({1: 9.0, 256: 4.0, 1024: 5.0}) == 5
    assert prefill_rate({1: 1.0, 16: 3.0}) == 3  # so many were not tried


def test_the_best_two_tries_count() -> None:
    found = Rate.of([3.0, 5.0, 1.0, 4.0], quiet=True)
    assert (found.best, found.second) == (5, 4)
    assert found.gap == pytest.approx(0.25)


def test_tries_among_other_programs_confirm_nothing() -> None:
    found = Rate.of([3.0, 5.0, 5.0], quiet=False)
    assert found.best == 5
    assert found.gap is None
    assert found.joined(found).gap is None


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Rate(5, 4), Rate(6, 2), Rate(6, 5)),  # the one confirms the other
        (Rate(5, 4), Rate(9, 8), Rate(9, 8)),
        (Rate(5, 4), Rate(6, 0), Rate(6, 5)),  # reached among others, nearly so alone
        (Rate(5, 0), Rate(6, 2), Rate(6, 2)),  # what was slower among others confirms nothing
        (Rate(5, 0), Rate(6, 0), Rate(6, 0)),
        (Rate(5, 0), Rate(5, 4), Rate(5, 4)),
        (Rate(5, 4), Rate(5, 3), Rate(5, 5)),
    ],
)
def test_two_measurements_confirm_each_other(one: Rate, other: Rate, both: Rate) -> None:
    assert one.joined(other) == other.joined(one) == both


def test_joined_rates_are_the_better_ones() -> None:
    one = Rates(Rate(2, 1), Rate(5, 5), Rate(1, 1), {1: 3.0, 4: 4.0}, 0.5)
    two = Rates(Rate(4, 3), Rate(2, 2), Rate(1, 1), {1: 2.0, 16: 9.0}, 0.1)
    both = one.joined(two)
    assert both == two.joined(one)
    assert (both.read, both.matmul) == (Rate(4, 3), Rate(5, 5))
    assert both.products == {1: 3, 4: 4, 16: 9}
    assert both.busy == 0.1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Time that passes only when told."""
    now = [0.0]
    monkeypatch.setattr(probes, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def pass_(seconds: float) -> None:
        now[0] += seconds

    yield pass_


def way(clock: Callable[[float], None], *seconds: float) -> tuple[Callable[[], None], list[int]]:
    """A way that takes these times in turn, the last one from then on, and counts its calls."""
    calls: list[int] = []

    def run() -> None:
        clock(seconds[min(len(calls), len(seconds) - 1)])
        calls.append(1)

    return run, calls


def test_the_fastest_way_sets_the_rate(clock: Callable[[float], None]) -> None:
    slow, slow_calls = way(clock, 1.0)
    fair, _ = way(clock, 0.25)
    # Slow to warm up, and a little disturbed once more later.
    fast, fast_calls = way(clock, 9.0, 0.2, 0.4, 0.2)
    probe, took = probes._Probe.of([slow, fair, fast], 10, CPU)
    assert took == pytest.approx(0.2)
    before = len(slow_calls), len(fast_calls)
    assert probe.rate(20.0) == pytest.approx(50)
    assert len(slow_calls) == before[0] + 1  # one chance a try
    assert len(fast_calls) > before[1] + 1


def test_a_way_that_was_disturbed_has_a_chance_in_the_next_try(
    clock: Callable[[float], None],
) -> None:
    fair, _ = way(clock, 0.25)
    fast, _ = way(clock, 9.0, 9.0, 9.0, 0.1)
    probe, _ = probes._Probe.of([fair, fast], 1, CPU)
    assert [probe.rate(1.0) for _ in range(2)] == pytest.approx([4, 10])


def test_short_calls_are_repeated_in_one_timing(clock: Callable[[float], None]) -> None:
    short, calls = way(clock, 1e-5)
    probe, _ = probes._Probe.of([short], 1, CPU)
    before = len(calls)
    assert probe.rate(0.0) == pytest.approx(1e5)
    assert len(calls) - before == 100


def test_others_are_what_the_system_did_beyond_this_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marks = iter([(100.0, 50.0, 7.0), (110.0, 66.0, 15.0)])  # wall, everyone, this program
    monkeypatch.setattr(probes._Bystanders, "_marks", staticmethod(lambda: next(marks)))
    monkeypatch.setattr(probes.psutil, "cpu_count", lambda logical: 4)
    assert probes._Bystanders().share() == pytest.approx((16 - 8) / (10 * 4))


def test_idle_time_and_guests_are_nobodys_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times:
        def _asdict(self) -> dict[str, float]:
            return {"user": 3.0, "system": 1.0, "steal": 0.5, "idle": 90, "iowait": 9, "guest": 2}

    monkeypatch.setattr(probes.psutil, "cpu_times", Times)
    assert probes._Bystanders._marks()[1] == 4.5


class Kernels(SimpleNamespace):
    """Kernels that do their work in no time, and write down what they were given."""

    def __init__(self, there: bool = True) -> None:
        super().__init__(there=there, given=[], counts=[5])

    def available(self) -> bool:
        return self.there

    def isa(self) -> str:
        return "none such"

    def why_not(self) -> str:
        return "it is Sunday"

    def threads(self) -> int:
        return self.counts[-1]

    def set_threads(self, count: int) -> None:
        self.counts.append(count)

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        self.given.append((x.shape[0], weight.shape[0], x.dtype, torch.get_num_threads()))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    monkeypatch.setattr(probes, "CPU", TINY)

    def use(found: Any) -> Any:
        monkeypatch.setattr(probes.importlib, "import_module", lambda name: found)
        return found

    return use


def measure(dtype: torch.dtype = torch.float32, threads: int = 1) -> Rates:
    return probes.measure(CPU, dtype, threads, tries=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rates_are_plausible(kernels: Callable[[Any], Any], dtype: torch.dtype) -> None:
    kernels(SimpleNamespace())
    found = measure(dtype)
    assert 1e7 < found.read.best < 1e15
    assert set(found.products) == set(TINY.rows)
    assert all(1e6 < rate < 1e16 for rate in found.products.values())
    assert found.matmul.best == found.products[300]
    assert 1e2 < found.launch.best < 1e9
    assert found.busy >= 0


def test_native_kernels_take_part(kernels: Callable[[Any], Any]) -> None:
    without = (kernels(Kernels(there=False)), measure())
    assert without[0].given == []
    native = kernels(Kernels())
    found = measure()
    assert found.read.best > without[1].read.best  # they take no time at all here
    assert {given[0] for given in native.given} == {1, 4}  # what they are made for
    assert {given[1] for given in native.given} == {64}


def test_native_kernels_have_no_float16(kernels: Callable[[Any], Any]) -> None:
    native = kernels(Kernels())
    measure(torch.float16)
    assert native.given == []


def test_threads_are_set_and_restored_everywhere(kernels: Callable[[Any], Any]) -> None:
    native = kernels(Kernels())
    before = torch.get_num_threads()
    measure(threads=before + 1)
    assert {given[3] for given in native.given} == {before + 1}
    assert native.counts == [5, before + 1, 5]
    assert torch.get_num_threads() == before


def test_threads_are_restored_after_an_error(kernels: Callable[[Any], Any]) -> None:
    class Broken(Kernels):
        def linear(self, x: torch.Tensor, weight: torch.Tensor) -> None:
            raise KeyboardInterrupt

    native = kernels(Broken())
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        measure(threads=before + 1)
    assert native.counts[-1] == 5
    assert torch.get_num_threads() == before


def test_no_matrix_is_used_again_before_all_others(kernels: Callable[[Any], Any]) -> None:
    """One that was used a moment ago would come from a cache, by whichever way it was used."""
    kernels(SimpleNamespace())
    weights = probes._weights(CPU, torch.bfloat16, TINY)
    count = TINY.buffer // (2 * 64 * 32)
    used: list[int] = []

    def watched() -> Iterator[torch.Tensor]:
        for matrix in weights:
            used.append(matrix.data_ptr())
            yield matrix

    supply = watched()
    ways = [*probes._readings(supply), *probes._linear(supply, 4)]
    while len(used) < 3 * count:
        for way in ways:
            way()
    assert len(set(used)) == count
    assert all(len(set(used[n : n + count])) == count for n in range(2 * count))


def test_products_that_would_take_too_long_are_not_tried(
    kernels: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels(SimpleNamespace())
    monkeypatch.setattr(probes, "CPU", replace(TINY, longest=0.0))
    assert set(measure().products) == {1}


@pytest.mark.parametrize(("busy", "confirmed"), [(0.05, True), (0.2, False)])
def test_other_programs_keep_rates_from_being_confirmed(
    kernels: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, busy: float, confirmed: bool
) -> None:
    kernels(SimpleNamespace())
    monkeypatch.setattr(probes._Bystanders, "share", lambda self: busy)
    found = measure()
    assert found.busy == busy
    for rate in (found.read, found.matmul, found.launch):
        assert (rate.second > 0) == confirmed


def test_why_there_are_no_kernels_is_said(
    kernels: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels(Kernels())
    assert probes.native_state() == {"isa": "none such", "why_not": None}
    kernels(Kernels(there=False))
    assert probes.native_state() == {"isa": None, "why_not": "it is Sunday"}

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(probes.importlib, "import_module", missing)
    assert probes.native() is None
    assert probes.native_state()["isa"] is None
    assert "native kernels" in probes.native_state()["why_not"]
