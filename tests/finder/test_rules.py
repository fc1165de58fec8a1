"""Rules choose what their papers say, and greedy is exact where laziness is."""

from itertools import combinations
from typing import Any

import pytest
import torch
from tests import families, tiny

import skimp
from skimp.calibration.replay import Replay, pack
from skimp.errors import SkimpError
from skimp.finder.choose import Choice, choose
from skimp.finder.harm import Harm, Scoring
from skimp.finder.rules import rules
from skimp.finder.trials import Trials, part_of
from skimp.measure.fidelity import fidelity

LAYERS = 4
SCORING = Scoring(even=40, far=20, block=4, skip=1)


def pick(name: str, rule: str, **kwargs: Any) -> Choice:
    model = families.build(name)
    return choose(model, None, rule=rule, calibration=tiny.calibration(), **kwargs)


def test_every_rule_is_registered_with_a_summary() -> None:
    assert set(rules()) == {"last", "cosine", "block-influence", "loss", "greedy"}
    assert all(rule.summary.endswith(".") for rule in rules().values())


def test_last_takes_the_last_and_keeps_what_it_must() -> None:
    model = families.build("llama")
    plain = choose(model, None, rule="last", drop_attention=2, fill="zero").plan
    kept = choose(model, None, rule="last", drop_attention=2, fill="zero", keep_last=1).plan
    count = model.config.num_hidden_layers
    assert plain.sections["drop"]["attention"] == [count - 2, count - 1]
    assert kept.sections["drop"]["attention"] == [count - 3, count - 2]


def test_only_greedy_keeps_the_last_layers_unasked() -> None:
    assert rules()["greedy"].keep_last(30) == 3
    assert rules()["greedy"].keep_last(4) == 0
    assert all(rule.keep_last(30) == 0 for name, rule in rules().items() if name != "greedy")


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "opt"])
@torch.no_grad()
def test_cosine_equals_a_plain_computation(name: str) -> None:
    model = families.build(name)
    calibration = tiny.calibration(count=1, longest=24)
    found = choose(
        model, None, rule="cosine", drop_attention=1, fill="zero", calibration=calibration
    )
    replay = Replay(model, pack(calibration.documents))
    hidden, scores = replay.entry[0], []
    for index in range(len(replay.layers)):
        traces, after = replay.watch(index, ["attention"], hidden, 0)
        before = hidden.double()
        behind = before + traces["attention"].output.double()
        cosine = (before * behind).sum(-1) / (before.norm(dim=-1) * behind.norm(dim=-1))
        scores.append(float(1 - cosine.mean()))
        hidden = after
    assert found.importance["attention"] == pytest.approx(scores, abs=1e-6)
    lowest = min(range(len(scores)), key=scores.__getitem__)
    assert found.plan.sections["drop"]["attention"] == [lowest]


def test_loss_ranks_by_the_harm_of_each_alone() -> None:
    found = pick("llama", "loss", drop_attention=2, fill="zero", harm="loss")
    ranked = sorted(range(LAYERS), key=lambda layer: found.importance["attention"][layer])[:2]
    assert found.plan.sections["drop"]["attention"] == sorted(ranked)


@pytest.mark.parametrize("fill", ["zero", "mean", "linear:4"])
def test_harm_on_trial_equals_harm_of_the_applied_plan(fill: str) -> None:
    found = pick("llama", "greedy", drop_attention=2, drop_ffn=1, fill=fill)
    model = families.build("llama")
    calibration = tiny.calibration()
    replay = Replay(model, pack(calibration.sample(10**6, 0)))
    harm = Harm(replay, "kl", scoring=Scoring())
    with skimp.apply(model, found.plan):
        planned = [
            Replay(model, [batch]).run(entry, 0, stop=model.config.num_hidden_layers)
            for batch, entry in zip(replay.batches, replay.entry, strict=True)
        ]
    assert harm(planned) == pytest.approx(found.calibration_loss, rel=1e-4)


def test_greedy_first_step_is_the_least_harmful_part() -> None:
    found = pick("llama", "greedy", drop_attention=3, fill="zero")
    alone = found.importance["attention"]
    first = found.path[0]
    assert first[:2] == ("attention", min(range(len(alone)), key=alone.__getitem__))
    harms = [harm for _, _, harm in found.path]
    assert harms[-1] == pytest.approx(found.calibration_loss, rel=1e-5)


def test_trials_see_joint_harm() -> None:
    model = families.build("llama")
    replay = Replay(model, pack(tiny.documents()))
    harm = Harm(replay, "kl", scoring=SCORING)
    fills = {place: {} for layer in range(LAYERS) for place in part_of("layer", layer).places}
    for first, second in combinations((0, 1, 3), 2):
        with Trials(replay, harm, fills) as one:
            one.leave_out(part_of("attention", first))
            forward = one.harm_without(part_of("ffn", second))
        with Trials(replay, harm, fills) as other:
            other.leave_out(part_of("ffn", second))
            backward = other.harm_without(part_of("attention", first))
        assert forward == pytest.approx(backward, rel=1e-5)
        assert forward > 0


