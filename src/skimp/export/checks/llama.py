"""Ask llama.cpp; see :mod:`skimp.export.ask` for jobs and answers. Runs without skimp.

Keys and values are kept in float32, so that nothing but the weights' own format rounds. The answer
also holds `ends`, all tokens at which llama.cpp stops.
"""

import ctypes
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np


def main() -> None:
    """Answer the jobs on standard input, one a line."""
    llama_cpp.llama_backend_init()
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        Path(job["answer"]).write_text(json.dumps(answer(job)))


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp says."""
    prompts = job["prompts"]
    length = max((len(prompt) for prompt in prompts), default=1) + job["new"]
    engine = Engine(job["model"], length)
    tokens, logits = [], []
    for number, prompt in enumerate(prompts):
        rows = engine.read(prompt, fresh=True)
        path = f"{job['scratch']}/{number}.npy"
        if job["logits"]:
            np.save(path, rows)
        logits.append(path)
        tokens.append(engine.greedy(rows[-1], job["new"]))
    found = {
        "engine": f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})",
        "tokens": tokens,
        "logits": logits if job["logits"] else None,
        "texts": [engine.tokenize(text) for text in job["texts"]],
        "ends": engine.ends(),
    }
    engine.close()
    return found


class Engine:
    """One model and one context, through the C interface."""

    def __init__(self, file: str, length: int) -> None:
        settings = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(file.encode(), settings)
        if not self._model:
            sys.exit(f"llama.cpp cannot load {file}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = max(length, 32)
        context.type_k = context.type_v = llama_cpp.GGML_TYPE_F32
        # Flash attention rounds queries and keys to float16, whatever the cache holds.
        context.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context.n_threads = context.n_threads_batch = 1
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            sys.exit(f"llama.cpp cannot make room for {length} tokens of {file}")
        self._words = llama_cpp.llama_model_get_vocab(self._model)
        self._size = llama_cpp.llama_vocab_n_tokens(self._words)

    def close(self) -> None:
        """Give its memory back, which Python does not see."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def read(self, ids: list[int], *, fresh: bool = False) -> np.ndarray:
        """The logits [tokens, vocabulary] after each of `ids`; `fresh`: nothing stands before."""
        memory = llama_cpp.llama_get_memory(self._context)
        if fresh:
            llama_cpp.llama_memory_clear(memory, True)
        start = llama_cpp.llama_memory_seq_pos_max(memory, 0) + 1
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        failed = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        if failed:
            sys.exit(f"llama_decode returned {failed} for {len(ids)} tokens")
        address = ctypes.cast(
            llama_cpp.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float)
        )
        return np.ctypeslib.as_array(address, (len(ids), self._size)).copy()

    def greedy(self, last: np.ndarray, new: int) -> list[int]:
        """The likeliest tokens one by one, `last` [vocabulary] being what is said before them."""
        taken: list[int] = []
        while len(taken) < new:
            taken.append(int(last.argmax()))
            if len(taken) < new:
                last = self.read(taken[-1:])[-1]
        return taken

    def tokenize(self, text: str) -> list[int]:
        """The text's tokens, with those that the file puts around any text."""
        data = text.encode()
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._words, data, len(data), ids, room, True, True)
        return list(ids[:count])

    def ends(self) -> list[int]:
        """Every token that ends an answer."""
        return [t for t in range(self._size) if llama_cpp.llama_vocab_is_eog(self._words, t)]


if __name__ == "__main__":
    main()
