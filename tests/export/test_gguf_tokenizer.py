"""The file's tokenizer divides text as the model's own does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.export.gguf_kit import llama_python, model, product, written
from tests.models import model_files
from tokenizers import (
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

import skimp
from skimp.export.gguf import tokenizer as gguf_tokenizer
from skimp.export.gguf.target import TARGET, write
from skimp.export.target import Obstacle
from skimp.export.write import obstacles

pytest.importorskip("gguf")

TEXTS = [
    "Hello world",
    "  two  spaces   three\n\n\nnew\tline ",
    "def f(x):\n    return x**2 + 1234567 # 12.5%\n",
    "naïve café: “quotes” … Ünïcödé",
    "日本語のテキスト 漢字とひらがな",
    "😀👩\u200d👩\u200d👧 emoji\u200d",
    "I'm you'll they've 'quoted' don't DON'T",
    "",
    "\n",
    " ",
    "\r\n\r\n a\r",
    "١٢٣ ²³ ½ Ⅷ 12,345.678",
    "עברית العربية हिन्दी ไทย",
    "\u00a0nbsp\u3000ideographic",
    " " * 37 + "a",
]
_CORPUS = [*TEXTS, *(f"the number {n} and some more words, again and again" for n in range(50))]
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


_MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
_CHAT = """
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=128, n_threads=1, verbose=False)
messages = json.loads(sys.argv[2])
print(json.dumps(model.create_chat_completion(messages, max_tokens=12, temperature=0)))
"""


def _split(pattern: str) -> Any:
    words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _digits() -> Any:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


SPLITTINGS: dict[str, Any] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": _digits,
    "llama-bpe": lambda: _split(_LLAMA3),
    "dbrx": lambda: _split(_LLAMA3),
    "qwen2": lambda: _split(_LLAMA3.replace("{1,3}", "")),
    "tekken": lambda: _split(_TEKKEN),
}


def byte_level(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of that splitting, trained on a few texts."""
    backend = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    backend.pre_tokenizer = SPLITTINGS[name]()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return _wrapped(backend)


def pieces(**spaces: Any) -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes it: characters, bytes for unknown ones, all merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(_CORPUS[15:], trainers.BpeTrainer(vocab_size=200))
    words = sorted(trained.get_vocab().items(), key=lambda pair: pair[1])
    ranked = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    ranked += [word for word, _ in words]
    vocabulary = {word: number for number, word in enumerate(ranked)}
    merges = [
        (word[:at], word[at:])
        for word in ranked[259:]
        for at in range(1, len(word))
        if word[:at] in vocabulary and word[at:] in vocabulary
    ]
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    if spaces:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False, **spaces)
    else:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return _wrapped(backend, unk_token="<unk>")


def _wrapped(backend: Tokenizer, **names: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **names
    )


def _asked(tokenizer: Any, folder: Path, texts: list[str], dense: Any = None) -> Any:
    """What llama.cpp makes of the texts, in a file of any model."""
    given = product(dense or model(vocab_size=len(tokenizer)), tokenizer)
    assert not obstacles(given, TARGET, "bf16")
    write(given, "bf16", folder / "m.gguf")
    assert TARGET.check is not None
    script = Path(skimp.__file__).parent / "export" / TARGET.check.script
    job = {
        "model": str(folder / "m.gguf"),
        "prompts": [],
        "new": 0,
        "logits": False,
        "texts": texts,
        "answer": str(folder / "answer.json"),
        "scratch": str(folder),
    }
    words = [str(llama_python() or sys.executable), str(script)]
    subprocess.run(words, input=json.dumps(job), text=True, capture_output=True, check=True)
    return json.loads((folder / "answer.json").read_text())


