"""Fills are the closed forms that they claim to be."""

import pytest
import torch
from tests import families, tiny

from skimp.calibration.replay import Replay, pack
from skimp.methods.apply import apply
from skimp.methods.drop.closed_form import FILL_RIDGE, solve_fill
from skimp.methods.drop.fit import fit_alone, tasks_of
from skimp.methods.drop.section import Drop, FillKind
from skimp.methods.fit import fit, needs_fit
from skimp.methods.in_order import fit_in_order
from skimp.methods.moments import Moments
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


def sample(rows: int = 400, size: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, size, generator=generator) * torch.linspace(0.2, 3, size)
    mix = torch.randn(size, size, generator=generator)
    y = x @ mix + 0.3 * torch.randn(rows, size, generator=generator) + 2
    return x, y


def moments_of(x: torch.Tensor, y: torch.Tensor) -> Moments:
    moments = Moments()
    for part in range(0, len(x), 64):
        moments.add(x[part : part + 64], y[part : part + 64])
    return moments


def test_mean_is_the_mean() -> None:
    x, y = sample()
    torch.testing.assert_close(solve_fill(moments_of(x, y), FillKind("mean"))["mean"], y.mean(0))


def test_full_rank_equals_ridge_regression() -> None:
    x, y = (part.double() for part in sample())
    found = solve_fill(moments_of(x, y), FillKind("linear"))
    centred, target = x - x.mean(0), y - y.mean(0)
    covariance = centred.T @ centred / len(x)
    damped = covariance + FILL_RIDGE * covariance.diagonal().mean() * torch.eye(12)
    weights = torch.linalg.solve(damped, centred.T @ target / len(x))
    torch.testing.assert_close(found["up"].double(), weights.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found["bias"].double(), y.mean(0) - x.mean(0) @ weights, rtol=1e-4, atol=1e-5
    )


def test_low_precision_states_do_not_make_a_fit_run_away() -> None:
    """With a large mean and one strong direction, rounded products have negative eigenvalues."""
    size, generator = 64, torch.Generator().manual_seed(0)
    scales = torch.full((size,), 0.02).index_fill(0, torch.tensor([0]), 2.0)
    x = torch.randn(1000, size, generator=generator) * scales + 3
    y = x[:, :8] + 0.1 * torch.randn(1000, 8, generator=generator)
    x, y = x.bfloat16(), y.bfloat16()
    found = solve_fill(moments_of(x, y), FillKind("linear"))["up"].double()
    exact = solve_fill(moments_of(x.double(), y.double()), FillKind("linear"))["up"].double()
    assert (found - exact).norm() < 0.01 * exact.norm()


def test_moments_are_those_of_all_rows() -> None:
    x, y = (torch.randn(90, size, dtype=torch.float64) for size in (1000, 3))
    moments = moments_of(x, y)
    torch.testing.assert_close(moments.xx, x.T @ x, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(moments.xy, x.T @ y, rtol=1e-5, atol=1e-4)


def test_reduced_rank_beats_cutting_the_weights() -> None:
    x, y = sample()
    full = solve_fill(moments_of(x, y), FillKind("linear"))
    rank = 3
    low = solve_fill(moments_of(x, y), FillKind("linear", rank))
    assert low["down"].shape == (rank, 12)
    assert low["up"].shape == (12, rank)
    u, s, v = torch.linalg.svd(full["up"])
    cut = u[:, :rank] * s[:rank] @ v[:rank]

    def error(weights: torch.Tensor) -> float:
        residual = (y - y.mean(0)) - (x - x.mean(0)) @ weights.T
        return float(residual.square().mean())

    assert error(full["up"]) < error(low["up"] @ low["down"]) < error(cut)


def test_constant_input_does_not_blow_up() -> None:
    x = torch.ones(50, 12)
    y = torch.full((50, 12), 3.0)
    found = solve_fill(moments_of(x, y), FillKind("linear", 2))
    predicted = x @ (found["up"] @ found["down"]).T + found["bias"]
    torch.testing.assert_close(predicted, y, rtol=1e-4, atol=1e-4)


def test_padding_never_counts() -> None:
    model = families.build("llama")
    documents = tiny.documents(5)
    together = fit_alone(Replay(model, pack(documents)), [(2, "attention")], FillKind("mean"))
    apart = fit_alone(
        Replay(model, pack(documents, tokens=1)), [(2, "attention")], FillKind("mean")
    )
    torch.testing.assert_close(
        together[2, "attention"]["mean"], apart[2, "attention"]["mean"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "gpt_neox", "falcon-7b", "opt-post-norm", "olmo2"]
)
def test_one_fill_fitted_in_order_is_the_fill_fitted_alone(name: str) -> None:
    model = families.build(name)
    replay = Replay(model, pack(tiny.documents()))
    for kind in ("attention", "ffn"):
        section = Drop(**{kind: (2,)}, fill=FillKind("linear", 4))
        ordered = fit_in_order(replay, tasks_of(section, {}))
        alone = fit_alone(replay, section.sublayers, section.fill)
        for part, value in alone[2, kind].items():
            torch.testing.assert_close(ordered[2, kind][part], value, rtol=1e-4, atol=1e-4)


def test_hand_written_plan_is_fitted_once() -> None:
    model = families.build("llama")
    plan = Plan.empty(Anatomy.of(model)).with_section(
        "drop", {"attention": [1, 3], "ffn": [2], "fill": "linear:4"}
    )
    assert needs_fit(plan, Anatomy.of(model))
    fitted = fit(model, None, plan, calibration=tiny.calibration())
    assert not needs_fit(fitted, Anatomy.of(model))
    assert len(fitted.values) == 9
    assert fitted.evidence["calibration"]["source"] == "random tokens"
    assert fit(model, None, fitted) is fitted


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt", "falcon-7b"])
@torch.no_grad()
def test_repair_brings_the_residual_stream_back(name: str) -> None:
    model = families.build(name)
    anatomy = Anatomy.of(model)
    text = tiny.calibration(count=60, longest=24)
    replay = Replay(model, pack(text.documents))
    dense = [replay.run(entry, batch) for batch, entry in enumerate(replay.entry)]
    errors = {}
    for rank in ("none", 8, "full"):
        plan = Plan.empty(anatomy).with_section(
            "drop", {"attention": [0], "ffn": [1], "fill": "mean", "repair": rank}
        )
        plan = fit(model, None, plan, calibration=text)
        with apply(model, plan):
            planned = Replay(model, replay.batches)
            finals = [planned.run(entry, batch) for batch, entry in enumerate(planned.entry)]
        real = [batch.real for batch in replay.batches]
        gaps = [(d - p)[r] for d, p, r in zip(dense, finals, real, strict=True)]
        errors[rank] = float(torch.cat(gaps).square().mean())
    assert errors["full"] < errors[8] < errors["none"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_of_large_activations_do_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((200, 4), 300.0, dtype=dtype)
    moments = moments_of(x, x)
    for found in (moments.xx, moments.xy):
        expected = torch.full((4, 4), 200 * 300.0**2, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=2**-8, atol=0.0)
