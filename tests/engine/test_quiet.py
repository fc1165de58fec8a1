"""Torch's threads stay away while the calling thread works alone."""

import threading
from typing import Any

import pytest
import torch
from tests import families

from skimp.engine import Engine
from skimp.engine.quiet import alone
from skimp.methods.exit.probe import Probes
from skimp.methods.exit.section import read_section
from skimp.methods.exit.values import shapes
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


def test_the_number_of_threads_comes_back() -> None:
    torch.set_num_threads(2)
    try:
        with alone(torch.device("cpu")):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), alone(torch.device("cpu")):
            raise KeyError
        assert torch.get_num_threads() == 2
        with alone(torch.device("cuda")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_other_threads_keep_theirs() -> None:
    seen, inside, done = [], threading.Event(), threading.Event()

    def other() -> None:
        seen.append(torch.get_num_threads())
        inside.wait(10)
        seen.append(torch.get_num_threads())
        done.set()

    torch.set_num_threads(2)
    try:
        thread = threading.Thread(target=other)
        thread.start()
        while not seen:
            pass
        with alone(torch.device("cpu")):
            inside.set()
            done.wait(10)
        thread.join()
        assert seen == [2, 2]
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("screen", "threads"), [(3, 1), (0, 2)])
def test_probes_of_few_rows_work_alone(
    screen: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else OpenMP's second thread stands in the way of the kernels' for the rest of the step."""
    model = families.build("llama")
    anatomy, random = Anatomy.of(model), torch.Generator().manual_seed(0)
    section = {"probe": [0, 1], "candidates": 8, "screen": screen, "threshold": float("inf")}
    values = {
        name: torch.randn(shape, generator=random)
        if not name.endswith("tokens")
        else torch.randint(anatomy.vocabulary, shape, generator=random).int().sort(-1).values
        for name, shape in shapes(read_section(section), anatomy).items()
    }
    plan = Plan.empty(anatomy).with_section("exit", section).with_values(values)
    seen, look = list[int](), Probes.look

    def watched(*args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return look(*args)

    monkeypatch.setattr(Probes, "look", watched)
    torch.set_num_threads(2)
    try:
        engine = Engine(model, plan)
        logits, state = engine.prefill([[1, 2, 3]], 4)
        engine.decode(state, logits.argmax(-1))
    finally:
        torch.set_num_threads(1)
    assert seen == [threads] * 2
