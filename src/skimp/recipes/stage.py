"""The model that a recipe runs on, and its plans: engines and applied plans, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from skimp.engine import Engine
from skimp.errors import PlanError, RecipeError
from skimp.measure.shelf import identity
from skimp.methods.apply import apply
from skimp.methods.exit.section import by_exit
from skimp.methods.fit import fit_plan, needs_fit
from skimp.methods.registry import check
from skimp.models.anatomy import Anatomy
from skimp.plan import ModelRef, Plan
from skimp.progress import SILENT, Progress
from skimp.recipes import drops
from skimp.recipes.exits import ExitFit, ExitFits, parted
from skimp.recipes.recipe import DENSE, Recipe

if TYPE_CHECKING:
    from skimp.calibration.text import Calibration


@dataclass
class Stage:
    """A dense model with its tokenizer, and the recipe's plans for it; `seed` is of every draw.

    `fits`: the plans whose exits are to be fitted, `choices`: those whose drops are to be chosen;
    `plans` lack both.
    """

    model: Any
    tokenizer: Any
    anatomy: Anatomy
    plans: Mapping[str, Plan]
    seed: int = 0
    progress: Progress = SILENT
    fits: Mapping[str, ExitFit] = field(default_factory=dict)
    choices: Mapping[str, drops.DropChoice] = field(default_factory=dict)
    _exits: ExitFits | None = None
    _fitted: dict[str, Plan] = field(default_factory=dict)
    _calibration: Calibration | None = None
    _dense: Engine | None = None
    _planned: tuple[str, Engine] | None = None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        model: Any,
        tokenizer: Any,
        *,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> Stage:
        """Raises RecipeError for a plan that does not fit the model, and without a tokenizer."""
        if tokenizer is None:
            raise RecipeError(
                f"{recipe.path.name}: the model has no tokenizer, and a recipe reads text; give "
                "a trained model such as demo with --model."
            )
        anatomy = Anatomy.of(model)
        plans, fits, choices = {}, {}, {}
        for name, sections in recipe.plans.items():
            others, fit = parted(sections)
            try:
                others, choice = drops.parted(others)
                plan = Plan(ModelRef.of(anatomy), others)
                check(plan, anatomy)
                if choice is not None:
                    choices[name] = drops.DropChoice(**choice)
                    choices[name].count(anatomy.dense_layers)
                if fit is not None:
                    fits[name] = ExitFit(**fit)
                    fits[name].section(anatomy)
            except PlanError as error:
                raise RecipeError(f"{recipe.path.name}: plans.{name}.{error}") from None
            plans[name] = plan
        return cls(model, tokenizer, anatomy, plans, seed, progress, fits, choices)

    def engine(self, plan: str) -> Engine:
        """An engine with the plan on. Only the dense one and the last planned one are kept."""
        if plan == DENSE:
            self._dense = self._dense or self._ready(None)
            return self._dense
        if self._planned is None or self._planned[0] != plan:
            self._planned = None  # free before the next takes memory
            self._planned = (plan, self._ready(self.fitted(plan)))
        return self._planned[1]

    def _ready(self, plan: Plan | None) -> Engine:
        # Else the clock decides at which token the engine changes over to its own program, and with
        # it the last digit of what is measured.
        engine = Engine(self.model, plan)
        engine.warm_up()
        return engine

    def applied(self, plan: str) -> AbstractContextManager[Any]:
        """A context in which the model itself carries the plan."""
        if plan == DENSE:
            return nullcontext()
        return apply(self.model, self.fitted(plan), anatomy=self.anatomy)

    def exits(self, plan: str) -> bool:
        """Whether tokens may leave early by the plan."""
        return plan in self.fits or (plan != DENSE and by_exit(self.plans[plan]) is not None)

    def fitted(self, plan: str) -> Plan:
        """The plan with whatever it needs chosen and fitted, on calibration text made once."""
        if plan not in self._fitted:
            made = self.plans[plan]
            if plan in self.choices:
                made = self._chosen(made, self.choices[plan])
            if needs_fit(made, self.anatomy):
                made = fit_plan(self.model, made, self._text(), progress=self.progress)
            if plan in self.fits:
                if self._exits is None:
                    self._exits = ExitFits(self.model, self.anatomy, self.progress)
                made = self._exits.fitted(made, self.fits[plan], self._text(), self.seed)
            self._fitted[plan] = made
        return self._fitted[plan]

    def _chosen(self, plan: Plan, choice: drops.DropChoice) -> Plan:
        text = self._text() if choice.reads_text(plan) else None
        return choice.chosen(self.model, plan, text, self.seed, self.progress)

    def identity(self) -> dict[str, Any]:
        """What results hang on besides the recipe: the very weights, their format, the device."""
        return {**identity(self.model), "seed": self.seed}

    def _text(self) -> Calibration:
        from skimp.calibration.text import calibrate

        if self._calibration is None:
            self._calibration = calibrate(
                self.model, self.tokenizer, seed=self.seed, progress=self.progress
            )
        return self._calibration
