"""From foretold harms to a ladder of plans, rung by rung faster, corrected by measured joint harm.

The first frontier is exact if harms add up. What of that is wrong is measured: at some speeds what
all choices of a kind and offer add to the joint harm is set against the sum foretold, and the best
is picked anew with those factors until it moves no more. At every speed the pick with the factors
stands against the one without, and the joint harm decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from skimp.calibration.replay import Replay, pack
from skimp.finder.choices import WHOLE, Choice, Chosen, Place, SublayerOffer, offers
from skimp.finder.foretell import Foretold, foretell
from skimp.finder.harm import Harm, Scoring
from skimp.finder.knapsack import pick
from skimp.finder.menu import Menu
from skimp.finder.stage import Stage
from skimp.finder.state import State
from skimp.finder.texts import Texts
from skimp.progress import SILENT, Progress

SPEEDS = (1.02, 1.04, 1.07, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6, 1.75, 2.0)
PREPARING = 3072  # tokens that alternatives are prepared on
ANCHORS = (1.1, 1.4)  # speeds at which is measured how harms add up
_ROUNDS = 3  # of correction, at most
_LEAST_FACTOR, _TINY = 0.1, 1e-9
_BEHIND = 2.0  # times the harm of another group, at all anchors: given up
# What refitted output maps leave of the harm that plans do without (docs/log.md).
REPAIRED = 0.65

Factors = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Rung:
    """A plan of the ladder: its choices, and harms in nats per token on the choosing text.

    `whole` is the part of the joint harm that is that of what was chosen for the whole model.
    """

    chosen: Mapping[Place, Choice]
    group: str
    foretold: float
    joint: float
    whole: float = 0.0

    @property
    def repaired(self) -> float:
        """The joint harm to be expected once output maps are refitted, where they are."""
        left = 1.0 if self.group == "prompt" else REPAIRED
        return (self.joint - self.whole) * left + self.whole


class Ladder:
    """The search over choices for one model, on the choosing text; a context manager.

    Args:
        menu: every choice, at the prices to plan by.
        state: remembers what was measured.
    """

    def __init__(
        self,
        model: nn.Module,
        menu: Menu,
        texts: Texts,
        state: State,
        seed: int,
        progress: Progress = SILENT,
    ) -> None:
        self.menu, self._state, self._seed, self._progress = menu, state, seed, progress
        self._stage = _stage(model, menu, texts, progress)
        self.groups = sorted({offers()[c.offer].group for c in menu.choices} - {"drop"}) or [""]
        self._menus = {group: menu.of_groups(("drop", group)) for group in self.groups}
        self._corrections: dict[str, list[dict[str, Any]]] = {}
        self.foretold: Foretold = {}

    def __enter__(self) -> "Ladder":
        self._stage.__enter__()
        self.foretold = _read(self._state.remember("foretold", lambda: _plain(self._foretell())))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stage.__exit__(*error)

    def price(self, menu: Menu) -> None:
        """Plan by other prices from now on."""
        self.menu = menu
        self._menus = {group: menu.of_groups(("drop", group)) for group in self.groups}

    def first(self) -> list[tuple[float, float]]:
        """(speed, harm) of the frontier if harms added up."""
        found = []
        for speed in SPEEDS:
            sums = []
            for group in self.groups:
                chosen = self._pick(group, speed, {})
                if chosen is not None:
                    sums.append(self._sum(chosen))
            if sums:
                found.append((speed, min(sums)))
        return found

    def correct(self) -> None:
        """Learn at a few speeds how harms add up, and give up the group that is far behind."""
        for group in self.groups:
            found = [
                self._state.remember(
                    f"factors-{group or 'drop'}-{speed}",
                    lambda group=group, speed=speed: self._correction(group, speed),
                )
                for speed in ANCHORS
            ]
            self._corrections[group] = [each for each in found if each is not None]
        reached = {g: each for g, each in self._corrections.items() if each}
        if len(reached) > 1:
            ends = [{g: each[end]["joint"] for g, each in reached.items()} for end in (0, -1)]
            behind = [
                group
                for group in reached
                if all(end[group] > _BEHIND * min(end.values()) for end in ends)
            ]
            self.groups = [group for group in self.groups if group not in behind]

    def rungs(self, speed: float) -> list[Rung]:
        """The best plan of every group at a speed; none where nothing is so fast."""
        rungs = []
        for group in self.groups:
            name = f"rung-{group or 'drop'}-{speed:.4f}"
            found = self._state.remember(name, lambda group=group: self._rung(group, speed))
            if found is not None and found["chosen"]:
                rungs.append(_rung_of(found, group))
        return rungs

    def _foretell(self) -> Foretold:
        return foretell(self._stage, self.menu.choices, seed=self._seed, progress=self._progress)

    def _rung(self, group: str, speed: float) -> dict[str, Any] | None:
        """The better of the picks with and without correction, which measuring decides."""
        tried: dict[frozenset[Choice], tuple[float, dict[Place, Choice]]] = {}
        for factors in ({}, self._factors_near(group, speed)):
            chosen = self._pick(group, speed, factors)
            if chosen is None:
                return None
            key = frozenset(chosen.values())
            if key not in tried:
                tried[key] = self._joint(chosen), chosen
        joint, chosen = min(tried.values(), key=lambda each: each[0])
        return _plain_rung(chosen, self._sum(chosen), joint, self._whole(chosen))

    def _correction(self, group: str, speed: float) -> dict[str, Any] | None:
        """The factors that led to the least joint harm at a speed, and that harm."""
        factors: Factors = {}
        best: tuple[float, Factors] | None = None
        seen: list[Chosen] = []
        while len(seen) < _ROUNDS:
            chosen = self._pick(group, speed, factors)
            if chosen is None or chosen in seen:
                break
            seen.append(chosen)
            joint = self._joint(chosen)
            if best is None or joint < best[0]:
                best = joint, factors
            factors = self._factors(chosen, joint)
        if best is None:
            return None
        return {"factors": [[*name, value] for name, value in best[1].items()], "joint": best[0]}

    def _factors_near(self, group: str, speed: float) -> Factors:
        known = self._corrections.get(group)
        if not known:
            return {}
        nearest = min(range(len(known)), key=lambda number: abs(ANCHORS[number] - speed))
        return {(offer, kind): value for offer, kind, value in known[nearest]["factors"]}

    def _joint(self, chosen: Chosen) -> float:
        """The measured joint harm of sublayers, and that of what is chosen for the whole model.

        These two are taken to add up: how far they do shows where plans are judged.
        """
        parts = {place: choice for place, choice in chosen.items() if place != WHOLE}
        return self._stage.harm_of(parts) + self._whole(chosen)

    def _whole(self, chosen: Chosen) -> float:
        return self.menu.whole[chosen[WHOLE]].harm if WHOLE in chosen else 0.0

    def _factors(self, chosen: Chosen, whole: float) -> Factors:
        """How much more the choices of a kind and offer do together than was foretold."""
        parts: dict[tuple[str, str], dict[Place, Choice]] = {}
        for place, choice in chosen.items():
            if place != WHOLE:
                parts.setdefault((choice.offer, choice.kind), {})[place] = choice
        if len(parts) < 2:
            return {}
        found = {}
        for name, part in parts.items():
            # What is added by this part to all others, since harms grow by company.
            rest = {place: choice for place, choice in chosen.items() if place not in part}
            added = whole - self._joint(rest)
            found[name] = max(_LEAST_FACTOR, added / max(self._sum(part), _TINY))
        return found

    def _pick(self, group: str, speed: float, factors: Factors) -> dict[Place, Choice] | None:
        menu = self._menus[group]
        harms = {
            place: {choice: self._harm(choice, factors) for choice in own}
            for place, own in menu.savings.items()
        }
        found = pick(harms, menu.savings, menu.to_save(speed))
        return None if found is None else _with_attention(found, self.foretold, menu)

    def _harm(self, choice: Choice | None, factors: Factors) -> float:
        if choice is None:
            return 0.0
        if choice.place == WHOLE:  # measured, not foretold
            return self.menu.whole[choice].harm
        # What was not among the choices may do as much harm in company as any of them.
        factor = factors.get((choice.offer, choice.kind), max(factors.values(), default=1.0))
        return factor * self.foretold[choice.place][choice]

    def _sum(self, chosen: Chosen) -> float:
        return sum(self._harm(choice, {}) for choice in chosen.values())


def _with_attention(
    chosen: dict[Place, Choice], foretold: Foretold, menu: Menu
) -> dict[Place, Choice]:
    """The choices, one attention sublayer at least left in: positions come from its cache."""
    gone = [
        place for place, each in chosen.items() if place[1] == "attention" and each.offer == "drop"
    ]
    if len(gone) < menu.anatomy.dense_layers:
        return chosen
    worst = max(gone, key=lambda place: foretold[place][chosen[place]])
    return {place: choice for place, choice in chosen.items() if place != worst}


def _stage(model: nn.Module, menu: Menu, texts: Texts, progress: Progress) -> Stage:
    fitting = texts.fitting
    documents = fitting.sample(PREPARING, fitting.seed)
    replay = Replay(model, pack(documents))
    prepared = {
        name: cast("SublayerOffer", offer).prepare(
            replay, menu.anatomy, [c for c in menu.choices if c.offer == name], progress
        )
        for name, offer in offers().items()
        if any(choice.offer == name for choice in menu.choices)
    }
    windows = texts.choosing
    scored = Replay(model, pack(list(windows.ids)))
    scoring = Scoring(even=windows.tokens, far=0, skip=windows.prompt - 1)
    harm = Harm(scored, "kl", scoring=scoring)
    return Stage(scored, harm, windows.prompt, prepared)


def _plain(foretold: Foretold) -> list[list[Any]]:
    return [
        [choice.layer, choice.kind, choice.offer, choice.level, rise]
        for each in foretold.values()
        for choice, rise in each.items()
        if choice is not None
    ]


def _read(rows: Sequence[Sequence[Any]]) -> Foretold:
    found: Foretold = {}
    for layer, kind, offer, level, rise in rows:
        choice = Choice(layer, kind, offer, level)
        found.setdefault(choice.place, {None: 0.0})[choice] = rise
    return found


def _plain_rung(chosen: Chosen, foretold: float, joint: float, whole: float) -> dict[str, Any]:
    rows = [[c.layer, c.kind, c.offer, c.level] for c in sorted(chosen.values())]
    return {"chosen": rows, "foretold": foretold, "joint": joint, "whole": whole}


def _rung_of(data: Mapping[str, Any], group: str) -> Rung:
    choices = [Choice(*row) for row in data["chosen"]]
    return Rung(
        {c.place: c for c in choices}, group, data["foretold"], data["joint"], data["whole"]
    )
