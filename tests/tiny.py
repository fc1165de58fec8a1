"""A tiny model with a tokenizer, for tests that need text."""

from functools import cache
from typing import Any

import torch
from tests import families
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, as far as the tiny vocabulary reaches; the rest is unknown."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: families.VOCABULARY - 2]
    vocabulary = {letter: index + 2 for index, letter in enumerate(letters)}
    vocabulary |= {"<end>": 0, "<unk>": 1}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>", unk_token="<unk>"
    )


def documents(count: int = 6, *, longest: int = 40, seed: int = 0) -> tuple[Tensor, ...]:
    """Random token documents of different lengths, each [S]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, longest + 1, (count,), generator=generator).tolist()
    return tuple(
        torch.randint(2, families.VOCABULARY, (length,), generator=generator) for length in lengths
    )


def calibration(**kwargs: Any) -> Any:
    """Random documents as calibration text."""
    from skimp.calibration.text import Calibration

    found = documents(**kwargs)
    return Calibration(found, ("random",) * len(found), "random tokens")
