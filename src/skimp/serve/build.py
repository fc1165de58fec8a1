"""From a loaded model to what a server serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skimp.engine import Engine
from skimp.errors import SkimpError
from skimp.models.load import Loaded
from skimp.plan import Plan
from skimp.serve.jobs import Limits
from skimp.serve.scheduler import Scheduler
from skimp.serve.service import Service
from skimp.serve.terms import Settings, Terms
from skimp.serve.texts import Texts


def build(
    loaded: Loaded,
    plan: Plan | None,
    *,
    name: str,
    compare: bool,
    limits: Limits,
    settings: Settings,
    about: Mapping[str, Mapping[str, Any]] | None = None,
) -> Service:
    """Engines over one model's weights, and a running scheduler before them.

    `name`: what clients call the model. `compare`: serve the dense model too, as `NAME:dense`.
    `about`: what to say of each side.

    Raises:
        SkimpError: the model has no tokenizer, or there is nothing to compare.
    """
    if loaded.tokenizer is None:
        raise SkimpError(f"{loaded.source} has no tokenizer, which a server needs; take another.")
    carried = loaded.plan is not None and any(loaded.plan.sections.values())
    planned = carried or (plan is not None and any(plan.sections.values()))
    if compare and (carried or not planned):
        why = "already carries its plan" if carried else "is served dense"
        raise SkimpError(
            f"--compare: {loaded.source} {why}, so there is nothing to compare; give a dense model "
            "and a --plan."
        )
    side = "planned" if planned else "dense"
    engines = {side: Engine(loaded.model, plan)}
    models = {name: side}
    if compare:
        engines["dense"] = Engine(loaded.model)
        models[f"{name}:dense"] = "dense"
    anatomy = engines[side].anatomy
    texts = Texts(loaded.tokenizer)
    terms = Terms(
        models=models,
        context=anatomy.context_length,
        vocabulary=anatomy.vocabulary,
        chat=texts.chat,
        choices=limits.waiting,
        new=settings.new,
        timeout_s=settings.timeout_s,
        allow=settings.allow,
    )
    scheduler = Scheduler(engines, loaded.tokenizer, limits)
    scheduler.start()
    layers = {side: len(engine.anatomy.layers) for side, engine in engines.items()}
    return Service(scheduler, texts, terms, layers, about or {})
