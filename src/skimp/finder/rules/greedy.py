"""Greedy choice with lazy re-evaluation.

Each step leaves out the part that hurts least given those already out (BlockPruner, Zhong et al.,
2024, does so on perplexity). Harms from earlier steps stand in a queue as estimates; a part is
measured again only when its old estimate puts it in front (Minoux, 1978), which is exact while
harms do not shrink as more is left out, and a good guess otherwise.

The last layers stay by default: they look cheap one by one and in KL, stand in for each other, and
together carry words from the context into the answer (docs/log.md).
"""

import heapq
from collections import Counter

from skimp.finder.rules import Problem, Ruling, rule
from skimp.finder.trials import Part, Trials


@rule("greedy", keeps_one_in=10)
def greedy(problem: Problem) -> Ruling:
    """Best next part given those already left out; harm is measured with the fills in place."""
    text = problem.text
    parts = [part for name in problem.wanted for part in problem.candidates(name)]
    importance: dict[Part, float] = {}
    path: list[tuple[Part, float | None]] = []
    harm = text.harm.dense
    with Trials(text.replay, text.harm, text.fills) as trials:
        with problem.progress.task("leaving each part out alone", len(parts)) as step:
            for part in parts:
                importance[part] = trials.harm_without(part) - harm
                step()
        # Entries are (rise of harm, part, number of parts out when it was measured).
        queue = [(rise, part, 0) for part, rise in importance.items()]
        heapq.heapify(queue)
        total = sum(problem.counts.values())
        with problem.progress.task("choosing the next part to leave out", total) as step:
            while queue and len(path) < total:
                rise, part, seen = heapq.heappop(queue)
                if not _allowed(part, path, problem):
                    continue
                if seen < len(path):
                    rise = trials.harm_without(part) - harm
                    heapq.heappush(queue, (rise, part, len(path)))
                    continue
                trials.leave_out(part)
                harm += rise
                path.append((part, harm))
                step()
    return Ruling(tuple(part for part, _ in path), importance, tuple(path))


def _allowed(part: Part, path: list[tuple[Part, float | None]], problem: Problem) -> bool:
    """Whether the part's share is not used up and no piece of it is out already."""
    used = Counter(chosen.name for chosen, _ in path)
    out = {place for chosen, _ in path for place in chosen.places}
    return used[part.name] < problem.counts[part.name] and not out & set(part.places)
