"""Weight files: the sentence for each that is missing, damaged, or not the config's."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import model_files as files

from skimp.models.load import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return files.write(tmp_path / "tiny")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_by_name(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / name)
    message = files.refusal(folder)
    assert name in message
    assert "convert them to safetensors" in message


def test_a_pickle_beside_safetensors_does_not_matter(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert load(str(folder), dtype="fp32").model.num_parameters() > 0


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights" in files.refusal(folder)


def test_weights_under_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert "other.safetensors" in files.refusal(folder)


def test_folder_with_a_gguf_file_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tiny.gguf")
    assert "give the path of that file" in files.refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    message = files.refusal(folder)
    assert str(path) in message
    assert "truncated" in message


def test_trailing_bytes(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "damaged" in files.refusal(folder)


@pytest.mark.parametrize("header", [b"{", b"[1]", b'{"a": 3}', b'{"a": {"shape": [1]}}'])
def test_damaged_header(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "is not a safetensors file" in files.refusal(folder)


def test_git_lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (folder / "model.safetensors").write_text(pointer)
    assert "git lfs pull" in files.refusal(folder)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return files.write(tmp_path / "sharded", max_shard_size="20KB")


def test_absent_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"lacks {shard.name}" in files.refusal(sharded)


def test_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-7])
    assert f"{shard} is truncated" in files.refusal(sharded)


@pytest.mark.parametrize(
    ("places", "complaint"),
    [
        (None, "no weight_map"),
        ({"lm_head.weight": "../other/model.safetensors"}, "not a file beside it"),
        ({"lm_head.weight": "pytorch_model.bin"}, "not a safetensors file"),
    ],
)
def test_damaged_index(sharded: Path, places: Any, complaint: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert complaint in files.refusal(sharded)


def test_shard_without_its_tensor(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    assert "lacks the tensor model.extra.weight" in files.refusal(sharded)


# -- weights that are not the config's


def test_missing_weight(folder: Path) -> None:
    files.rewrite(folder, **{"model.layers.1.mlp.up_proj.weight": None})
    assert "lacks the weight model.layers.1.mlp.up_proj.weight" in files.refusal(folder)


def test_missing_head(folder: Path) -> None:
    files.rewrite(folder, **{"lm_head.weight": None})
    assert "lacks the weight lm_head.weight" in files.refusal(folder)


def test_surplus_weight(folder: Path) -> None:
    files.edit_config(folder, num_hidden_layers=1)
    message = files.refusal(folder)
    assert "model.layers.1.input_layernorm.weight and 8 others" in message
    assert "no place" in message


def test_weight_of_another_shape(folder: Path) -> None:
    files.rewrite(folder, **{"model.norm.weight": torch.ones(31)})
    message = files.refusal(folder)
    assert "model.norm.weight with shape [31]" in message
    assert "[32]" in message