@pytest.mark.parametrize("name", SPLITTINGS)
def test_splittings_are_named_as_llama_cpp_names_them(tmp_path: Path, name: str) -> None:
    tokenizer = byte_level(name)
    metadata, _ = written(product(model(vocab_size=len(tokenizer)), tokenizer), tmp_path, "f32")
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == name
    words = metadata["tokenizer.ggml.tokens"]
    assert words == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    kinds = metadata["tokenizer.ggml.token_type"]
    assert [words[i] for i, kind in enumerate(kinds) if kind != 1] == ["<s>", "</s>", "<pad>"]
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]) == (
        0,
        1,
    )
    assert metadata["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize("name", SPLITTINGS)
def test_llama_cpp_divides_text_into_the_same_bytes(tmp_path: Path, name: str) -> None:
    tokenizer = byte_level(name)
    texts = [*TEXTS, "<s>a </s> b<pad>"]
    if name == "tekken":  # llama.cpp's own approximation, which the card owns up to
        texts = [text for text in texts if "हिन्दी" not in text]
    assert _asked(tokenizer, tmp_path, texts)["texts"] == [tokenizer(t).input_ids for t in texts]


@pytest.mark.parametrize("spaces", [{}, {"prepend_scheme": "first"}, {"prepend_scheme": "never"}])
def test_llama_cpp_divides_text_into_the_same_pieces(
    tmp_path: Path, spaces: dict[str, str]
) -> None:
    tokenizer = pieces(**spaces)
    # Where a text begins with a space llama.cpp may add another, which the card owns up to.
    texts = TEXTS if not spaces else [text for text in TEXTS if not text.startswith(" ")]
    answer = _asked(tokenizer, tmp_path, texts)
    assert answer["texts"] == [tokenizer(text).input_ids for text in texts]
    assert tokenizer.eos_token_id in answer["ends"]


def test_an_unknown_splitting_is_refused() -> None:
    tokenizer = byte_level("gpt-2")
    tokenizer.backend_tokenizer.pre_tokenizer = _split(r"\w+|\W+")
    given = product(model(vocab_size=len(tokenizer)), tokenizer)
    (found,) = obstacles(given, TARGET, "f32")
    assert found.field == "tokenizer"
    assert "no name for" in str(found)


def test_merging_that_does_not_go_with_the_splitting_is_refused() -> None:
    tokenizer = byte_level("qwen2")
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["ignore_merges"] = True
    backend = Tokenizer.from_str(json.dumps(spec))
    given = product(model(vocab_size=len(tokenizer)), _wrapped(backend))
    assert isinstance(gguf_tokenizer.read(given), Obstacle)


def test_pieces_whose_merges_are_a_list_of_their_own_are_refused() -> None:
    tokenizer = pieces()
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["merges"] = spec["model"]["merges"][::2]
    given = product(
        model(vocab_size=len(tokenizer)), _wrapped(Tokenizer.from_str(json.dumps(spec)))
    )
    assert isinstance(gguf_tokenizer.read(given), Obstacle)


def test_what_differs_from_the_original_is_said() -> None:
    given = product(model(vocab_size=600), pieces(prepend_scheme="first"))
    assert "behind a special token" in TARGET.loading(given, "f16")
    tokenizer = byte_level("qwen2")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert "NFC" in TARGET.loading(product(model(vocab_size=600), tokenizer), "f16")


def test_rows_without_a_token_are_unused_and_tokens_without_a_row_refused(tmp_path: Path) -> None:
    tokenizer = model_files.tokenizer()
    count = len(tokenizer)
    metadata, _ = written(product(model(vocab_size=count + 3), tokenizer), tmp_path, "f32")
    assert metadata["tokenizer.ggml.tokens"][count:] == [f"[PAD{count + i}]" for i in range(3)]
    assert metadata["tokenizer.ggml.token_type"][count:] == [5, 5, 5]
    (found,) = obstacles(product(model(vocab_size=count - 1), tokenizer), TARGET, "f32")
    assert found.field == "tokenizer"


def test_the_chat_template_and_every_end_of_an_answer_travel_along(tmp_path: Path) -> None:
    tokenizer = byte_level("smollm")
    tokenizer.chat_template = "{{ messages }}"
    dense = model(vocab_size=len(tokenizer))
    dense.generation_config.eos_token_id = [1, 2]
    metadata, _ = written(product(dense, tokenizer), tmp_path, "f32")
    assert metadata["tokenizer.chat_template"] == "{{ messages }}"
    assert metadata["tokenizer.ggml.eos_token_id"] == 1
    assert metadata["tokenizer.ggml.eot_token_id"] == 2


@pytest.mark.demo
def test_the_demo_models_text_is_divided_alike(tmp_path: Path) -> None:
    loaded = skimp.load("demo", dtype="bf16")
    texts = [*TEXTS, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a<file_sep> b"]
    answer = _asked(loaded.tokenizer, tmp_path, texts, loaded.model)
    assert answer["texts"] == [loaded.tokenizer(text).input_ids for text in texts]
    assert {loaded.tokenizer.eos_token_id} <= set(answer["ends"])
    # The chat template travels along, and llama-cpp-python reads prompts by it.
    python = str(llama_python() or sys.executable)
    words = [python, "-c", _CHAT, str(tmp_path / "m.gguf"), json.dumps(_MESSAGES)]
    done = subprocess.run(words, text=True, capture_output=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    wanted = loaded.tokenizer.apply_chat_template(_MESSAGES, add_generation_prompt=True)
    assert found["usage"]["prompt_tokens"] == len(wanted["input_ids"])
    assert "Paris" in found["choices"][0]["message"]["content"]
