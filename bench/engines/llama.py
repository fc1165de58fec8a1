"""llama.cpp through its C interface, without the Python package's own sampling and bookkeeping."""

import ctypes
from importlib.metadata import version
from typing import Any

import llama_cpp  # pyright: ignore
import numpy as np
from bench.engines.base import Options


def versions() -> dict[str, str]:
    return {
        "llama-cpp-python": version("llama-cpp-python"),
        "system": llama_cpp.llama_print_system_info().decode().strip(),
    }


def load(options: Options) -> "Llama":
    return Llama(options)


class Llama:
    """One request in a context of its own; keys and values in float16, llama.cpp's default."""

    def __init__(self, options: Options) -> None:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        # Read into memory, as the other engines do: a mapped file may be pushed out by its
        # neighbours' files, and lies in small pages.
        model.use_mmap = False
        self._model = _made(
            llama_cpp.llama_model_load_from_file(options.file.encode(), model), options.file
        )
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = options.length
        context.n_batch = options.length  # the whole prompt in one call
        context.n_threads = options.threads
        context.n_threads_batch = options.threads
        self._context = _made(llama_cpp.llama_init_from_model(self._model, context), "its context")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def prefill(self, ids: list[int]) -> int:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        return self._read(ids)

    def decode(self, token: int) -> int:
        return self._read([token])

    def _read(self, ids: list[int]) -> int:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        failed = llama_cpp.llama_decode(self._context, batch)
        if failed:
            raise RuntimeError(f"llama_decode returned {failed} for {len(ids)} tokens")
        last = llama_cpp.llama_get_logits_ith(self._context, -1)
        address = ctypes.cast(last, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(address, (self._vocabulary,)).argmax())


def _made(pointer: Any, what: str) -> Any:
    if not pointer:
        raise RuntimeError(f"llama.cpp cannot load {what}; its log says why")
    return pointer
