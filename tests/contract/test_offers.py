"""Whatever a method offers, in every family: it makes a plan that can be fitted, applied and told
the cost of."""

import pytest
import torch
from tests import families, tiny

from skimp.finder.choices import Setting, offers, plan_of
from skimp.finder.menu import Menu
from skimp.finder.prices import Bytes
from skimp.finder.stage import by_place
from skimp.finder.texts import cut
from skimp.finder.whole import whole_offers
from skimp.methods.apply import apply
from skimp.methods.fit import fit_plan
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.progress import SILENT
from skimp.workload import Workload


@pytest.mark.parametrize("name", families.listed())
@pytest.mark.parametrize("offer", sorted(offers()))
def test_choices_make_plans(offer: str, name: str) -> None:
    model = families.build(name)
    anatomy = Anatomy.of(model)
    own = offers()[offer].choices(model, anatomy)
    assert {choice.offer for choice in own} <= {offer}
    places = by_place(own)
    if not places:
        pytest.skip("nothing is offered for this family")
    # One choice for every third place, each at another level.
    chosen = {
        place: choices[number % len(choices)]
        for number, (place, choices) in enumerate(list(places.items())[::3])
    }
    plan = fit_plan(model, plan_of(chosen, anatomy), tiny.calibration(count=24))
    told = reduce(plan, anatomy)
    ids = torch.stack([each[:8] for each in tiny.documents()])
    with apply(model, plan):
        assert Anatomy.of(model).parameters == told.parameters
        with torch.no_grad():
            assert bool(model(ids).logits.isfinite().all())


@pytest.mark.parametrize("name", families.listed())
def test_everything_on_the_menu_saves_something(name: str) -> None:
    menu = Menu.of(families.build(name), Workload.parse("64+32x1"), Bytes())
    assert menu.choices
    for each in menu.savings.values():
        for choice, saved in each.items():
            assert (saved == 0) if choice is None else choice.offer == "drop" or saved > 0


@pytest.mark.parametrize("name", families.listed())
@pytest.mark.parametrize("offer", sorted(whole_offers()))
def test_what_is_offered_for_the_whole_model_pays_or_says_why_not(offer: str, name: str) -> None:
    model = families.build(name)
    text = tiny.calibration(count=24)
    work = Workload.parse("64+32x1")
    setting = Setting(text, cut(text.documents, 4, "choose"), work, by_time=False)
    gains, reason = whole_offers()[offer].look(model, setting, SILENT)
    assert bool(gains) != bool(reason)
    for gain in gains:
        assert 0 < gain.saved < 1 and gain.harm >= 0
        assert plan_of({gain.choice.place: gain.choice}, Anatomy.of(model)).sections
