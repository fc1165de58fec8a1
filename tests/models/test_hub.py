"""Hub ids, without a hub: what is fetched, and one sentence for each way it can fail."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from tests.models import model_files as files

from skimp.errors import LoadError
from skimp.models import hub
from skimp.models.load import load


class Response:
    headers: dict[str, str] = {}
    request = None


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the repository org/name."""
    folder = files.write(tmp_path / "remote")

    def info(self: Any, name: str) -> Any:
        siblings = [
            type("File", (), {"rfilename": str(path.relative_to(folder))})
            for path in folder.rglob("*")
            if path.is_file()
        ]
        return type("Info", (), {"siblings": siblings, "sha": "abc"})

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    return folder


@pytest.fixture
def fetched(remote: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were downloaded."""
    names: list[str] = []

    def download(name: str, file: str, *, revision: str) -> str:
        assert (name, revision) == ("org/name", "abc")
        names.append(file)
        return str(remote / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return names


def refusal(source: str = "org/name") -> str:
    with pytest.raises(LoadError) as caught:
        load(source, dtype="fp32")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_what_is_needed_is_fetched(remote: Path, fetched: list[str]) -> None:
    for name in ("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "x/model.onnx"):
        (remote / name).parent.mkdir(exist_ok=True)
        (remote / name).write_bytes(b"")
    assert load("org/name", dtype="fp32").model.num_parameters() > 0
    assert "model.safetensors" in fetched
    assert "tokenizer.json" in fetched
    assert not {"pytorch_model.bin", "modeling.py", "consolidated.safetensors"} & set(fetched)
    assert not any("/" in name for name in fetched)


def test_code_is_fetched_only_when_trusted(remote: Path, fetched: list[str]) -> None:
    (remote / "modeling.py").write_bytes(b"")
    load("org/name", dtype="fp32", trust_remote_code=True)
    assert "modeling.py" in fetched


def test_pickled_weights_only(remote: Path, fetched: list[str]) -> None:
    (remote / "model.safetensors").rename(remote / "pytorch_model.bin")
    assert "only pickled ones (pytorch_model.bin)" in refusal()
    assert fetched == []


def test_an_encoder_is_refused_before_its_weights_come(remote: Path, fetched: list[str]) -> None:
    files.edit_config(remote, model_type="bert", architectures=["BertForMaskedLM"])
    assert "is bert" in refusal()
    assert fetched == ["config.json"]


def test_no_config(remote: Path, fetched: list[str]) -> None:
    (remote / "config.json").unlink()
    assert "has no config.json" in refusal()


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (errors.GatedRepoError("403", response=Response()), "is gated"),  # type: ignore[arg-type]
        (errors.RepositoryNotFoundError("404", response=Response()), "neither a local folder"),  # type: ignore[arg-type]
        (ConnectionError("no route"), "cannot be reached (ConnectionError)"),
        (errors.OfflineModeIsEnabled("offline"), "cannot be reached"),
    ],
    ids=["gated", "unknown", "unreachable", "offline"],
)
def test_failures(error: Exception, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, name: str) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    message = refusal()
    assert complaint in message
    assert "org/name" in message


def test_what_was_fetched_before_serves_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = files.write(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    assert load("org/name", dtype="fp32").model.num_parameters() > 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", True),
        ("meta-llama/Llama-3.1-8B", True),
        ("name", False),
        ("a/b/c", False),
        ("./a", False),
        ("../a", False),
        ("~/a", False),
        ("org/na me", False),
    ],
)
def test_ids(source: str, expected: bool) -> None:
    assert hub.is_id(source) is expected
