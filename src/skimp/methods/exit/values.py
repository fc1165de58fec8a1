"""The names and shapes of a section's fitted tensors in the plan: `exit.KIND.WHERE.NAME`.

`translator.LAYER.weight` [d, d], or `down` [r, d] and `up` [d, r]; and `bias` [d].
`screen.states.centres` [C, d], `screen.states.tokens` int32 [C, K], ascending in each row, and
`screen.states.reach` [C] and `slope` [d], whose sum (with the state) is the log-odds that the full
model's token is among them.
`rule.LAYER.weight` [F] and `bias` [1]; with a CRF `transition` [2, 2] from the probe before, too.
`promise.levels.agreement` and `threshold`, both [n]: what was calibrated.
"""

from collections.abc import Mapping

from torch import Tensor

from skimp.errors import PlanError
from skimp.methods.exit.features import FEATURES
from skimp.methods.exit.section import SECTION, Exit
from skimp.models.anatomy import Anatomy

CENTRES = f"{SECTION}.screen.states.centres"
TOKENS = f"{SECTION}.screen.states.tokens"
REACH = f"{SECTION}.screen.states.reach"
SLOPE = f"{SECTION}.screen.states.slope"
AGREEMENTS = f"{SECTION}.promise.levels.agreement"
THRESHOLDS = f"{SECTION}.promise.levels.threshold"
LEVELS = (0.99, 0.95, 0.90)
REMEDY = "fit the exits with `skimp fit-exit MODEL`"


def translator_name(layer: int, name: str) -> str:
    """What a tensor of a layer's translator is called."""
    return f"{SECTION}.translator.{layer}.{name}"


def rule_name(layer: int, name: str) -> str:
    """What a tensor of a layer's rule is called."""
    return f"{SECTION}.rule.{layer}.{name}"


def translated(section: Exit, anatomy: Anatomy) -> tuple[int, ...]:
    """The probed layers that have a translator: not the last, whose state is the final one."""
    if section.translator == "plain":
        return ()
    return tuple(layer for layer in section.probe if layer < anatomy.dense_layers - 1)


def shapes(section: Exit, anatomy: Anatomy) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the section must have before it can be applied."""
    size, found = anatomy.hidden_size, dict[str, tuple[int, ...]]()
    for layer in translated(section, anatomy):
        rank = section.translator
        if isinstance(rank, int):
            found[translator_name(layer, "down")] = (rank, size)
            found[translator_name(layer, "up")] = (size, rank)
        else:
            found[translator_name(layer, "weight")] = (size, size)
        found[translator_name(layer, "bias")] = (size,)
    if section.probe and section.screen:
        found[CENTRES] = (section.screen, size)
        found[TOKENS] = (section.screen, section.candidates)
        found[REACH] = (section.screen,)
        found[SLOPE] = (size,)
    if section.rule != "threshold":
        for number, layer in enumerate(section.probe):
            found[rule_name(layer, "weight")] = (len(FEATURES),)
            found[rule_name(layer, "bias")] = (1,)
            if section.rule == "crf" and number:
                found[rule_name(layer, "transition")] = (2, 2)
    return found


def check(section: Exit, anatomy: Anatomy, values: Mapping[str, Tensor]) -> None:
    """Raise PlanError unless every fitted tensor is there in its shape, the threshold included."""
    for name, shape in shapes(section, anatomy).items():
        if name not in values:
            raise PlanError(f"exit: it has not been fitted ({name} is missing); {REMEDY}.")
        if tuple(values[name].shape) != shape:
            raise PlanError(
                f"{name}: has shape {tuple(values[name].shape)}, but {shape} is needed; {REMEDY}."
            )
        if not values[name].isfinite().all():
            raise PlanError(f"{name}: holds NaN or infinity; {REMEDY}.")
    if section.screen and section.probe:
        tokens = values[TOKENS]
        if tokens.min() < 0 or tokens.max() >= anatomy.vocabulary:
            raise PlanError(f"{TOKENS}: names tokens that the model does not have; {REMEDY}.")
    if section.probe:
        threshold(section, values)


def asked_levels(section: Exit) -> list[float]:
    """The agreements that a fit of the section calibrates, from the strictest on."""
    return sorted({*LEVELS, section.promised or LEVELS[0]}, reverse=True)


def threshold(section: Exit, values: Mapping[str, Tensor]) -> float:
    """The score to reach: the section's own, or the one calibrated for the promised agreement.

    Raises:
        PlanError: that agreement was not calibrated, or what was is no threshold.
    """
    promised = section.promised
    if promised is None:
        assert section.threshold is not None
        return section.threshold
    if AGREEMENTS not in values or THRESHOLDS not in values:
        raise PlanError(f"exit.agreement: no threshold was calibrated for it; {REMEDY}.")
    if values[AGREEMENTS].dim() != 1 or values[AGREEMENTS].shape != values[THRESHOLDS].shape:
        raise PlanError(f"{THRESHOLDS}: should hold one number for each agreement; {REMEDY}.")
    if values[AGREEMENTS].isnan().any() or values[THRESHOLDS].isnan().any():
        raise PlanError(f"{THRESHOLDS}: holds NaN; {REMEDY}.")
    levels, found = values[AGREEMENTS].tolist(), values[THRESHOLDS].tolist()
    for level, score in zip(levels, found, strict=True):
        if abs(level - promised) < 1e-6:
            return score
    known = ", ".join(f"{level:g}" for level in levels)
    raise PlanError(
        f"exit.agreement: {promised:g} was not calibrated; take one of {known}, or fit again with "
        f"`skimp fit-exit MODEL --agreement {promised:g}`."
    )
