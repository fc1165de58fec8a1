"""Early exits behind transformers' own `generate`."""

from typing import Any

import pytest
import torch
from tests.contract.test_engine import CUT
from tests.contract.test_exits import BATCH, SINGLE, exits
from tests.families import SAMPLES
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from skimp.engine import Engine
from skimp.errors import RequestError


def test_who_has_ended_holds_nobody_up() -> None:
    model: Any = SAMPLES["llama"].build()
    engine = Engine(model, exits(model))
    assert engine.exits is not None
    looked: list[tuple[int, int]] = []

    def leaves(column: int, place: int) -> Tensor:
        looked.append((column - CUT, place))
        return torch.tensor([True, False])  # the second sequence would run all layers

    def ended(ids: Tensor, scores: Any) -> Tensor:
        return torch.tensor([False, ids.shape[1] > CUT + 1])

    engine.exits.script = leaves
    ids = BATCH.ids[:2, :CUT]
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=4,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([ended]),
        custom_generate=engine.custom_generate,
    )
    assert looked == [(0, 1), (0, 2), (1, 1), (2, 1)]


@pytest.mark.parametrize("sample_tokens", (False, True))
def test_candidates_that_are_all_forbidden_are_named(sample_tokens: bool) -> None:
    """Not token 0 in silence, nor a crash in the draw: processors may forbid what a probe read."""
    model: Any = SAMPLES["llama"].build()
    engine = Engine(model, exits(model, threshold=0.0, candidates=2))

    def forbid(ids: Tensor, scores: Tensor) -> Tensor:
        open_to = scores.isfinite()
        return scores.masked_fill(open_to, -torch.inf) if int(open_to.sum()) == 2 else scores

    with pytest.raises(RequestError, match="forbid every token"):
        model.generate(
            input_ids=SINGLE.ids[:, :CUT],
            attention_mask=torch.ones(1, CUT, dtype=torch.long),
            max_new_tokens=4,
            do_sample=sample_tokens,
            top_k=0,
            logits_processor=LogitsProcessorList([forbid]),
            custom_generate=engine.custom_generate,
        )
