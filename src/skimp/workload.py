"""The work a model does: `PROMPT+NEWxBATCH`, e.g. `512+128x1`."""

import re
from dataclasses import dataclass
from typing import Self

from skimp.errors import WorkloadError

_PATTERN = re.compile(r"(\d+)\+(\d+)(?:x(\d+))?")


@dataclass(frozen=True)
class Workload:
    """Prompt tokens and new tokens of one sequence, and how many sequences run at once."""

    prompt: int
    new: int
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt", "new", "batch"):
            if getattr(self, name) < 1:
                raise WorkloadError(f"workload: {name} must be at least 1.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `PROMPT+NEW` or `PROMPT+NEWxBATCH`; raises WorkloadError on anything else."""
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise WorkloadError(
                f"workload {text!r} is not of the form PROMPT+NEWxBATCH, for example 512+128x1."
            )
        prompt, new, batch = match.groups()
        return cls(int(prompt), int(new), int(batch or 1))

    @property
    def mean_context(self) -> float:
        """Average number of cached tokens that a decode step reads, per sequence."""
        return self.prompt + (self.new - 1) / 2

    def __str__(self) -> str:
        return f"{self.prompt}+{self.new}x{self.batch}"
