"""Which native library is in use, loaded at the first call that could use it, and its settings."""

from __future__ import annotations

import os
import threading

from skimp.errors import SkimpError
from skimp.kernels.build import BuildError, library_file
from skimp.kernels.native import ISAS, Native


class _State:
    """What this process found; one a process, because the library is."""

    def __init__(self) -> None:
        self.tried = False
        self.native: Native | None = None
        self.reason: str | None = None
        self.threads = 1
        self.asked = False  # whether somebody chose the number of threads
        self.maker: threading.Thread | None = None


_state = _State()
_loading = threading.Lock()


def library() -> Native | None:
    """Return the library, built and loaded at the first call; None where there is none."""
    if not _state.tried:
        with _loading:
            if not _state.tried:
                _load()
    return _state.native


def at_hand() -> Native | None:
    """Return the library if it is loaded; else None, and it is being made from now on.

    Compiling takes many seconds, in which the twins in torch can do the work.
    """
    if not _state.tried and _state.maker is None:
        # No daemon: a program that ends meanwhile lets it finish, or no short one ever had it.
        _state.maker = threading.Thread(target=library, name="skimp-kernels")
        _state.maker.start()
    return _state.native


def being_made() -> bool:
    """Whether the library is being made in the background."""
    return _state.maker is not None and _state.maker.is_alive()


def available() -> bool:
    """Whether the native kernels are in use; builds them at the first call."""
    return library() is not None


def isa() -> str | None:
    """The instruction set that the native kernels use, or None without them."""
    native = library()
    return None if native is None else native.isa


def why_not() -> str | None:
    """Why there are no native kernels, in one clause; None if there are."""
    library()
    return _state.reason


def threads() -> int:
    """How many threads a kernel uses."""
    return _state.threads


def set_threads(count: int) -> None:
    """Let every kernel use `count` threads; 1 at first, which stays in the calling thread.

    On many machines one core saturates the memory, and then threads cost more than they bring.

    Raises:
        SkimpError: `count` is below 1.
    """
    if count < 1:
        raise SkimpError(f"a kernel needs at least 1 thread, not {count}; use set_threads(1).")
    _state.asked = True
    use_threads(count)


def threads_asked() -> bool:
    """Whether `set_threads` was called."""
    return _state.asked


def use_threads(count: int) -> None:
    """Use so many threads until somebody asks for a number."""
    _state.threads = count
    if _state.native is not None:
        _state.native.threads = count


def reload() -> None:
    """Forget the library, so that the next call looks for it anew; the environment may differ."""
    with _loading:
        _state.tried, _state.native, _state.reason, _state.maker = False, None, None, None


def _load() -> None:
    try:
        if os.environ.get("SKIMP_NATIVE", "1").strip().lower() in ("0", "off", "false", "no"):
            raise BuildError("SKIMP_NATIVE turns them off")
        wanted = os.environ.get("SKIMP_ISA") or None
        if wanted is not None and wanted not in ISAS:
            raise BuildError(f"SKIMP_ISA={wanted} is none of {', '.join(ISAS)}")
        native = Native(str(library_file()))
        native.choose(wanted)
        native.threads = _state.threads
        _state.native = native
    except BuildError as error:
        _state.reason = str(error)
    except (OSError, AttributeError) as error:  # not a library for this system, or not ours
        _state.reason = f"the native library could not be loaded ({error})"
    finally:
        _state.tried = True
