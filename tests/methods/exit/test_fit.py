"""Fitting exits: closed forms, the split, training the rules, and all of it on tiny models."""

import pytest
import torch
from tests import families
from tests.tiny import calibration

from skimp.calibration.replay import Replay, pack
from skimp.errors import CalibrationError, PlanError
from skimp.methods.exit.controllers import controller
from skimp.methods.exit.costs import Costs
from skimp.methods.exit.features import FEATURES
from skimp.methods.exit.fit import Fitter, candidate_layers, fit_exit, fit_values
from skimp.methods.exit.gather import Likely, gather, position, split
from skimp.methods.exit.probe import Probes
from skimp.methods.exit.screen import fit_screen, nearest
from skimp.methods.exit.section import Exit, by_exit
from skimp.methods.exit.train import train
from skimp.methods.exit.translate import RIDGE, Affine, solve
from skimp.methods.exit.values import CENTRES, REACH, SLOPE, TOKENS, check, shapes
from skimp.methods.moments import Moments
from skimp.models.anatomy import Anatomy
from skimp.models.head import Head, final_norm
from skimp.plan import Plan
from skimp.progress import SILENT

TEXT = calibration(count=40, longest=30)


@pytest.mark.parametrize("translator", ["full", 3])
def test_translators_are_ridge_regressions(translator: str | int) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=random) + 1
    y = x @ torch.randn(6, 6, generator=random) + torch.randn(200, 6, generator=random) / 9
    moments = Moments()
    for part in range(0, 200, 50):
        moments.add(x[part : part + 50], y[part : part + 50])
    values = solve(moments, translator, 2)  # type: ignore[arg-type]
    a, b = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    cxx = a.T @ a / 200
    damped = cxx + RIDGE * cxx.diagonal().mean() * torch.eye(6)
    weight = torch.linalg.solve(damped, a.T @ b / 200).T
    if translator != "full":
        # The best rank-3 map in the damped metric: truncate the whitened one.
        root = torch.linalg.cholesky(damped)
        u, s, v = torch.linalg.svd(weight @ root)
        weight = (u[:, :3] * s[:3]) @ v[:3] @ torch.linalg.inv(root)
    wanted = a @ weight.T + y.mean(0).double()
    found = Affine.of(2, values, torch.zeros(1))
    assert found is not None
    torch.testing.assert_close(found(x).double(), wanted, rtol=1e-3, atol=1e-3)
    assert Affine.of(1, values, torch.zeros(1)) is None
    assert solve(moments, "plain", 2) == {}


@pytest.mark.parametrize("count", [12, 40, 333])
def test_no_document_is_in_two_parts(count: int) -> None:
    parts = split(count, 3)
    assert sorted(number for numbers in parts.values() for number in numbers) == list(range(count))
    assert all(len(numbers) >= 2 for numbers in parts.values())
    assert parts != split(count, 4)


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(CalibrationError, match="at least 12 documents"):
        split(11)


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon-40b"])
def test_gathered_states_are_the_models(name: str) -> None:
    model = families.build(name)
    replay = Replay(model, pack(TEXT.documents, tokens=256))
    layers = [1, Anatomy.of(model).dense_layers - 1]
    found = gather(replay, layers, SILENT)
    head, norm = Head.of(model), final_norm(model)
    assert sum(found.tokens.values()) == TEXT.tokens
    assert found.moments[1].count == found.tokens["fit"]
    ordered = sorted(TEXT.documents, key=len)  # as `pack` has them
    for states in (found.control, found.promise):
        token = head.logits(norm(states.after[layers[-1]])).argmax(-1)
        assert torch.equal(token, states.token)
        for number in states.document.unique().tolist():
            rows = states.document == number
            with torch.no_grad():
                output = model(input_ids=ordered[number][None], output_hidden_states=True)
            torch.testing.assert_close(
                states.after[1][rows], output.hidden_states[2][0], rtol=1e-4, atol=1e-4
            )
            assert torch.equal(states.token[rows], output.logits[0].argmax(-1))
    assert not set(found.control.document.tolist()) & set(found.promise.document.tolist())
    assert not set(found.likely.document.tolist()) & set(found.control.document.tolist())