def test_what_was_tried_last_does_not_matter() -> None:
    model = families.build("llama")
    replay = Replay(model, pack(tiny.documents()))
    harm = Harm(replay, "kl", scoring=SCORING)
    fills = {place: {} for layer in range(LAYERS) for place in part_of("layer", layer).places}
    attention = [part_of("attention", layer) for layer in range(LAYERS)]
    found = set()
    for tried in ([], [attention[1]], [attention[1], attention[2]], [attention[2], attention[1]]):
        with Trials(replay, harm, fills) as trials:
            for part in tried:
                trials.harm_without(part)
            trials.leave_out(attention[1])
            found.add((trials.harm_without(attention[0]), trials.harm_without(attention[3])))
    assert len(found) == 1


def test_trials_restore_the_model() -> None:
    model = families.build("gemma2")
    replay = Replay(model, pack(tiny.documents()))
    before = dict(model.named_modules())
    harm = Harm(replay, "kl", scoring=SCORING)
    fills = {place: {} for layer in range(LAYERS) for place in part_of("layer", layer).places}
    with Trials(replay, harm, fills) as trials:
        trials.leave_out(part_of("layer", 1))
        trials.harm_without(part_of("attention", 0))
    assert dict(model.named_modules()) == before


def test_choice_is_the_same_for_the_same_seed() -> None:
    one = pick("llama", "greedy", drop_attention=2, fill="linear:2", seed=5)
    two = pick("llama", "greedy", drop_attention=2, fill="linear:2", seed=5)
    assert one.plan.to_dict() == two.plan.to_dict()
    assert all(
        torch.equal(one.plan.values[name], two.plan.values[name]) for name in one.plan.values
    )


def test_whole_layers_and_sublayers_together() -> None:
    found = pick("llama", "greedy", drop_attention=1, drop_layers=2, fill="zero")
    section = found.plan.sections["drop"]
    assert len(section["attention"]) == 3
    assert len(section["ffn"]) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rule": "gredy", "drop_attention": 1}, "did you mean 'greedy'"),
        ({"rule": "last", "drop_attention": 9}, "drop.attention: 9 are to be left out"),
        ({"rule": "last"}, "nothing is to be left out"),
        ({"rule": "last", "drop_attention": -1}, "may not be negative"),
        ({"rule": "last", "drop_attention": 1, "fill": "linear:0"}, "drop.fill"),
        ({"rule": "last", "drop_attention": 4, "fill": "zero"}, "at least one attention"),
        ({"rule": "greedy", "drop_attention": 1}, "no tokenizer"),
    ],
)
def test_bad_requests_name_the_field(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SkimpError, match=says):
        choose(families.build("llama"), None, **settings)


def test_fills_on_trial_are_not_fitted_on_what_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    from skimp.finder import choose as module

    monkeypatch.setattr(module, "SCORED_TOKENS", 300)
    seen: dict[str, set[tuple[int, ...]]] = {}

    def rows(replay: Replay) -> set[tuple[int, ...]]:
        pairs = [pair for b in replay.batches for pair in zip(b.ids, b.real, strict=True)]
        return {tuple(ids[real].tolist()) for ids, real in pairs}

    def watched(replay: Replay, *args: Any) -> Any:
        seen["fitted"] = rows(replay)
        return fit_alone(replay, *args)

    def scored(replay: Replay, *args: Any, **kwargs: Any) -> Harm:
        seen["scored"] = rows(replay)
        return Harm(replay, *args, **kwargs)

    fit_alone = module.fit_alone
    monkeypatch.setattr(module, "fit_alone", watched)
    monkeypatch.setattr(module, "Harm", scored)
    calibration = tiny.calibration(count=80)
    choose(families.build("llama"), None, drop_attention=1, fill="mean", calibration=calibration)
    assert seen["fitted"] and seen["scored"] and not seen["fitted"] & seen["scored"]


def test_fills_lower_the_harm_on_their_own_text() -> None:
    model = families.build("llama")
    calibration = tiny.calibration(count=40)
    harms = {}
    for fill in ("zero", "mean", "linear:full"):
        plan = choose(
            model,
            None,
            rule="last",
            drop_attention=2,
            keep_last=1,
            fill=fill,
            calibration=calibration,
        ).plan
        documents = list(calibration.documents)
        harms[fill] = fidelity(model, lambda plan=plan: skimp.apply(model, plan), documents).kl
    assert harms["linear:full"] < harms["mean"] < harms["zero"]


def test_fills_are_tried_only_by_rules_that_try_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("fitted")

    monkeypatch.setattr("skimp.finder.choose.fit_alone", refuse)
    pick("llama", "cosine", drop_attention=1, fill="mean")
    with pytest.raises(AssertionError, match="fitted"):
        pick("llama", "loss", drop_attention=1, fill="mean")
