"""What is counted on the model, and what is refused before anything is timed."""

from dataclasses import replace
from pathlib import Path

import pytest
from bench.peering import roster
from bench.peering.subject import Model, Subject, require_room, resolve, step_bytes
from tests.models import model_files as files

from skimp.errors import SkimpError
from skimp.plan import Plan
from skimp.progress import SILENT
from skimp.workload import Workload

_WINDOW = Workload(8, 4)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(str(files.write(tmp_path / "model", files.llama())), 0, SILENT)


@pytest.fixture
def subject(model: Model) -> Subject:
    return model.subject


def _entry(text: str) -> roster.Entry:
    return roster.read(text, {})[0]


def test_the_prompt_is_the_tokenizers(subject: Subject) -> None:
    assert subject.text is not None
    text = subject.text.replace(" ", "Ġ")
    assert len(subject.prompt) <= len(text)
    assert max(subject.prompt) < subject.anatomy.vocabulary


def test_bytes_of_a_step_follow_the_number_formats(subject: Subject) -> None:
    anatomy = subject.anatomy
    dense = step_bytes(anatomy, _WINDOW, roster.KINDS["transformers"])
    q8 = step_bytes(anatomy, _WINDOW, roster.KINDS["llama.cpp-q8"])
    int8 = step_bytes(anatomy, _WINDOW, roster.KINDS["openvino-int8"])
    # 2 layers of keys and values, 2 heads of 8, 2 bytes each, at 8 to 11 cached tokens.
    cache = 2 * 2 * 2 * 8 * 2 * _WINDOW.mean_context
    assert q8 - cache == pytest.approx((dense - cache) * 8.5 / 16)
    assert int8 == pytest.approx(dense / 2)


def test_what_is_dropped_is_not_read(subject: Subject, tmp_path: Path) -> None:
    entry, anatomy = resolve(_entry("llm-drop:0"), subject)
    assert entry.argument == "0"
    kind = roster.KINDS["transformers"]
    dense = step_bytes(subject.anatomy, _WINDOW, kind)
    attention = subject.anatomy.layers[0].attention.bytes
    cache = 2 * 2 * 8 * 2 * _WINDOW.mean_context  # one layer's
    assert step_bytes(anatomy, _WINDOW, kind) == pytest.approx(dense - attention - cache)
    plan = Plan.empty(subject.anatomy).with_section("drop", {"attention": [1], "fill": "zero"})
    plan.write(tmp_path / "plan.yaml")
    for name in ("skimp", "llm-drop"):
        found, planned = resolve(_entry(f"{name}:{tmp_path / 'plan.yaml'}"), subject)
        assert [layer.attention.state for layer in planned.layers] == ["keep", "zero"]
        assert found.argument == ("1" if name == "llm-drop" else str(tmp_path / "plan.yaml"))
    assert resolve(_entry("static"), subject) == (_entry("static"), subject.anatomy)


def test_layers_that_are_not_there_are_refused(subject: Subject) -> None:
    with pytest.raises(SkimpError):
        resolve(_entry("llm-drop:7"), subject)
    with pytest.raises(SkimpError, match="--engines llm-drop:x"):
        resolve(_entry("llm-drop:x"), subject)


def test_weights_that_do_not_fit_side_by_side_are_refused(subject: Subject) -> None:
    entries = [_entry("transformers"), _entry("llama.cpp-q8")]
    anatomies = {entry.name: subject.anatomy for entry in entries}
    require_room(entries, anatomies)
    layer = subject.anatomy.layers[0]
    part = replace(layer.ffn.parts[0], parameters=10**15)
    huge = replace(layer, ffn=replace(layer.ffn, parts=(part,)))
    anatomies["llama.cpp-q8"] = replace(subject.anatomy, layers=(huge,))
    with pytest.raises(SkimpError, match=r"2 engines hold .* time fewer of them"):
        require_room(entries, anatomies)


def test_a_model_is_exported_once(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    for form in ("bf16", "folder"):
        path = model.export(form, tmp_path)
        before = path.stat().st_mtime_ns
        assert model.export(form, tmp_path) == path
        assert path.stat().st_mtime_ns == before
    assert (tmp_path / "model" / "model.safetensors").is_file()
