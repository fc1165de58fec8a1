"""What a probe sees and says, against a straightforward reference in float64."""

import itertools
import math

import pytest
import torch
from tests import families

from skimp.errors import PlanError
from skimp.methods.exit.controllers import Chain, Linear, Threshold
from skimp.methods.exit.features import FEATURES, features, likeliest
from skimp.methods.exit.probe import Look, Probes
from skimp.methods.exit.section import Exit
from skimp.methods.exit.values import shapes
from skimp.models.anatomy import Anatomy
from skimp.models.head import Head, final_norm

HEADED = [name for name in families.SAMPLES if name != "opt-post-norm"]


def made(section: Exit, anatomy: Anatomy, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values for everything the section wants."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(section, anatomy).items():
        if name.endswith("tokens"):
            rows = [
                torch.randperm(anatomy.vocabulary, generator=generator) for _ in range(shape[0])
            ]
            found[name] = torch.stack([row[: shape[1]].sort().values for row in rows]).int()
        else:
            found[name] = torch.randn(shape, generator=generator) / 4
    return found


@pytest.mark.parametrize("name", HEADED)
def test_the_head_is_the_models_own(name: str) -> None:
    model = families.build(name)
    head, anatomy = Head.of(model), Anatomy.of(model)
    states = torch.randn(5, anatomy.hidden_size)
    logits = head.logits(states)
    ids = torch.tensor([3, 5, 50], dtype=torch.int32)
    torch.testing.assert_close(head.rows(states, ids), logits[:, ids])
    torch.testing.assert_close(head.rows(states, ids.expand(5, 3)), logits[:, ids])
    torch.testing.assert_close(head.rows(states[:1], ids[None]), logits[:1, ids])


def test_a_model_without_a_final_norm_is_refused() -> None:
    with pytest.raises(PlanError, match="has no final norm"):
        Head.of(families.build("opt-post-norm"))


def test_a_head_that_does_more_is_refused() -> None:
    model = families.build("llama")
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: out + 1)  # type: ignore
    with pytest.raises(PlanError, match="does more than multiply and cap"):
        Head.of(model)


def test_features_are_what_they_are_called() -> None:
    logits = torch.randn(6, 40) * 5
    before = torch.tensor([1.0, 0, 1, 0, 0, 1])
    reach = torch.arange(6.0)
    values, place = likeliest(logits)
    seen = features(logits, values, before, reach)
    for row in range(6):
        shares = torch.softmax(logits[row].double(), 0).sort(descending=True).values
        high = logits[row].double().sort(descending=True).values
        wanted = {
            "gap": shares[0] - shares[1],
            "top_prob": shares[0],
            "logit_gap": (high[0] - high[1]) / 10,
            "logit": high[0] / 10,
            "same": before[row],
            "reach": reach[row],
        }
        assert list(wanted) == list(FEATURES)
        reference = torch.stack([torch.as_tensor(value).float() for value in wanted.values()])
        torch.testing.assert_close(seen[row], reference)
        assert place[row] == logits[row].argmax()


def test_of_equal_logits_the_first_counts() -> None:
    logits = torch.zeros(2, 50, dtype=torch.bfloat16)
    logits[0, [7, 30, 31]] = 2
    values, place = likeliest(logits)
    assert place.tolist() == [7, 0]
    assert values.tolist() == [[2, 2], [0, 0]]


CASES = [
    Exit((1, 2, 3), rule="svm", threshold=0.0),
    Exit((1, 2), rule="threshold", translator="plain", threshold=0.5),
    Exit((0, 2, 3), rule="crf", translator=4, threshold=0.0),
    Exit((1, 2, 3), rule="crf", candidates=9, screen=4, threshold=0.0),
    Exit((1, 3), rule="svm", candidates=9, threshold=0.0),
]


