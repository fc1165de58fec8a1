"""A tokenizer and task files small enough for the tiny models of tests.families."""

import json
from pathlib import Path
from typing import Any

import yaml
from tests.families import VOCABULARY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_TEXT = "the a red blue old new house river runs stands is not near by it was seen so far"
WORDS = _TEXT.split()


def tokenizer(begins: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE over lower-case words with VOCABULARY tokens; `begins` prepends BOS."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False, min_frequency=1
    )
    corpus = [" ".join(WORDS[i:] + WORDS[:i]) + ".\n" for i in range(len(WORDS))]
    raw.train_from_iterator([*corpus, "abcdefghijklmnopqrstuvwxyz ?!,:"], trainer)
    if begins:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


CHOICES: dict[str, Any] = {
    "task": "tiny_choices",
    "tag": "tiny_suite",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/choices.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}
ENDING: dict[str, Any] = {
    "task": "tiny_ending",
    "tag": "tiny_suite",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/ending.jsonl"}},
    "test_split": "test",
    "output_type": "loglikelihood",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{' ' + ending}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}
ROLLING: dict[str, Any] = {
    "task": "tiny_text",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/ending.jsonl"}},
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{context}}",
    "metric_list": [
        {
            "metric": "word_perplexity",
            "aggregation": "weighted_perplexity",
            "higher_is_better": False,
        },
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
    ],
}


def choice_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "query": " ".join(WORDS[i % 7 : i % 7 + 3 + i % 4]) + "?",
            "choices": [WORDS[(i + k) % len(WORDS)] for k in range(2 + i % 3)],
            "gold": i % 2,
        }
        for i in range(count)
    ]


def ending_rows(count: int) -> list[dict[str, Any]]:
    return [
        {"context": " ".join(WORDS[i % 5 : i % 5 + 6]), "ending": WORDS[(3 * i) % len(WORDS)]}
        for i in range(count)
    ]


def write_task(folder: Path, config: dict[str, Any], **changes: Any) -> Path:
    path = folder / f"{changes.get('task', config['task'])}.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}), encoding="utf-8")
    return path


def write_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / "data" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def write_suite(folder: Path, items: int = 12) -> Path:
    """A folder with the three tasks and their data."""
    write_rows(folder, "choices.jsonl", choice_rows(items))
    write_rows(folder, "ending.jsonl", ending_rows(items))
    for config in (CHOICES, ENDING, ROLLING):
        write_task(folder, config)
    return folder
