"""How many generated examples the laws try, and how these are drawn."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from tests.contract.cases import CASES, Case, plan_for
from tests.families import SAMPLES, Sample
from torch import nn

from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


def examples(few: int) -> settings:
    """`few` generated examples on a developer's machine, four times as many in CI."""
    ci = settings.get_current_profile_name() == "ci"
    return settings(max_examples=4 * few if ci else few, print_blob=True)


@dataclass(frozen=True)
class Drawn:
    """A generated plan with the tiny model it is for."""

    sample: Sample
    case: Case
    model: nn.Module
    anatomy: Anatomy
    plan: Plan

    def __repr__(self) -> str:
        return f"{self.sample.name}: {dict(self.plan.sections)}"


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    """Any case, any family that it fits, any plan of that case."""
    case = CASES[draw(st.sampled_from(list(CASES)))]
    sample = draw(st.sampled_from([each for each in SAMPLES.values() if case.fits(each)]))
    model = sample.build(seed=draw(st.integers(0, 3)))
    anatomy = Anatomy.of(model)
    section = draw(case.sections(anatomy.dense_layers))
    return Drawn(sample, case, model, anatomy, plan_for(case, section, anatomy))
