"""What verification finds, and that it finds what is wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.kit import product
from tests.tiny import byte_tokenizer

from skimp.errors import ExportError
from skimp.export.ask import Question, ask, ask_all
from skimp.export.registry import TARGETS
from skimp.export.target import Check, Product
from skimp.export.verify import EXACT, compare, make_prompts, verify
from skimp.export.write import Written, export

PLANNED = TARGETS["transformers"]


@pytest.fixture
def made(tmp_path: Path) -> Any:
    with product("llama", "drop-mean") as made:
        yield made


def written_as(form: str, folder: Path) -> Written:
    return Written("stub", form, folder, folder, 1)


def question(texts: list[list[int]], new: int, model: str = "model") -> Question:
    return Question(Path(model), "f32", texts, new)


def fake(folder: Path, body: str, **answer: Any) -> Check:
    """A check whose script gives this answer, `job` being the job."""
    script = folder / "engine.py"
    script.write_text(
        f"import json, sys\nfor line in sys.stdin:\n    job = json.loads(line)\n"
        f"    answer = {answer!r}\n    {body}\n"
        "    open(job['answer'], 'w').write(json.dumps(answer))\n"
    )
    return Check(str(script), "json", "nothing", ("logits", "tokens"))


def said(made: Product, texts: list[list[int]], new: int, noise: float = 0.0) -> dict[str, Any]:
    """What an engine that adds `noise` to logits, away from the best, says."""
    tokens, rows = [], []
    with torch.no_grad():
        for text in texts:
            ids = list(text)
            for step in range(new):
                logits = made.model(input_ids=torch.tensor([ids])).logits[0, -1]
                if not step:
                    rows.append(logits.numpy() + noise)
                ids.append(int(logits.argmax()))
            tokens.append(ids[len(text) :])
    return {"engine": "fake 1", "tokens": tokens, "logits": np.array(rows)}


def compared(made: Product, form: str = "f32", change: Callable[[Any], None] | None = None) -> Any:
    from skimp.export.ask import read

    texts = make_prompts(made, 5, 4)
    answer = said(made, texts, 4)
    if change is not None:
        change(answer)
    answer["logits"] = answer["logits"].tolist()
    found = read(PLANNED.check, json.dumps(answer), texts, 4)
    return compare(made, written_as(form, Path()), question(texts, 4), found)


def test_transformers_says_the_same(made: Product, tmp_path: Path) -> None:
    written = export(made, PLANNED, "f32", tmp_path / "out")
    found = verify(made, PLANNED, written, prompts=4, new=3)
    assert found.passed and found.equal == 4 and not found.differences
    assert found.max_difference is not None and found.max_difference < EXACT
    assert found.positions == sum(map(len, make_prompts(made, 4, 3)))
    assert found.engine.startswith("transformers ")
    assert "greedy tokens equal on 4 of 4 prompts" in found.sentence
    json.dumps(found.to_dict(), allow_nan=False)


def test_rounding_is_told_from_mistakes(made: Product, tmp_path: Path) -> None:
    written = export(made, PLANNED, "bf16", tmp_path / "out")
    found = verify(made, PLANNED, written, prompts=4, new=3)
    assert found.noise is not None and found.noise > EXACT
    assert found.passed and found.max_difference is not None and found.max_difference > EXACT


def test_a_wrong_logit_fails(made: Product) -> None:
    assert compared(made).passed

    def shift(answer: Any) -> None:
        answer["logits"][2, 7] += 0.01

    found = compared(made, change=shift)
    assert found.passed is False and found.max_difference == pytest.approx(0.01, rel=1e-2)
    assert found.equal == 5


def test_a_wrong_token_fails_and_is_named(made: Product) -> None:
    def swap(answer: Any) -> None:
        answer["tokens"][3][1] = (answer["tokens"][3][1] + 1) % 97

    found = compared(made, change=swap)
    assert found.passed is False and (found.equal, found.ties, found.differ) == (4, 0, 1)
    first = found.differences[0]
    assert (first.prompt, first.step, first.tie) == (3, 1, False) and first.margin > 0
    assert "different on 1" in found.sentence


def test_a_near_tie_is_called_one(made: Product) -> None:
    """The second-best token, where it is as good as the best to within rounding."""
    texts = make_prompts(made, 5, 4)
    with torch.no_grad():
        head = made.model.lm_head
        best, other = (
            made.model(input_ids=torch.tensor([texts[4]])).logits[0, -1].topk(2).indices.tolist()
        )
        before = head.weight.clone()
        head.weight[other] = head.weight[best] - 1e-6 * head.weight[best].sign()
    try:

        def swap(answer: Any) -> None:
            row = answer["tokens"][4]
            # From the other token on the text goes another way: only the first token is compared.
            for each in answer["tokens"]:
                del each[1:]
            row[0] = other if row[0] == best else best

        from skimp.export.ask import read

        answer = said(made, texts, 1)
        swap(answer)
        answer["logits"] = answer["logits"].tolist()
        found = read(PLANNED.check, json.dumps(answer), texts, 1)
        result = compare(made, written_as("f32", Path()), question(texts, 1), found)
    finally:
        with torch.no_grad():
            head.weight.copy_(before)
    assert (result.equal, result.ties, result.differ) == (4, 1, 0)
    assert result.passed and "up to ties" in result.sentence


def test_quantized_weights_have_no_bar(made: Product) -> None:
    def shift(answer: Any) -> None:
        answer["logits"] += 0.3

    found = compared(made, "q4_0", shift)
    assert found.passed is None and found.noise is None
    assert found.max_difference == pytest.approx(0.3, rel=1e-3)


def test_some_logits_and_log_probabilities(made: Product, tmp_path: Path) -> None:
    from skimp.export.ask import read

    texts = make_prompts(made, 3, 2)
    answer = said(made, texts, 2)
    rows = torch.tensor(answer["logits"]).log_softmax(-1)
    values, ids = rows.topk(5)
    for name, array in (("values", values), ("ids", ids)):
        np.save(tmp_path / f"{name}.npy", array.numpy())
    answer["logits"] = {name: str(tmp_path / f"{name}.npy") for name in ("values", "ids")}
    answer["normalised"] = True
    found = compare(
        made,
        written_as("f32", tmp_path),
        question(texts, 2),
        read(PLANNED.check, json.dumps(answer), texts, 2),
    )
    assert found.passed and found.normalised and "log-probability" in found.sentence


def test_prompts_are_fixed_and_fit(made: Product) -> None:
    texts = make_prompts(made, 7, 4)
    assert texts == make_prompts(made, 7, 4)
    assert len(texts[0]) == 1 and len(texts[-1]) == 60  # of 64
    texts = make_prompts(replace(made, tokenizer=byte_tokenizer()), 7, 4)
    assert len(texts) == 7 and all(0 < len(text) <= 60 for text in texts)


def test_missing_engines_are_named(tmp_path: Path) -> None:
    check = Check("checks/vllm.py", "no_such_engine.part", "pip install it", ("tokens",))
    with pytest.raises(ExportError, match=r"no module no_such_engine.*`pip install it`"):
        ask(check, question([[1]], 1))
    with pytest.raises(ExportError, match=r"--engine-python: .*nowhere cannot be run"):
        ask(check, question([[1]], 1), python=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("body", "answer", "message"),
    [
        ("raise ValueError('no head of 8')", {}, r"json failed on .*ValueError: no head of 8"),
        ("answer['tokens'] = [[1]]", {"engine": "x"}, r"it gave \[1\] tokens, not 2 a prompt"),
        ("answer['tokens'] = [[1, 2]]", {}, "KeyError: 'engine'"),
        ("sys.exit(0)", {}, "is not one"),
    ],
)
def test_failing_engines_are_quoted(
    body: str, answer: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        ask(fake(tmp_path, body, **answer), question([[1]], 2))


def test_engines_may_print(tmp_path: Path) -> None:
    check = fake(tmp_path, "print('INFO'); answer['tokens'] = [[1, 2]]", engine="x", logits=None)
    found = ask(check, question([[1]], 2))
    assert (found.engine, found.tokens, found.logits) == ("x", [[1, 2]], None)


def test_the_engine_gets_its_environment(tmp_path: Path) -> None:
    body = "import os; answer['engine'] = os.environ['WHERE']; answer['tokens'] = [[1]]"
    check = replace(fake(tmp_path, body), environment={"WHERE": "here"})
    assert ask(check, question([[1]], 1)).engine == "here"


def test_one_process_answers_about_many_models(tmp_path: Path) -> None:
    """A model that the engine fails on costs the others nothing but another start."""
    body = (
        "import os; answer['engine'] = str(os.getpid()); answer['tokens'] = [[1]]\n"
        "    assert not job['model'].endswith('bad'), 'no such layer'"
    )
    check = fake(tmp_path, body)
    models = ("a", "b", "bad", "c", "d")
    found = list(ask_all(check, [question([[1]], 1, model) for model in models]))
    assert [isinstance(each, ExportError) for each in found] == [False, False, True, False, False]
    assert "bad (AssertionError: no such layer)" in str(found[2])
    a, b, c, d = (getattr(found[i], "engine", None) for i in (0, 1, 3, 4))
    assert a == b != c == d
