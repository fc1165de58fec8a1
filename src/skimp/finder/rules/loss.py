"""One at a time: the rise of calibration harm when one part alone is left out."""

from skimp.finder.rules import Problem, Ruling, lowest, rule
from skimp.finder.trials import Trials


@rule("loss")
def loss(problem: Problem) -> Ruling:
    """Least harm on calibration text when that part alone is left out."""
    text = problem.text
    parts = [part for name in problem.wanted for part in problem.candidates(name)]
    importance = {}
    with (
        Trials(text.replay, text.harm, text.fills) as trials,
        problem.progress.task("leaving each part out alone", len(parts)) as step,
    ):
        for part in parts:
            importance[part] = trials.harm_without(part) - text.harm.dense
            step()
    return lowest(problem, importance)
