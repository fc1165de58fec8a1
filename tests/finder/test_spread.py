"""Shares of neurons spread over layers: the allocation, and harm against plain references."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.families import build
from torch import Tensor, nn

from skimp.errors import CalibrationError, PlanError
from skimp.finder.spread import LEAST, LEVELS, allocate, cut, foretell, joint_harm, spread
from skimp.methods.apply import apply
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


def documents(lengths: list[int]) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(3, 60, (length,), generator=random) for length in lengths]


def planned(model: nn.Module, **section: object) -> Plan:
    return Plan.empty(Anatomy.of(model)).with_section("experts", section)


@st.composite
def curves(draw: st.DrawFn) -> tuple[Tensor, list[int], float]:
    layers = draw(st.integers(1, 3))
    value = st.floats(0, 1, allow_nan=False)
    harms = [draw(st.lists(value, min_size=16, max_size=16)) for _ in range(layers)]
    widths = [draw(st.sampled_from([16, 48])) for _ in range(layers)]
    return torch.tensor(harms), widths, draw(st.sampled_from([0.0625, 0.25, 0.5, 0.8, 0.99]))


@given(given_curves=curves())
def test_shares_keep_what_was_asked_for(given_curves: tuple[Tensor, list[int], float]) -> None:
    harms, widths, keep = given_curves
    shares = allocate(harms, widths, keep)
    assert all(0 < share <= 1 + 1e-9 for share in shares)
    kept = sum(share * width for share, width in zip(shares, widths, strict=True))
    assert kept <= keep * sum(widths) + 1e-6
    if bool((harms[:, 1:] < harms[:, :-1] - 1e-6).all()):  # every neuron helps
        assert kept == pytest.approx(keep * sum(widths))


def test_shares_are_the_best_where_harms_add_up() -> None:
    """Convex harms, two layers: no pair of levels of the same size does less harm."""
    levels = torch.tensor(LEVELS)
    harms = torch.stack([1 / levels, 4 / levels])
    shares = allocate(harms, [16, 16], 0.5)
    found = sum(
        float(torch.tensor(scale / share)) for scale, share in zip((1, 4), shares, strict=True)
    )
    best = min(1 / a + 4 / b for a, b in product(LEVELS, LEVELS) if a + b <= 1)
    assert found <= best + 1e-5
    assert shares[1] > shares[0]


def test_foretold_harm_is_that_of_the_gradient() -> None:
    """Against a change of one layer's output put in by hand: KL to second order."""
    torch.manual_seed(0)
    model = build("llama").double()
    windows = cut(documents([32] * 64), 64)
    plan = planned(model, keep=0.5)
    with apply(model, plan):
        found = foretell(model, windows)
    half = LEVELS.index(0.5)
    measured = []
    for layer in range(len(found)):
        keep = [1.0] * len(found)
        keep[layer] = 0.5
        measured.append(joint_harm(model, planned(model, keep=keep), windows))
    # Small random models are nearly linear; one label is drawn a token, so this is an estimate.
    for wanted, seen in zip(measured, found[:, half].tolist(), strict=True):
        assert seen == pytest.approx(wanted, rel=0.5)
    assert (found[:, -1] == 0).all(), "all neurons kept do no harm"
    assert (found[:, 0] > found[:, half]).all()


def test_joint_harm_is_the_divergence_of_masked_answers() -> None:
    model = build("opt").double()
    windows = cut(documents([32, 32]), 2)
    ids, prompt = windows[0].ids, windows[0].prompt
    plan = planned(model, keep=0.5, fill="mean")
    dense = model(input_ids=ids, use_cache=False).logits[:, prompt:].log_softmax(-1)
    handles = [
        block.get_submodule("fc2").register_forward_pre_hook(_halved(ids.shape, prompt))
        for block in model.get_submodule("model.decoder.layers")
    ]
    thin = model(input_ids=ids, use_cache=False).logits[:, prompt:].log_softmax(-1)
    for handle in handles:
        handle.remove()
    wanted = float((dense.exp() * (dense - thin)).sum(-1).mean().detach())
    assert wanted > 1e-6
    assert joint_harm(model, plan, windows) == pytest.approx(wanted, rel=1e-3)


def _halved(shape: torch.Size, prompt: int) -> object:
    def hook(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0].reshape(*shape, -1).clone()
        before = z[:, :prompt]
        norms = before.norm(dim=-1, keepdim=True)
        score = (before / norms).square().sum(1)
        kept = torch.zeros_like(score).scatter(1, score.topk(z.shape[-1] // 2).indices, 1.0)
        means = before.mean(1, keepdim=True)
        z[:, prompt:] = torch.where(kept[:, None] > 0, z[:, prompt:], means)
        return (z.reshape(args[0].shape),)

    return hook


def test_spread_keeps_the_size_and_never_does_more_harm() -> None:
    model = build("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = [weight.requires_grad for weight in model.parameters()]
    plan = planned(model, keep=0.5, fill="mean")
    found = spread(model, plan, documents([40] * 12))
    assert sum(found.keep) / len(found.keep) == pytest.approx(0.5, abs=1e-3)
    assert min(found.tried.values()) <= found.tried[0.0]
    after = found.onto(plan)
    assert after.sections["experts"]["keep"] == list(found.keep)
    with apply(model, after):
        pass
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [weight.requires_grad for weight in model.parameters()] == wanted
    again = spread(model, plan, documents([40] * 12))
    assert again.keep == found.keep


def test_what_cannot_be_spread_is_refused() -> None:
    model = build("llama")
    layers = Anatomy.of(model).dense_layers
    for section in ({"keep": [0.5] * layers}, {"keep": 1.0}, {"keep": 0.5, "scope": "calibrated"}):
        with pytest.raises(PlanError, match=r"experts\.keep"):
            spread(model, planned(model, **section), documents([40] * 12))
    with pytest.raises(CalibrationError, match="two documents"):
        spread(model, planned(model, keep=0.5), documents([LEAST - 1, 99]))


def test_windows_come_from_all_documents_first() -> None:
    first, second = documents([50, 40])
    (windows,) = cut([first, second], 3)
    assert windows.ids.shape == (2, 40)
    assert torch.equal(windows.ids[0], first[:40])
    assert torch.equal(windows.ids[1], second)
    assert windows.prompt == 25