@pytest.mark.parametrize("section", CASES)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_looks_equal_a_reference(name: str, section: Exit) -> None:
    model = families.build(name)
    anatomy, head, norm = Anatomy.of(model), Head.of(model), final_norm(model)
    last = anatomy.dense_layers - 1
    values = made(section, anatomy)
    probes = Probes(section, values, norm, head)
    trace = probes.begin(5)
    tokens, scores, short = None, None, None
    for index, layer in enumerate(section.probe):
        hidden = torch.randn(5, anatomy.hidden_size)
        look = probes.look(index, hidden, trace)
        z = norm(hidden).detach()
        if section.translator != "plain" and layer < last:
            bias = values[f"exit.translator.{layer}.bias"]
            if section.translator == "full":
                z = z @ values[f"exit.translator.{layer}.weight"].T + bias
            else:
                down, up = (values[f"exit.translator.{layer}.{n}"] for n in ("down", "up"))
                z = z @ down.T @ up.T + bias
        logits = head.logits(z)
        reach = torch.zeros(5)
        if section.screen:
            centres = values["exit.screen.states.centres"]
            kinds = torch.cdist(z.double(), centres.double()).argmin(1)
            short = values["exit.screen.states.tokens"][kinds]
            reach = values["exit.screen.states.reach"][kinds]
            reach = reach + z @ values["exit.screen.states.slope"]
        elif section.candidates and short is None:
            short = logits.topk(section.candidates).indices.sort(-1).values
        kept = logits if short is None else logits.gather(1, short.long())
        found = kept.argmax(1) if short is None else short.gather(1, kept.argmax(1)[:, None])[:, 0]
        same = torch.zeros(5) if tokens is None else (found == tokens).float()
        seen = features(kept, kept.topk(2).values, same, reach)
        if section.rule == "threshold":
            wanted = seen[:, 0]
        else:
            wanted = seen @ values[f"exit.rule.{layer}.weight"] + values[f"exit.rule.{layer}.bias"]
        if section.rule == "crf" and scores is not None:
            step = values[f"exit.rule.{layer}.transition"]
            before = torch.stack([torch.zeros(5), scores], 1)
            into = torch.logsumexp(before[:, :, None] + step, 1)
            wanted = wanted + into[:, 1] - into[:, 0]
        torch.testing.assert_close(look.score, wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(look.token, found)
        full = look.full(anatomy.vocabulary)
        assert torch.equal(full.argmax(1), found)
        mask = torch.full_like(logits, -torch.inf)
        mask = logits if short is None else mask.scatter(1, short.long(), kept)
        torch.testing.assert_close(full, mask)
        tokens, scores = found, wanted


@pytest.mark.parametrize("section", CASES)
def test_rows_of_a_batch_do_not_depend_on_each_other(section: Exit) -> None:
    model = families.build("llama")
    anatomy = Anatomy.of(model)
    probes = Probes(section, made(section, anatomy), final_norm(model), Head.of(model))
    states = torch.randn(len(section.probe), 4, anatomy.hidden_size)
    together = probes.begin(4)
    alone = [probes.begin(1) for _ in range(4)]
    for index, hidden in enumerate(states):
        look = probes.look(index, hidden, together)
        for row in range(4):
            own = probes.look(index, hidden[row : row + 1], alone[row])
            torch.testing.assert_close(own.score, look.score[row : row + 1])
            assert own.token == look.token[row]
            assert torch.equal(
                own.full(anatomy.vocabulary).isinf(), look.full(anatomy.vocabulary)[[row]].isinf()
            )


def test_a_probe_of_all_tokens_shows_all_logits() -> None:
    logits = torch.randn(2, 5)
    assert Look(torch.zeros(2), None, logits, logits.argmax(1)).full(5) is logits


def test_filtered_marginals_equal_enumeration() -> None:
    generator = torch.Generator().manual_seed(0)
    count = 4
    weights = list(torch.randn(count, len(FEATURES), generator=generator))
    biases = torch.randn(count, generator=generator).tolist()
    steps = torch.randn(count, 2, 2, generator=generator)
    rule = Chain(weights, biases, steps.tolist())
    seen = torch.randn(count, 3, len(FEATURES), generator=generator)
    score = None
    for last in range(count):
        score = rule.score(last, seen[last], score)
        for row in range(3):
            mass = {0: 0.0, 1: 0.0}
            for labels in itertools.product((0, 1), repeat=last + 1):
                energy = sum(
                    float(seen[i, row] @ weights[i] + biases[i]) * label
                    for i, label in enumerate(labels)
                )
                pairs = itertools.pairwise(labels)
                energy += sum(float(steps[i + 1][a, b]) for i, (a, b) in enumerate(pairs))
                mass[labels[-1]] += math.exp(energy)
            assert float(score[row]) == pytest.approx(math.log(mass[1] / mass[0]), abs=1e-4)


def test_the_svm_is_linear_and_the_threshold_rule_is_the_gap() -> None:
    seen = torch.randn(3, len(FEATURES))
    weight = torch.randn(len(FEATURES))
    torch.testing.assert_close(Linear([weight], [0.5]).score(0, seen, None), seen @ weight + 0.5)
    assert torch.equal(Threshold().score(0, seen, None), seen[:, 0])
