"""Logits of some positions alone are those of a whole pass, whether a model can be asked or not."""

from typing import Any

import torch
from tests import families
from torch import Tensor, nn

from skimp.models.some_logits import last_only, logits_at


class Stubborn(nn.Module):
    """A model that gives all logits, whatever one would like."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner: Any = model

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        return self.inner(input_ids=input_ids, use_cache=use_cache)


@torch.no_grad()
def test_logits_at_some_positions() -> None:
    model = families.build("llama")
    ids = torch.randint(50, (3, 9))
    whole = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(logits_at(model, ids, range(4, 8)), whole[:, 4:8])
    assert torch.equal(logits_at(Stubborn(model), ids, range(4, 8)), whole[:, 4:8])


@torch.no_grad()
def test_the_last_logits_are_asked_for_by_index() -> None:
    model: Any = families.build("llama")
    ids = torch.randint(50, (3, 9))
    whole = model(input_ids=ids, use_cache=False).logits
    device = torch.device("cpu")
    for queries in (9, 0):
        asked = last_only(model, queries, device)
        assert not isinstance(asked["logits_to_keep"], int)  # a count would be a strided slice
        torch.testing.assert_close(model(ids, use_cache=False, **asked).logits, whole[:, -1:])
    assert last_only(Stubborn(model), 9, device) == {}
