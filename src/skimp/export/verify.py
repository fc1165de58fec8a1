"""Hold what an engine says of an exported model against the planned model in float32.

The engine decodes greedily; the planned model then reads its answer in one pass. So every token is
compared after the same text, also behind one that differs, and each that differs has a margin: by
how much the planned model prefers its own token to the engine's. Where that is within what the
number format alone moves logits, both tokens are right: a *tie*.
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skimp.errors import ExportError
from skimp.export import dividing
from skimp.export.ask import Answer, Logits, Question, ask
from skimp.export.target import Check, Product, Target
from skimp.export.write import Written
from skimp.progress import SILENT, Progress

PROMPTS, NEW, LONGEST = 50, 16, 64
EXACT = 1e-4  # float32 on both sides, sums in another order
# What a model in a format is held against to see what rounding does to it.
_BESIDE = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float64}
# Several times what rounding does to transformers itself: other kernels round at other places.
_ROOM = 3.0


@dataclass(frozen=True)
class Difference:
    """A token that the planned model would not have chosen after the same text.

    `margin`: how far the engine's token is behind the planned one, in logits.
    """

    prompt: int
    step: int
    planned: int
    engine: int
    margin: float
    tie: bool


@dataclass(frozen=True)
class Verification:
    """What an engine says of an exported model, beside the planned model in float32.

    `max_difference`, `mean_difference`: of logits, over `positions`; log-probabilities where
    `normalised`; None where the engine gives none. `equal`: prompts whose tokens are all the
    planned model's, `ties`: others whose differing tokens are ties, `differ`: the rest. `noise`:
    the largest difference of logits that the number format explains; None for quantized weights,
    whose loss is what the figures show, so that nothing is called a tie.
    `passed`: None where there is no bar. `texts`: how many the engine's own tokenizer divided, and
    `divided_otherwise` those of them in which the model's finds other tokens.
    """

    target: str
    form: str
    engine: str
    prompts: int
    new_tokens: int
    positions: int
    max_difference: float | None
    mean_difference: float | None
    normalised: bool
    equal: int
    ties: int
    differ: int
    differences: tuple[Difference, ...]
    noise: float | None
    passed: bool | None
    texts: int = 0
    divided_otherwise: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        tokens = f"greedy tokens equal on {self.equal} of {self.prompts} prompts"
        if self.ties:
            widest = max(each.margin for each in self.differences if each.tie)
            tokens += f", on {self.ties} more up to ties (margins up to {widest:.2g})"
        if self.differ:
            tokens += f", different on {self.differ}"
        if self.texts:
            same = self.texts - len(self.divided_otherwise)
            tokens += f"; {same} of {self.texts} texts divided into the same tokens"
        if self.max_difference is None:
            return f"{self.engine}: {tokens}."
        what = "log-probability" if self.normalised else "logit"
        return (
            f"{self.engine}: {tokens}; largest {what} difference {self.max_difference:.2g} "
            f"over {self.positions} positions."
        )


def verify(
    product: Product,
    target: Target,
    written: Written,
    *,
    python: Path | None = None,
    prompts: int = PROMPTS,
    new: int = NEW,
    progress: Progress = SILENT,
) -> Verification:
    """Ask the target's engine and compare.

    Args:
        product: whose model is the reference; in other formats than float32 a copy is made.
        python: the engine's interpreter; this one by default.
        prompts: how many, of the bundled calibration prompts, or random tokens without a tokenizer.
        new: greedy tokens after each.

    Raises:
        ExportError: the target has no check, or its engine is missing or fails.
    """
    check = target.check
    if check is None:
        raise ExportError(f"--verify: {target.name} has no engine to ask; leave it out.")
    question = question_for(product, check, written, prompts, new)
    with progress.task(f"asking {check.module}", None) as step:
        answer = ask(check, question, python=python)
        step()
    return compare(product, written, question, answer, progress)


def question_for(
    product: Product, check: Check, written: Written, prompts: int = PROMPTS, new: int = NEW
) -> Question:
    """What to ask the engine of a model on disk."""
    tells = product.tokenizer is not None and "texts" in check.tells
    divided = dividing.texts(product.tokenizer) if tells else ()
    texts = make_prompts(product, prompts, new)
    return Question(written.path, written.form, texts, new, tuple(divided))


def compare(
    product: Product,
    written: Written,
    question: Question,
    answer: Answer,
    progress: Progress = SILENT,
) -> Verification:
    """Hold an engine's answer to the question against the planned model."""
    texts = question.prompts
    model = _in_float32(product.model)
    deltas: list[np.ndarray] = []
    found: list[Difference] = []
    with progress.task("comparing", len(texts)) as step:
        for number, text in enumerate(texts):
            logits = _read(model, [*text, *answer.tokens[number][:-1]])
            if answer.logits is not None:
                wanted = logits[: len(text)].numpy()
                deltas.append(_differences(wanted, answer.logits[number], answer.normalised))
            found += _differing(number, logits[len(text) - 1 :], answer.tokens[number])
            step()
    largest = max((float(each.max()) for each in deltas), default=None)
    rows = [len(each.values) for each in answer.logits] if answer.logits else [1] * len(texts)
    noise = _noise(product, written.form, list(zip(texts, rows, strict=True)), model, largest)
    otherwise = dividing.otherwise(product.tokenizer, question.texts, answer.texts)
    summed = _sum_up(written, answer, deltas, found, largest, noise)
    return replace(summed, texts=len(question.texts), divided_otherwise=tuple(otherwise))


