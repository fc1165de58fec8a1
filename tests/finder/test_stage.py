"""A choice on the stage does what its plan does, and what is foretold is what happens."""

import pytest
import torch
from tests import families, tiny
from torch import Tensor, nn

from skimp.calibration.replay import Replay, pack
from skimp.finder.choices import Choice, offers, plan_of
from skimp.finder.foretell import foretell
from skimp.finder.harm import Harm, Scoring
from skimp.finder.spread import Thin
from skimp.finder.stage import Stage
from skimp.methods.apply import apply
from skimp.methods.drop.closed_form import Values
from skimp.methods.drop.fit import fit_alone
from skimp.methods.drop.section import FillKind
from skimp.methods.drop.values import flatten
from skimp.methods.experts.deciding import Chooser
from skimp.methods.experts.modules import guided
from skimp.methods.fit import fit_plan
from skimp.models.anatomy import Anatomy
from skimp.progress import SILENT

PROMPT, LENGTH = 12, 24
FAMILIES = ("llama", "opt", "gemma2", "gpt_neox", "phi3")


def texts() -> list[Tensor]:
    return list(torch.stack([each[:LENGTH] for each in long_documents()]))


def long_documents() -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    return [torch.randint(2, families.VOCABULARY, (30,), generator=random) for _ in range(5)]


def stage_of(model: nn.Module) -> tuple[Stage, list[Choice]]:
    anatomy = Anatomy.of(model)
    fitting = Replay(model, pack(long_documents()))
    choices: list[Choice] = []
    prepared = {}
    for name, offer in offers().items():
        if offer.acts_on == "model":
            continue
        own = offer.choices(model, anatomy)
        prepared[name] = offer.prepare(fitting, anatomy, own, SILENT)
        choices += own
    replay = Replay(model, pack(texts()))
    scoring = Scoring(even=5 * (LENGTH - PROMPT), far=0, skip=PROMPT - 1)
    return Stage(replay, Harm(replay, scoring=scoring), PROMPT, prepared), choices


def fitted_alone(model: nn.Module, choice: Choice) -> Values:
    replay = Replay(model, pack(long_documents()))
    return flatten(fit_alone(replay, [choice.place], FillKind.parse(choice.level)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_choice_on_the_stage_does_what_its_plan_does(name: str) -> None:
    model = families.build(name)
    anatomy = Anatomy.of(model)
    with stage_of(model)[0] as stage:
        found = {
            kind: stage.harm_of({(1, kind): Choice(1, kind, "drop", _fill(model))})
            for kind in ("attention", "ffn")
        }
    scored = stage.harm
    for kind, harm in found.items():
        choice = Choice(1, kind, "drop", _fill(model))
        plan = plan_of({choice.place: choice}, anatomy)
        section = {**plan.sections["drop"], "repair": "none"}
        plan = plan.with_section("drop", section).with_values(fitted_alone(model, choice))
        with apply(model, plan):
            replay = Replay(model, pack(texts()))
            real = scored([replay.run(e, b) for b, e in enumerate(replay.entry)])
        assert harm == pytest.approx(real, rel=1e-3, abs=1e-6)


def _fill(model: nn.Module) -> str:
    return next(c.level for c in offers()["drop"].choices(model, Anatomy.of(model)))


@pytest.mark.parametrize("name", FAMILIES)
def test_narrower_on_the_stage_is_narrower_in_the_plan(name: str) -> None:
    model = families.build(name)
    anatomy = Anatomy.of(model)
    choice = Choice(2, "ffn", "narrow", "0.5")
    with stage_of(model)[0] as stage:
        harm = stage.harm_of({choice.place: choice})
    section = {**offers()["narrow"].sections([choice], anatomy)["experts"], "repair": "none"}
    plan = plan_of({}, anatomy).with_section("experts", section)
    text = tiny.calibration()
    text = type(text)(tuple(long_documents()), ("random",) * 5, "random")
    plan = fit_plan(model, plan, text)
    with apply(model, plan):
        replay = Replay(model, pack(texts()))
        real = stage.harm([replay.run(e, b) for b, e in enumerate(replay.entry)])
    assert harm == pytest.approx(real, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_on_the_stage_are_those_of_the_plan(name: str) -> None:
    """Answers alone are thinned, by what their prompts chose."""
    model = families.build(name)
    choice = Choice(2, "ffn", "experts", "0.5")
    with stage_of(model)[0] as stage:
        harm = stage.harm_of({choice.place: choice})
    text = tiny.calibration()
    text = type(text)(tuple(long_documents()), ("random",) * 5, "random")
    plan = fit_plan(model, plan_of({choice.place: choice}, Anatomy.of(model)), text)
    with apply(model, plan):
        replay = Replay(model, pack(texts()))
        chooser = Chooser(model)
        finals = []
        for batch, entry in enumerate(replay.entry):
            with guided(Thin(chooser, len(entry), PROMPT)):
                finals.append(replay.run(entry, batch))
        real = stage.harm(finals)
    assert harm == pytest.approx(real, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_foretold_is_what_happens(name: str) -> None:
    """Every single choice: foretold and measured go together, in proportion and of one size."""
    model = families.build(name)
    stage, choices = stage_of(model)
    some = [choice for choice in choices if choice.level in (_fill(model), "0.9", "0.5")]
    with stage:
        rises = foretell(stage, choices)
        told = torch.tensor([rises[choice.place][choice] for choice in some])
        real = torch.tensor([stage.harm_of({choice.place: choice}) for choice in some])
    ranks = torch.stack([each.argsort().argsort().float() for each in (told, real)])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.8
    assert 0.3 < float(told.sum() / real.sum()) < 3
    spread = torch.stack([real.log(), told.log()]).cov()
    assert 0.75 < float(spread[0, 1] / spread[0, 0]) < 1.4  # a half, were they not squared


def test_trials_leave_nothing_behind() -> None:
    model = families.build("llama")
    stage, choices = stage_of(model)
    tried = {(1, "attention"): Choice(1, "attention", "drop", _fill(model))}
    tried[2, "ffn"] = Choice(2, "ffn", "narrow", "0.5")
    with stage:
        rises = foretell(stage, choices)
        harm = stage.harm_of(tried)
        assert stage.harm_of({}) == pytest.approx(0, abs=1e-6)
        assert stage.harm_of(tried) == harm > 0
        assert foretell(stage, choices) == rises
        assert {own[None] for own in rises.values()} == {0}


def test_the_model_is_left_as_it_was() -> None:
    model = families.build("llama")
    ids = torch.stack(texts())
    with torch.no_grad():
        before = model(ids).logits
    stage, choices = stage_of(model)
    with stage:
        stage.harm_of({choices[0].place: choices[0]})
    with torch.no_grad():
        after = model(ids).logits
    assert torch.equal(before, after)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
