"""Errors that a user can act on.

Every message is one sentence that names the field or file at fault and the remedy. The command
line prints it without a traceback; library users catch :class:`SkimpError`.
"""


class SkimpError(Exception):
    """Base of everything skimp raises on purpose."""


class LoadError(SkimpError):
    """A model, tokenizer or file cannot be loaded."""


class PlanError(SkimpError):
    """A plan is malformed or does not fit the model; the message names the field."""


class CalibrationError(SkimpError):
    """Calibration text is missing, empty or too short."""


class EvaluationError(SkimpError):
    """A task, metric or data file cannot be used."""


class WorkloadError(SkimpError):
    """A workload cannot be parsed or does not fit the model or the memory."""


class RequestError(SkimpError):
    """A request to the engine cannot be served; the message names what would fit."""


class ExportError(SkimpError):
    """A model cannot be written for an engine, or not verified in it; the message says why."""


class RecipeError(SkimpError):
    """A recipe is malformed, or the data it names are not there; the message names the field."""


NEEDS_SCIPY = "--budget: the search needs scipy; pip install 'skimp[plan]'."
