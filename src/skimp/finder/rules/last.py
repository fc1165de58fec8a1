"""Tyukin et al. (2024): the last k sublayers."""

from skimp.finder.rules import Problem, Ruling, rule


@rule("last", reads_text=False)
def last(problem: Problem) -> Ruling:
    """The last ones, before those kept by --keep-last (Tyukin et al., 2024)."""
    chosen = [
        part
        for name in problem.wanted
        for part in reversed(problem.candidates(name)[-problem.counts[name] :])
    ]
    return Ruling(tuple(chosen), path=tuple((part, None) for part in chosen))
