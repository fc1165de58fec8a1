"""skimp: make a trained causal language model cheaper to run without retraining it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from skimp.calibration.text import calibrate
    from skimp.engine import Engine
    from skimp.finder.choose import choose
    from skimp.methods.apply import Applied, apply
    from skimp.methods.fit import fit
    from skimp.methods.folder import save
    from skimp.models.anatomy import Anatomy
    from skimp.models.load import Loaded, load
    from skimp.plan import Plan
    from skimp.workload import Workload

# Torch and transformers take seconds to import, so each name is fetched when it is first used.
_HOME = {
    "Anatomy": "skimp.models.anatomy",
    "Applied": "skimp.methods.apply",
    "Engine": "skimp.engine",
    "Loaded": "skimp.models.load",
    "Plan": "skimp.plan",
    "Workload": "skimp.workload",
    "apply": "skimp.methods.apply",
    "calibrate": "skimp.calibration.text",
    "choose": "skimp.finder.choose",
    "fit": "skimp.methods.fit",
    "load": "skimp.models.load",
    "save": "skimp.methods.folder",
}

__all__ = [
    "Anatomy",
    "Applied",
    "Engine",
    "Loaded",
    "Plan",
    "Workload",
    "apply",
    "calibrate",
    "choose",
    "fit",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
