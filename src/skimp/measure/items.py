"""A harness task's items: their requests, a model's answers, and what each answer scores."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from skimp.errors import EvaluationError
from skimp.measure.metrics import Metric, metrics_of
from skimp.measure.tasks import first_line, quiet, seeded

TEXT_IN = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def build_requests(name: str, task: Any, limit: int | None, seed: int) -> None:
    """Make the requests of the task's first `limit` items.

    Raises:
        EvaluationError: an item has no choices or lacks a field, or the task is not text to text.
    """
    if getattr(task, "MULTIMODAL", False):
        raise EvaluationError(f"task {name}: it has images or audio, and this model takes text.")
    if getattr(task, "UNSAFE_CODE", False):
        raise EvaluationError(f"task {name}: it runs generated code, which skimp does not do.")
    try:
        with quiet(), seeded(seed):
            task.build_all_requests(limit=limit)
    except Exception as error:
        raise EvaluationError(
            f"task {name}: its items cannot be turned into requests "
            f"({type(error).__name__}: {first_line(error)}); check its fields against its data."
        ) from error
    built = {instance.doc_id for instance in task.instances}
    for number, _ in task.doc_iterator(limit=limit):
        if number not in built:
            raise EvaluationError(
                f"task {name}: item {number} (from 0) has no choices; give it some."
            )


def digest(task: Any, limit: int | None) -> str:
    """32 hexadecimal digits of what an answered task hangs on: items, requests and settings."""
    asked = [(one.request_type, one.doc_id, one.idx, one.args) for one in task.instances]
    what = [list(_hashes(list(task.doc_iterator(limit=limit)))), asked, task.dump_config()]
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def answer(live: Any, instances: Sequence[Any]) -> None:
    """Let the model answer all requests of one kind together, whatever their task."""
    kinds: dict[str, list[Any]] = defaultdict(list)
    for instance in instances:
        kinds[instance.request_type].extend([instance] * (instance.repeats or 1))
    for kind, requests in kinds.items():
        if kind not in TEXT_IN:
            raise EvaluationError(
                f"task {requests[0].task_name}: requests of type {kind} are unknown."
            )
        for request, reply in zip(requests, getattr(live, kind)(requests), strict=True):
            request.resps.append(reply)


def score(
    name: str, task: Any, limit: int | None
) -> tuple[str, dict[str, Metric], tuple[str, ...]]:
    """Primary metric, all metrics and item hashes of an answered task."""
    task.apply_filters()
    replies: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        replies[instance.doc_id].append(instance)
    documents = list(task.doc_iterator(limit=limit))
    rows: dict[str, list[dict[str, Any]]] = {}
    for answers in task.instances[0].filtered_resps:
        rows[answers] = []
        for number, document in documents:
            ordered = sorted(replies[number], key=lambda instance: instance.idx)
            results = [instance.filtered_resps[answers] for instance in ordered]
            rows[answers].append(_processed(name, task, number, document, results))
    primary, metrics = metrics_of(task, name, rows)
    return primary, metrics, tuple(_hashes(documents))


def _processed(
    name: str, task: Any, number: int, document: Any, results: list[Any]
) -> dict[str, Any]:
    try:
        return dict(task.process_results(document, results))
    except Exception as error:
        raise EvaluationError(
            f"task {name}: item {number} (from 0) cannot be scored "
            f"({type(error).__name__}: {first_line(error)}); check its target."
        ) from error


def _hashes(documents: Sequence[tuple[int, Any]]) -> Iterator[str]:
    """16 hexadecimal digits per item, from its content alone."""
    for _, document in documents:
        text = json.dumps(document, sort_keys=True, ensure_ascii=False, default=str)
        yield hashlib.sha256(text.encode()).hexdigest()[:16]
