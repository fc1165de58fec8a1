"""The library's file: compiled once however many ask, and done without where it cannot be."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from skimp import kernels
from skimp.kernels import build, library, native
from skimp.kernels.build import BuildError
from skimp.kernels.native import ISAS

# Enough of a library to be loaded, quick to compile.
STUB = """
#pragma GCC visibility push(default)
int skimp_abi(void) { return %d; }
int skimp_isa(int wanted) { return wanted < 0 ? 0 : wanted; }
int skimp_linear(const char *a) { return 0; }
int skimp_neurons(const char *a) { return 0; }
int skimp_attend(const char *a) { return 0; }
int skimp_store(const char *a) { return 0; }
int skimp_norm(const char *a) { return 0; }
int skimp_screen(const char *a) { return 0; }
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not looked for its library yet; the real one is found again after."""
    for name in ("CC", "SKIMP_NATIVE", "SKIMP_ISA"):
        monkeypatch.delenv(name, raising=False)
    library.reload()
    yield
    monkeypatch.undo()
    library.reload()


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small source in place of the real one, and an empty cache."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "kernels.c").write_text(STUB % native._ABI)
    monkeypatch.setattr(build, "FOLDER", folder)
    monkeypatch.setenv("SKIMP_CACHE", str(tmp_path / "cache"))
    try:
        build._compiler()
    except BuildError as error:
        pytest.skip(str(error))
    return folder


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def uses_the_reference() -> bool:
    """Whether a call gives the right result without the library."""
    x, w = torch.ones(1, 3), torch.ones(2, 3)
    right = torch.equal(kernels.linear(x, w), torch.full((1, 2), 3.0))
    return right and not kernels.available() and kernels.isa() is None


def test_the_library_is_compiled_once_and_kept(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    log = script(tmp_path / "log", f'echo "$@" >> {calls}; exec cc "$@"')
    monkeypatch.setenv("CC", str(log))
    first = build.library_file()
    assert first.is_relative_to(tmp_path / "cache" / "kernels") and first.is_file()
    assert build.library_file() == first
    made = [line for line in calls.read_text().splitlines() if "kernels.c" in line]
    assert len(made) == 1
    (stub / "more.h").write_text("/* another source is another library */")
    assert build.library_file() != first


def test_processes_at_once_compile_once(stub: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    slow = script(tmp_path / "slow", f'echo "$@" >> {calls}; sleep 1; exec cc "$@"')
    code = (
        "import sys, pathlib; from skimp.kernels import build;"
        "build.FOLDER = pathlib.Path(sys.argv[1]); print(build.library_file())"
    )
    environment = {"CC": str(slow), "SKIMP_CACHE": str(tmp_path / "cache")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(stub)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = {process.communicate(timeout=300)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(said) == 1 and Path(said.pop().strip()).is_file()
    assert sum("kernels.c" in line for line in calls.read_text().splitlines()) == 1


def test_nobody_waits_for_the_compiler(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    slow = script(tmp_path / "slow", f'while [ ! -e {go} ]; do sleep 0.02; done; exec cc "$@"')
    monkeypatch.setenv("CC", str(slow))
    assert library.at_hand() is None and library.at_hand() is None
    assert kernels.being_made()
    assert torch.equal(kernels.linear(torch.ones(1, 3), torch.ones(2, 3)), torch.full((1, 2), 3.0))
    assert kernels.being_made()
    go.touch()
    assert kernels.available()  # waits
    assert library.at_hand() is not None


def test_no_compiler(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(stub))
    assert uses_the_reference()
    assert kernels.why_not() == "no C compiler was found (cc, gcc or clang)"


def test_a_compiler_that_is_not_there(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    assert uses_the_reference()
    assert kernels.why_not() == "the C compiler CC=no-such-compiler was not found"


def test_a_broken_compiler(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = script(tmp_path / "broken", "echo 'cc: fatal error: out of order' >&2; exit 1")
    monkeypatch.setenv("CC", str(broken))
    assert uses_the_reference()
    assert "out of order" in (kernels.why_not() or "")
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_source_that_does_not_compile(stub: Path) -> None:
    (stub / "kernels.c").write_text("int skimp_abi(void) { return this; }")
    assert uses_the_reference()
    assert "could not compile the kernels (" in (kernels.why_not() or "")
    assert "error" in (kernels.why_not() or "")


def test_a_cache_that_cannot_be_written(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SKIMP_CACHE", str(tmp_path / "file"))
    assert uses_the_reference()
    assert "SKIMP_CACHE" in (kernels.why_not() or "")


def test_a_library_of_another_interface(stub: Path) -> None:
    (stub / "kernels.c").write_text(STUB % (native._ABI + 1))
    assert uses_the_reference()
    assert "another version" in (kernels.why_not() or "")


def test_a_file_that_is_no_library(stub: Path) -> None:
    (stub / build.NAME).write_bytes(b"not a library")
    assert uses_the_reference()
    assert "could not be loaded" in (kernels.why_not() or "")


def test_a_library_beside_the_source_comes_first(stub: Path, tmp_path: Path) -> None:
    built = build.library_file()
    (stub / build.NAME).write_bytes(built.read_bytes())
    assert build.library_file() == stub / build.NAME
    assert kernels.available() and kernels.why_not() is None


@pytest.mark.parametrize("word", ("0", "off"))
def test_the_environment_turns_it_off(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("SKIMP_NATIVE", word)
    assert uses_the_reference()
    assert kernels.why_not() == "SKIMP_NATIVE turns them off"
    assert not (tmp_path / "cache").exists()


def test_the_environment_takes_a_lower_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels.available():
        pytest.skip(f"no native kernels: {kernels.why_not()}")
    library.reload()
    monkeypatch.setenv("SKIMP_ISA", ISAS[0])
    assert kernels.isa() == ISAS[0]
    library.reload()
    monkeypatch.setenv("SKIMP_ISA", "mmx")
    assert uses_the_reference()
    assert kernels.why_not() == "SKIMP_ISA=mmx is none of portable, avx2, avx512bf16"


def test_a_chosen_number_of_threads_outlives_the_loading(stub: Path) -> None:
    kernels.set_threads(3)
    try:
        found = library.library()
        assert found is not None and found.threads == 3
    finally:
        kernels.set_threads(1)
