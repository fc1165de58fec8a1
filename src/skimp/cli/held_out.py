"""Held-out text for models without a file of it: the dense model continues openings of our own.

Calibration continues prompts that come with skimp, and takes some of them whole, so another seed
alone would not make its text held out. These openings are used for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from skimp.errors import EvaluationError
from skimp.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import nn

OPENINGS = (
    "The ferry was late again, and on the pier the passengers had begun to tell each other",
    "In the spring of 1871 the council voted to move the market out of the cathedral square, which",
    "To repot an orchid without hurting its roots, begin by",
    "Most people think that cats always land on their feet. What actually happens is that",
    "The committee's second finding was less welcome: the old pumps were",
    "Grandmother kept three clocks in the hall, and none of them agreed. When we asked her why,",
    "A glacier is not a still thing. Under its own weight the ice",
    "Dear Ms Okafor,\n\nThank you for your letter about the noise from the bakery below your flat.",
    "Step 1: Drain the cooling circuit and let the engine stand for an hour.\nStep 2:",
    '"That isn\'t my umbrella," said the conductor, "but I would very much like to know',
    "The difference between weather and climate is best explained by",
    "Our hotel was ten minutes from the beach on foot. The room was clean, but",
    'import csv\n\ndef read_temperatures(path):\n    """Return the mean of each month."""\n',
    "Midfielder Anneli Roos scored twice in the last ten minutes on Saturday as",
    "The word 'quarantine' comes from the Venetian for forty days, because",
    "If a shop sells pears at 40 cents each and gives one free with every five, then twelve pears",
)
_BATCH = 16
_ROUNDS = 8
_LEAST = 16  # tokens: a document that ended at once says nothing


@torch.no_grad()
def write(
    model: nn.Module,
    tokenizer: Any,
    *,
    tokens: int,
    window: int,
    seed: int,
    progress: Progress = SILENT,
) -> list[Tensor]:
    """Documents of at most `window` tokens, about `tokens` in all, sampled from `model` as it is.

    Raises:
        EvaluationError: the model ends every text at once.
    """
    openings = [tokenizer(text)["input_ids"][: window // 2] for text in OPENINGS]
    device = next(model.parameters()).device
    found: list[Tensor] = []
    rounds = min(_ROUNDS, 2 + tokens // (window * _BATCH))
    with (
        progress.task("writing held-out text", tokens) as step,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(seed)
        for _ in range(rounds):
            missing = tokens - sum(map(len, found))
            if missing <= 0:
                break
            count = min(_BATCH, -(-missing // window))
            start = len(found) % len(openings)
            chosen = [openings[(start + n) % len(openings)] for n in range(count)]
            for document in _continue(model, tokenizer, chosen, window):
                if len(document) >= min(_LEAST, window):
                    found.append(document)
                    for _ in range(len(document)):
                        step()
    if not found:
        raise EvaluationError("the model ends every text at once; give held-out text with --text.")
    return found


def _continue(
    model: Any, tokenizer: Any, openings: Sequence[list[int]], window: int
) -> list[Tensor]:
    """Each opening with what the model makes of it, cut where it ends its text."""
    width = max(map(len, openings))
    ids = torch.zeros(len(openings), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, opening in enumerate(openings):
        ids[row, width - len(opening) :] = torch.tensor(opening)
        mask[row, width - len(opening) :] = 1
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    device = next(model.parameters()).device
    written = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max(1, window - min(map(len, openings))),
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    ).cpu()
    found = []
    for opening, row in zip(openings, written, strict=True):
        new = row[width:]
        stops = torch.isin(new, torch.tensor(ends, dtype=torch.long)).nonzero()
        new = new[: int(stops[0])] if len(stops) else new
        found.append(torch.cat([torch.tensor(opening), new])[:window])
    return found
