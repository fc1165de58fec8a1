"""A small recipe with data of its own, and a stage with a tiny random model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.families import SAMPLES
from tests.tiny import byte_tokenizer

from skimp.progress import SILENT, Progress
from skimp.recipes.read import read_recipe
from skimp.recipes.recipe import Recipe
from skimp.recipes.stage import Stage

ROOT_RECIPES = Path(__file__).parents[2] / "recipes"
WORDS = ["river", "mill", "old", "bridge", "lamps", "town", "tower", "hill"]
TASK: dict[str, Any] = {
    "task": "tiny_choice",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "summaries": {
        "kind": "summaries",
        "name": "summaries",
        "file": "pairs.jsonl",
        "items": 3,
        "new_tokens": 5,
        "prompt_tokens": 24,
        "paper": {
            "model": "Paper 7B",
            "recalled": True,
            "figures": {"rouge1": {"dense": 0.272, "half": 0.248}},
        },
    },
    "foreseen": {
        "kind": "generation_perplexity",
        "name": "foreseen",
        "file": "pairs.jsonl",
        "items": 4,
        "new_tokens": 8,
    },
    "text": {
        "kind": "generation_perplexity",
        "name": "text",
        "file": "text.txt",
        "items": 3,
        "prompt_tokens": 10,
        "new_tokens": 6,
    },
    "followed": {
        "kind": "fidelity",
        "name": "followed",
        "file": "text.txt",
        "items": 3,
        "prompt_tokens": 10,
        "new_tokens": 6,
    },
}
TASKS: dict[str, Any] = {
    "kind": "tasks",
    "name": "choices",
    "folder": "tasks",
    "tasks": ["tiny_choice", "tiny_other"],
    "items": 5,
}
PLANS: dict[str, dict[str, Any]] = {
    "half": {"experts": {"keep": 0.5}},
    "no-attention": {"drop": {"attention": [1], "fill": "zero"}},
}


def write_data(folder: Path) -> None:
    """Pairs of prompt and answer (line 2 is long), a text, and two tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "prompt": " ".join(WORDS[n % 4 : n % 4 + (9 if n == 1 else 2)]),
            "answer": " ".join(WORDS[n % 5 : n % 5 + 3]),
        }
        for n in range(8)
    ]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "text.txt").write_text(" ".join(WORDS * 12))
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    for name in ("tiny_choice", "tiny_other"):
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump({**TASK, "task": name}))
    items = [
        {"query": WORDS[n % 8], "choices": [" old", " new one", " hill"], "gold": n % 3}
        for n in range(8)
    ]
    (tasks / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))


def write(
    folder: Path,
    *experiments: Mapping[str, Any],
    plans: Mapping[str, Any] = PLANS,
    **changes: Any,
) -> Path:
    """A recipe file in `folder`, whose data lie in `folder/data`; all but tasks by default."""
    write_data(folder / "data")
    content = {
        "recipe": 1,
        "title": "A tiny recipe",
        "paper": {"citation": "Nobody, 2024"},
        "data": "data",
        "plans": dict(plans),
        "experiments": [dict(e) for e in experiments or EXPERIMENTS.values()],
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def recipe(folder: Path, *experiments: Mapping[str, Any], **changes: Any) -> Recipe:
    return read_recipe(write(folder, *experiments, **changes))


def stage(found: Recipe, *, seed: int = 0, weights: int = 0, progress: Progress = SILENT) -> Stage:
    model = SAMPLES["llama"].build(weights)
    return Stage.of(found, model, byte_tokenizer(), seed=seed, progress=progress)
