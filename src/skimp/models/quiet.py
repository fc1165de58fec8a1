"""Silence for the libraries that load weights, so that skimp alone speaks to the user."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NOTHING = 60  # above logging.CRITICAL


@contextmanager
def quiet() -> Iterator[None]:
    """Mute the logs, warnings and progress bars of transformers and huggingface_hub.

    Everything is put back on leaving, also after an error: the caller's own settings stand. These
    settings are the libraries' process-wide ones, so another thread that loads at the same time
    is muted as well.
    """
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging as transformers

    before = transformers.get_verbosity(), hub.get_verbosity()
    bars = transformers.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.set_verbosity(_NOTHING)
        hub.set_verbosity(_NOTHING)
        transformers.disable_progress_bar()
        disable_progress_bars()
        try:
            yield
        finally:
            transformers.set_verbosity(before[0])
            hub.set_verbosity(before[1])
            if bars[0]:
                transformers.enable_progress_bar()  # switches the hub's on too
            if bars[1]:
                enable_progress_bars()
            else:
                disable_progress_bars()