def test_a_probe_of_a_dropped_layer_moves_before_it() -> None:
    anatomy = Anatomy.of(families.build("llama")).without_layers([0, 2])
    assert [position(layer, anatomy) for layer in (1, 2, 3)] == [0, 0, 1]
    with pytest.raises(CalibrationError, match="leaves out layer 0"):
        position(0, anatomy)


def test_a_kinds_candidates_are_its_likely_tokens() -> None:
    random = torch.Generator().manual_seed(0)
    kind = torch.arange(600) % 3
    states = torch.eye(3)[kind] * 9 + torch.randn(600, 3, generator=random) / 9
    # Kind k sees tokens 10k to 10k + 3, but one in five of kind 2 are told by nothing.
    tokens = kind[:, None] * 10 + torch.arange(4)
    strange = (kind == 2) & (torch.rand(600, generator=random) < 0.2)
    tokens[strange, 0] = torch.arange(100, 100 + int(strange.sum()))
    likely = Likely(states, tokens, torch.full((600, 4), 0.25), torch.arange(600) // 10)
    values = fit_screen(likely, 3, 4, 300)
    centres = values[CENTRES]
    order = nearest(torch.eye(3) * 9, centres)
    assert sorted(order.tolist()) == [0, 1, 2]
    for label in range(3):
        assert values[TOKENS][order[label]].tolist() == list(range(10 * label, 10 * label + 4))
    reach = (values[REACH][order] + torch.eye(3) * 9 @ values[SLOPE]).sigmoid()
    assert reach[0] > 0.93 and reach[1] > 0.93
    assert 0.7 < reach[2] < 0.9


def test_kinds_may_outnumber_states() -> None:
    likely = Likely(
        torch.randn(3, 4), torch.randint(0, 9, (3, 2)), torch.rand(3, 2), torch.ones(3).long()
    )
    values = fit_screen(likely, 8, 5, 9)
    assert values[CENTRES].isfinite().all() and values[REACH].isfinite().all()


def _toy(count: int = 4000) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Features, labels and true log-odds of three probes whose labels follow one another."""
    random = torch.Generator().manual_seed(0)
    seen, right, odds = [], [], []
    before = torch.zeros(count)
    for _ in range(3):
        features = torch.randn(count, len(FEATURES), generator=random)
        truth = 2 * features[:, 0] - features[:, 2] + 3 * before - 1
        before = (torch.rand(count, generator=random) < truth.sigmoid()).float()
        seen.append(features)
        right.append(before.bool())
        odds.append(truth)
    return seen, right, odds


@pytest.mark.parametrize("rule", ["svm", "crf"])
def test_trained_scores_are_log_odds(rule: str) -> None:
    seen, right, odds = _toy()
    section = Exit((3, 5, 8), rule=rule)  # type: ignore[arg-type]
    values = train(section, seen, right)
    own = controller(section, values, torch.device("cpu"))
    score = own.score(0, seen[0], None)
    # The first probe's truth has nothing before it: both rules must find it.
    assert float((score - odds[0]).abs().mean()) < 0.3
    for index in (1, 2):
        score = own.score(index, seen[index], score)
        for low, high in ((0.1, 0.4), (0.4, 0.7), (0.7, 0.95)):
            rows = (score.sigmoid() > low) & (score.sigmoid() < high)
            said, was = score[rows].sigmoid().mean(), right[index][rows].float().mean()
            assert abs(float(said - was)) < 0.06


def test_the_chain_learns_from_the_probes_before() -> None:
    seen, right, _ = _toy()
    found = {}
    for rule in ("svm", "crf"):
        section = Exit((3, 5, 8), rule=rule)  # type: ignore[arg-type]
        own = controller(section, train(section, seen, right), torch.device("cpu"))
        score = None
        for index in range(3):
            score = own.score(index, seen[index], score)
        assert score is not None
        found[rule] = torch.nn.functional.binary_cross_entropy_with_logits(score, right[2].float())
    assert found["crf"] < found["svm"] - 0.01


@pytest.mark.parametrize("label", [True, False])
def test_probes_that_are_always_alike_can_be_trained(label: bool) -> None:
    seen = [torch.zeros(50, len(FEATURES))]
    values = train(Exit((1,)), seen, [torch.full((50,), label)])
    score = controller(Exit((1,)), values, torch.device("cpu")).score(0, seen[0], None)
    assert bool((score > 3).all()) == label and bool((score < -3).all()) != label


SECTIONS = [
    Exit((1, 3), rule="svm"),
    Exit((2,), rule="threshold", translator="plain"),
    Exit((1, 2, 3), rule="crf", translator=4, candidates=20, screen=3),
    Exit((1, 3), candidates=9),
]


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2"])
def test_fitted_values_are_what_the_section_needs(name: str, section: Exit) -> None:
    model = families.build(name)
    anatomy = Anatomy.of(model)
    values = fit_values(section, Replay(model, pack(TEXT.documents)), SILENT)
    check(section, anatomy, values)
    extra = set(values) - set(shapes(section, anatomy))
    assert extra == {"exit.promise.levels.agreement", "exit.promise.levels.threshold"}
    probes = Probes(section, values, final_norm(model), Head.of(model))
    look = probes.look(0, torch.randn(2, anatomy.hidden_size), probes.begin(2))
    assert look.score.isfinite().all()


def test_the_search_says_why_there_is_no_probe() -> None:
    """Random layers agree on nothing, so that no probe can pay."""
    model = families.build("llama")
    plan = Plan.empty(Anatomy.of(model))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made, found = fit_exit(model, plan, TEXT, Exit(screen=3))
    assert by_exit(made) is None and not found.chosen.values
    assert made.evidence["exit"]["reason"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_fixed_probes_are_kept_and_the_plan_survives_its_file(tmp_path) -> None:
    model = families.build("llama")
    plan = Plan.empty(Anatomy.of(model))
    made, found = fit_exit(model, plan, TEXT, Exit(screen=3, agreement=0.5), probe=[1, 3])
    section = by_exit(made)
    assert section is not None and section.probe == (1, 3) and section.agreement == 0.5
    check(section, Anatomy.of(model), made.values)
    made.write(tmp_path / "exit.yaml")
    again = Plan.read(tmp_path / "exit.yaml")
    assert by_exit(again) == section
    assert all(torch.equal(made.values[name], again.values[name]) for name in made.values)
    assert found.plain is not None and found.plain.section.translator == "plain"


def test_exits_are_fitted_on_what_the_plan_leaves() -> None:
    model = families.build("llama")
    anatomy = Anatomy.of(model)
    plan = Plan.empty(anatomy).with_section("drop", {"layers": [2], "fill": "zero"})
    made, _ = fit_exit(model, plan, TEXT, Exit(screen=3), probe=[1, 3], candidates=0)
    whole, _ = fit_exit(
        model, Plan.empty(anatomy), TEXT, Exit(screen=3), probe=[1, 3], candidates=0
    )
    name = "exit.translator.1.weight"
    # Behind layer 1 one layer fewer follows: its state is closer to the final one.
    eye = torch.eye(32)
    assert (made.values[name] - eye).norm() < (whole.values[name] - eye).norm()
    assert Anatomy.of(model).layers == anatomy.layers


def test_bad_probes_are_refused() -> None:
    model = families.build("llama")
    with pytest.raises(PlanError, match=r"exit\.probe"):
        fit_exit(model, Plan.empty(Anatomy.of(model)), TEXT, Exit(screen=3), probe=[4])


def test_candidate_layers_end_with_the_last() -> None:
    anatomy = Anatomy.of(families.build("llama"))
    assert candidate_layers(anatomy) == [2, 3]
    assert candidate_layers(anatomy, 1)[-1] == 3
    assert candidate_layers(anatomy.without_layers([3]))[-1] == 2


def test_costs_count_what_is_run() -> None:
    costs = Costs((1.0, 2.0, 3.0), 10.0, {0: 4.0})
    assert costs.step == 16
    assert costs.with_probes([], [], 0) == 16
    assert costs.with_probes([0], [0.0], 0) == 20
    assert costs.with_probes([0], [1.0], 0) == 5
    assert costs.with_probes([0, 2], [0.5, 0.25], 0) == 1 + 4 + 0.5 * (5 + 4) + 0.25 * 10
    two = Costs((1.0, 2.0, 3.0), 10.0, {0: 4.0}, batch=2)
    assert two.with_probes([0], [0.5], 0) == 1 + 4 + 0.75 * 15


def test_layers_given_to_the_fitter_are_those_kept() -> None:
    replay = Replay(families.build("llama"), pack(TEXT.documents))
    fitter = Fitter(replay, [1, 3])
    assert set(fitter.text.control.after) == {1, 3} == set(fitter.text.moments)
