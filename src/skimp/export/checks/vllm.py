"""Ask vLLM; see :mod:`skimp.export.ask` for jobs and answers. Runs without skimp."""

import gc
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

vllm: Any = import_module("vllm")  # not this file, which has its name

DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
# Of more tokens than these vLLM's answer takes minutes to put together.
MOST = 512
TOKENS = 2048


def main() -> None:
    """Answer the jobs on standard input, one a line."""
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        Path(job["answer"]).write_text(json.dumps(answer(job)))
        gc.collect()  # an engine's parts know each other; its cache must go before the next one's


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """What vLLM says."""
    longest = max(len(prompt) for prompt in job["prompts"]) + job["new"]
    engine = vllm.LLM(
        job["model"],
        dtype=DTYPES.get(job["form"], "auto"),
        trust_remote_code=True,
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=longest,
        max_num_seqs=8,
        max_num_batched_tokens=max(TOKENS, longest),
        enable_prefix_caching=False,
        max_logprobs=-1,
        logprobs_mode="raw_logits",
        seed=0,
    )
    size = engine.llm_engine.model_config.get_vocab_size()
    settings = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=job["new"],
        ignore_eos=True,
        detokenize=False,
        logprobs=None,
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    outputs = engine.generate(prompts, settings, use_tqdm=False)
    found: dict[str, Any] = {
        "engine": f"vLLM {vllm.__version__}",
        "tokens": [list(each.outputs[0].token_ids) for each in outputs],
        "logits": None,
    }
    if job["logits"]:
        settings.max_tokens, settings.logprobs = 1, min(size, MOST)
        outputs = engine.generate(prompts, settings, use_tqdm=False)
        found["logits"] = save(outputs, settings.logprobs, Path(job["scratch"]))
    return found


def save(outputs: Any, count: int, folder: Path) -> dict[str, str]:
    """Write the likeliest tokens' ids and logits after each prompt."""
    best = [
        sorted(each.outputs[0].logprobs[0].items(), key=lambda pair: -pair[1].logprob)[:count]
        for each in outputs
    ]
    arrays = {
        "ids": np.array([[token for token, _ in row] for row in best], np.int64),
        "values": np.array([[found.logprob for _, found in row] for row in best], np.float32),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: str(folder / f"{name}.npy") for name in arrays}


if __name__ == "__main__":
    main()
