"""How far a plan moves a model's predictions while it decodes, token by token, in the engine.

Prompts are read and answers written one token at a time, so that what a plan does only while
decoding (experts) is measured as it happens. Both sides are given the same answers: the dense
model's own greedy ones, or text. Predictions of the first token are left out, for the prompt alone
makes them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skimp.engine import Engine
from skimp.measure.fidelity import Fidelity, document_sums, summary
from skimp.progress import SILENT, Progress

Prompt = Sequence[int]


def on_own_answers(
    dense: Engine,
    planned: Mapping[str, Engine],
    prompts: Sequence[Prompt],
    new: int,
    *,
    progress: Progress = SILENT,
) -> dict[str, Fidelity]:
    """Compare each planned engine with the dense one on `new` tokens after every prompt.

    Raises:
        RequestError: a prompt does not fit the model's context together with its answer.
    """
    answers = []
    with progress.task("The dense model's answers", len(prompts)) as step:
        for prompt in prompts:
            (answer,) = dense.generate([prompt], new)
            answers.append(answer.tokens)
            step()
    pairs = [(p, answer) for p, answer in zip(prompts, answers, strict=True) if len(answer) > 1]
    return on_answers(dense, planned, pairs, progress=progress)


def on_answers(
    dense: Engine,
    planned: Mapping[str, Engine],
    pairs: Sequence[tuple[Prompt, Prompt]],
    *,
    progress: Progress = SILENT,
) -> dict[str, Fidelity]:
    """Compare the engines' predictions of given (prompt, answer) pairs; answers of 2 or more."""
    sums: dict[str, list[Tensor]] = {name: [] for name in planned}
    with progress.task("Predicting answers", len(pairs)) as step:
        for prompt, answer in pairs:
            wanted = _logits(dense, prompt, answer)
            target = torch.as_tensor(answer[1:])
            for name, engine in planned.items():
                found = _logits(engine, prompt, answer)
                sums[name].append(document_sums(wanted, found, target))
            step()
    return {name: summary(torch.stack(rows)) for name, rows in sums.items()}


def losses(
    engine: Engine, pairs: Sequence[tuple[Prompt, Prompt]], *, progress: Progress = SILENT
) -> list[float]:
    """Nats of each (prompt, answer) pair's answer of 2 or more tokens but its first, summed."""
    found = []
    with progress.task("Predicting answers", len(pairs)) as step:
        for prompt, answer in pairs:
            logits = _logits(engine, prompt, answer).float().log_softmax(-1).cpu()
            target = torch.as_tensor(answer[1:])
            found.append(-float(logits.gather(-1, target[:, None]).double().sum()))
            step()
    return found


@torch.inference_mode()
def _logits(engine: Engine, prompt: Prompt, answer: Prompt) -> Tensor:
    """The logits [len(answer) - 1, V] before each token of the answer but the first."""
    _, state = engine.prefill([prompt], len(answer))
    tokens = torch.as_tensor(answer, device=engine.device)
    return torch.cat([engine.decode(state, token[None]) for token in tokens[:-1]])