def make_prompts(product: Product, count: int, new: int) -> list[list[int]]:
    """Prompts of 1 to 64 tokens that leave room for `new` more in the model's context."""
    room = min(LONGEST, (product.dense.context_length or LONGEST + new) - new)
    if product.tokenizer is None:
        draw = random.Random(0)
        lengths = [1 + index * (room - 1) // max(1, count - 1) for index in range(count)]
        return [[draw.randrange(product.dense.vocabulary) for _ in range(n)] for n in lengths]
    from skimp.calibration.text import bundled_documents

    documents = bundled_documents(product.tokenizer)
    texts = [documents[index * len(documents) // count] for index in range(count)]
    return [text[:room].tolist() for text in texts]


def _in_float32(model: Any) -> Any:
    if all(weight.dtype == torch.float32 for weight in model.parameters()):
        return model
    return copy.deepcopy(model).float()


@torch.no_grad()
def _read(model: Any, tokens: Sequence[int]) -> Tensor:
    """Logits [S, vocabulary] after each token, float32."""
    device = next(model.parameters()).device
    ids = torch.tensor([tokens], device=device)
    return model(input_ids=ids, use_cache=False).logits[0].float().cpu()


def _differences(wanted: np.ndarray, given: Logits, normalised: bool) -> np.ndarray:
    """Absolute differences of logits [T, K] after the last T tokens."""
    rows = wanted[-len(given.values) :]
    if normalised:
        rows = torch.from_numpy(rows).log_softmax(-1).numpy()
    if given.ids is not None:
        rows = np.take_along_axis(rows, given.ids.astype(np.int64), axis=-1)
    # Some engines pad the vocabulary.
    values = given.values[..., : rows.shape[-1]].astype(np.float32)
    if values.shape != rows.shape:
        raise ExportError(
            f"--verify: the engine gives logits of shape {given.values.shape}, but the model's are "
            f"{rows.shape}."
        )
    return np.abs(values - rows)


def _differing(prompt: int, logits: Tensor, tokens: Sequence[int]) -> list[Difference]:
    best = logits.argmax(-1).tolist()
    found = []
    for step, (planned, engine) in enumerate(zip(best, tokens, strict=True)):
        if planned != engine:
            margin = float(logits[step, planned] - logits[step, engine])
            found.append(Difference(prompt, step, planned, engine, margin, False))
    return found


def _noise(
    product: Product,
    form: str,
    texts: Sequence[tuple[Sequence[int], int]],
    model: Any,
    largest: float | None,
) -> float | None:
    """By how much the format alone may move a logit after the last so many tokens of `texts`.

    None where that is not known beforehand.
    """
    if form == "f32" and (largest is None or largest <= EXACT):
        return EXACT
    dtype = _BESIDE.get(form)
    if dtype is None:
        return None
    # Activations of some models are so large that even float32 moves their logits by more.
    beside = copy.deepcopy(product.model).to(dtype)
    moved = max(
        float((_read(beside, text) - _read(model, text))[-rows:].abs().max())
        for text, rows in texts
    )
    return max(EXACT, _ROOM * moved)


def _sum_up(
    written: Written,
    answer: Answer,
    deltas: list[np.ndarray],
    found: list[Difference],
    largest: float | None,
    noise: float | None,
) -> Verification:
    if largest is not None and not np.isfinite(largest):
        raise ExportError("--verify: the engine's logits are not finite numbers.")
    count = sum(each.size for each in deltas)
    if noise is not None:
        # Two logits that each move by so much can change places when they are twice that apart.
        found = [replace(each, tie=each.margin <= 2 * noise) for each in found]
    touched = {each.prompt for each in found}
    wrong = {each.prompt for each in found if not each.tie}
    passed = None
    if noise is not None:
        passed = not wrong and (largest is None or largest <= noise)
    return Verification(
        target=written.target,
        form=written.form,
        engine=answer.engine,
        prompts=len(answer.tokens),
        new_tokens=len(answer.tokens[0]),
        positions=sum(len(each) for each in deltas),
        max_difference=largest,
        mean_difference=sum(float(each.sum()) for each in deltas) / count if count else None,
        normalised=answer.normalised,
        equal=len(answer.tokens) - len(touched),
        ties=len(touched - wrong),
        differ=len(wrong),
        differences=tuple(found),
        noise=noise,
        passed=passed,
    )
