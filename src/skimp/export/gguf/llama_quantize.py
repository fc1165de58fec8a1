"""Quantize a GGUF file by llama.cpp. Runs without skimp.

Reads a job as JSON from standard input: `from` and `to`, paths of files; `form`, llama.cpp's name
of the format in lower case; `threads`.
"""

import json
import sys

import llama_cpp  # pyright: ignore[reportMissingImports]

FORMS = {
    "q4_k_s": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "q5_k_s": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_S,
    "q5_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "q6_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
}


def main() -> None:
    """Read the job and do it; the exit status says whether it was done."""
    job = json.load(sys.stdin)
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = FORMS[job["form"]]
    settings.nthread = job["threads"]
    failed = llama_cpp.llama_model_quantize(job["from"].encode(), job["to"].encode(), settings)
    sys.exit(int(failed != 0))


if __name__ == "__main__":
    main()
