"""The `exit` method: nothing leaves the model, but tokens may leave it early (engine/exits.py)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from skimp.calibration.replay import Replay
from skimp.methods.base import Applying
from skimp.methods.exit import values
from skimp.methods.exit.section import SECTION, Exit, ExitFile, read_section
from skimp.models.anatomy import Anatomy
from skimp.models.head import Head
from skimp.progress import Progress


class ExitMethod:
    """Stop at the layer where a token is decided (AdaInfer, Fan et al., 2024)."""

    name = SECTION
    schema = ExitFile
    on_planned = True

    def read(self, data: Mapping[str, Any]) -> Exit:
        return read_section(data)

    def check(self, section: Exit, anatomy: Anatomy) -> None:
        section.check(anatomy)

    def needs_values(self, section: Exit) -> bool:
        return section.needs_values

    def tokens(self, section: Exit) -> int | None:
        return None

    def fit(
        self, section: Exit, anatomy: Anatomy, replay: Replay, progress: Progress
    ) -> dict[str, Tensor]:
        from skimp.methods.exit.fit import fit_values

        return fit_values(section, replay, progress)

    def apply(self, section: Exit, work: Applying) -> None:
        """Only see that the engine can do it: a model by itself knows no early exit."""
        if section.probe:
            values.check(section, work.anatomy, work.values)
            Head.of(work.model)

    def reduce(self, section: Exit, anatomy: Anatomy) -> Anatomy:
        """How early tokens leave hangs on the text, so no byte is promised to be left out."""
        return anatomy


METHOD = ExitMethod()
