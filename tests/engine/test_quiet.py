"""Torch's threads stay away while the calling thread works alone."""

import threading

import pytest
import torch

from skimp.engine.quiet import alone


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
