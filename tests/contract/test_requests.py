"""Law 4: state belongs to the request, not to the module."""

import torch
from tests.contract.cases import Case, plan_for
from tests.contract.runs import Batch, make_batch
from torch import Tensor, nn

import skimp
from skimp.models.anatomy import Anatomy

STEPS = 6


class Request:
    """A greedy generation, advanced one pass at a time."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch, self.cache = model, batch, None
        self.seen: list[Tensor] = []

    @torch.no_grad()
    def step(self) -> None:
        start = 0 if self.cache is None else self.batch.length - 1
        inputs = self.batch.part(start, self.batch.length)
        output = self.model(**inputs, past_key_values=self.cache, use_cache=True)
        self.cache = output.past_key_values
        self.seen.append(output.logits[:, -1])
        self.batch = self.batch.longer(self.seen[-1].argmax(-1))


def test_interleaved_requests_are_as_if_alone(
    model: nn.Module, anatomy: Anatomy, case: Case
) -> None:
    batches = make_batch([7, 3], seed=5), make_batch([1], seed=6), make_batch([9], seed=7)
    for name in ("first attention", "only the last attention kept"):
        with skimp.apply(model, plan_for(case, case.one(anatomy.dense_layers, name), anatomy)):
            alone = [Request(model, batch) for batch in batches]
            for request in alone:
                for _ in range(STEPS):
                    request.step()
            together = [Request(model, batch) for batch in batches]
            for _ in range(STEPS):
                for request in together:
                    request.step()
        for one, other in zip(alone, together, strict=True):
            assert all(map(torch.equal, one.seen, other.seen))


def test_request_begun_on_the_dense_model_ends_on_it(model: nn.Module, case: Case) -> None:
    """A plan put on and taken off between two steps leaves no trace in the request."""
    anatomy = Anatomy.of(model)
    alone, disturbed = (Request(model, make_batch([5, 2])) for _ in range(2))
    plan = plan_for(case, case.one(anatomy.dense_layers, "first layer"), anatomy)
    for _ in range(STEPS):
        alone.step()
    for _ in range(STEPS):
        disturbed.step()
        with skimp.apply(model, plan):
            Request(model, make_batch([4])).step()
    assert all(map(torch.equal, alone.seen, disturbed.seen))
