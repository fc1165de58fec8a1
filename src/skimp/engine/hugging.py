"""The engine behind transformers' own `generate`, whose options then all apply."""

from typing import Any

import torch
from torch import Tensor

from skimp.engine.generation import Decoder
from skimp.engine.quiet import alone
from skimp.engine.sampling import check
from skimp.errors import RequestError


def custom_generate(engine: Decoder) -> Any:
    """A function for `model.generate(..., custom_generate=…)`: greedy search and sampling.

    Logits processors and stopping criteria are transformers' own; prompts are padded on the left,
    as `generate` asks.
    """

    @torch.inference_mode()
    def run(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        if generation_config.num_beams not in (None, 1):
            raise RequestError("num_beams: the engine has no beam search; leave it at 1.")
        prompts = _prompts(input_ids, model_kwargs.get("attention_mask"))
        new = generation_config.max_length - input_ids.shape[1]
        logits, state = engine.prefill(prompts, new)
        going = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        ids = input_ids
        for index in range(new):
            with alone(logits.device):
                check(logits)
                scores = logits_processor(ids, logits.float())
                # Of a few candidates processors may forbid all; what has ended may be anything.
                scores = torch.where(going[:, None], scores, 0.0)
                check(scores)
                tokens = _pick(scores, bool(generation_config.do_sample))
                tokens = torch.where(going, tokens, _pad(generation_config))
                ids = torch.cat([ids, tokens[:, None]], 1)
                if streamer is not None:
                    streamer.put(tokens.cpu())
                going = going & ~stopping_criteria(ids, None)
            if not bool(going.any()) or index + 1 == new:
                break
            # Early exits need not wait for those that nobody listens to any more.
            state.idle = None if bool(going.all()) else ~going
            logits = engine.decode(state, tokens)
        if streamer is not None:
            streamer.end()
        return ids

    return run


def _prompts(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    if mask is None:
        return ids.tolist()
    rows = zip(ids, mask.bool(), strict=True)
    return [row[real].tolist() for row, real in rows]


def _pick(scores: Tensor, sample: bool) -> Tensor:
    if not sample:
        return scores.argmax(-1)
    return torch.multinomial(scores.softmax(-1), 1).squeeze(1)


def _pad(config: Any) -> Tensor:
    pad = config.pad_token_id
    if pad is None:
        ends = config.eos_token_id
        pad = 0 if ends is None else torch.as_tensor(ends).flatten()[0]
    return torch.as_tensor(pad)
