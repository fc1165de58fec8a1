"""The plan file: what is written is read, and what is wrong is said in one sentence."""

import hashlib
import os
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.families import build
from tests.json_schema import faults
from torch import Tensor

from skimp.errors import PlanError
from skimp.methods import registry
from skimp.models.anatomy import Anatomy
from skimp.plan import ModelRef, Plan

MODEL = ModelRef("llama", 4, "sha256:" + "0123456789abcdef" * 2)
DROP = {"attention": [1], "ffn": [], "fill": "mean"}

NAME = st.text(string.ascii_lowercase, min_size=1, max_size=8)
ENVELOPE = {"skimp", "model", "values", "evidence"}
# Any text that YAML can hold; what it would take for a number, a date or a key is of most interest.
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12) | (
    st.sampled_from(["no", "null", "1e3", "2001-01-01", "=", "<<", "0x1f", "1_0", "~", "- a", "#"])
)
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
DATA = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
SECTION = st.dictionaries(TEXT, DATA, max_size=4)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(draw(DTYPES))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    return Plan(
        ModelRef(draw(NAME), draw(st.integers(1, 200)), MODEL.fingerprint),
        draw(st.dictionaries(NAME.filter(lambda n: n not in ENVELOPE), SECTION, max_size=3)),
        draw(SECTION),
        draw(st.dictionaries(NAME.map("drop.{}".format), tensors(), max_size=3)),
    )


def assert_same(found: Plan, wanted: Plan) -> None:
    assert found.model == wanted.model
    assert found.sections == wanted.sections
    assert found.evidence == wanted.evidence
    assert found.values.keys() == wanted.values.keys()
    for name, value in wanted.values.items():
        assert found.values[name].dtype == value.dtype
        assert torch.equal(found.values[name], value)


# --- writing and reading ------------------------------------------------------------------------


@given(plan=plans())
def test_round_trip(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "plan.yaml"
        plan.write(path)
        assert_same(Plan.read(path), plan)
        first = path.read_bytes()
        Plan.read(path).write(path)
        assert path.read_bytes() == first


def test_values_stand_beside_the_plan(tmp_path: Path) -> None:
    plan = Plan(MODEL, {"drop": DROP}).with_values({"drop.attention.1.mean": torch.ones(3)})
    plan.write(tmp_path / "mine.yaml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.safetensors", "mine.yaml"]
    block = yaml.safe_load((tmp_path / "mine.yaml").read_text())["values"]
    content = (tmp_path / "mine.safetensors").read_bytes()
    assert block == {
        "file": "mine.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def test_plan_without_values_has_no_second_file(tmp_path: Path) -> None:
    Plan(MODEL, {"drop": {"attention": [1]}}).write(tmp_path / "plan.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_written_by_hand(tmp_path: Path) -> None:
    text = f"""
skimp: 1   # the format
model: {{type: llama, layers: 4, fingerprint: "{MODEL.fingerprint}"}}
drop:
  attention: [1, 2]
"""
    (tmp_path / "plan.yaml").write_text(text)
    found = Plan.read(tmp_path / "plan.yaml")
    assert_same(found, Plan(MODEL, {"drop": {"attention": [1, 2]}}))


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Plan(MODEL).write(tmp_path / "plan.yaml")
    finally:
        os.umask(before)
    assert (tmp_path / "plan.yaml").stat().st_mode & 0o777 == 0o640


def test_interrupted_write_keeps_the_old_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.yaml"
    Plan(MODEL, {"drop": DROP}).write(path)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        Plan(MODEL).write(path)
    monkeypatch.undo()
    assert_same(Plan.read(path), Plan(MODEL, {"drop": DROP}))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_new_section_forgets_its_old_values() -> None:
    plan = Plan(MODEL).with_values({"drop.a": torch.ones(1), "dropout.a": torch.ones(1)})
    changed = plan.with_section("drop", {"ffn": [1]})
    assert changed.values.keys() == {"dropout.a"}
    assert plan.values.keys() == {"drop.a", "dropout.a"}
    assert plan.sections == {}


def test_evidence_is_added_to() -> None:
    plan = Plan(MODEL).with_evidence(speed={"ratio": 1.5}).with_evidence(when="now")
    assert plan.evidence == {"speed": {"ratio": 1.5}, "when": "now"}


# --- what is wrong with a file ------------------------------------------------------------------

GOOD: dict[str, Any] = {"skimp": 1, "model": dict(vars(MODEL)), "drop": {"attention": [1]}}


def _changed(**changes: Any) -> str:
    return yaml.safe_dump({**GOOD, **changes})


def _without(name: str) -> str:
    return yaml.safe_dump({key: value for key, value in GOOD.items() if key != name})


def _model(**changes: Any) -> str:
    return _changed(model={**GOOD["model"], **changes})


WRONG: dict[str, tuple[str, str]] = {
    "empty": ("", "is not a plan: the key 'skimp: 1' is missing"),
    "a list": ("[1, 2]", "is not a plan: the key 'skimp: 1' is missing"),
    "other file": ("name: x\n", "is not a plan: the key 'skimp: 1' is missing"),
    "bad YAML": ("skimp: [1", "is not valid YAML"),
    "tab": ("skimp:\t1\n\tmodel: 2", "is not valid YAML"),
    "no such date": ("skimp: 1\nevidence: {when: 2001-99-99}", "is not valid YAML"),
    "bottomless": ("[" * 5000, "is not valid YAML"),
    "code": ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    "later format": (_changed(skimp=2), "skimp: "),
    "format as text": (_changed(skimp="one"), "skimp: "),
    "no model": (_without("model"), "model: "),
    "model a name": (_changed(model="llama"), "model: "),
    "no type": (
        _changed(model={"layers": 4, "fingerprint": MODEL.fingerprint}),
        r"model\.type: is missing",
    ),
    "no layers": (_model(layers=0), r"model\.layers: "),
    "layers as text": (_model(layers="many"), r"model\.layers: "),
    "short fingerprint": (_model(fingerprint="sha256:abc"), r"model\.fingerprint: "),
    "longer fingerprint": (_model(fingerprint=MODEL.fingerprint + "0"), r"model\.fingerprint: "),
    "unknown model key": (_model(size="7B"), r"model\.size: there is no such field"),
    "section a list": (_changed(drop=[1, 2]), "drop: "),
    "section empty": (_changed(drop=None), "drop: "),
    "key no text": (yaml.safe_dump({**GOOD, 7: {}}), "7"),
    "evidence a list": (_changed(evidence=[1]), "evidence: must be a valid mapping"),
    "values a name": (_changed(values="plan.safetensors"), "values: "),
    "values unsigned": (_changed(values={"file": "plan.safetensors"}), r"values\.sha256: "),
    "values elsewhere": (
        _changed(values={"file": "../plan.safetensors", "sha256": "0"}),
        r"values\.file: must be a file beside the plan",
    ),
    "values anywhere": (
        _changed(values={"file": "/etc/hostname", "sha256": "0"}),
        r"values\.file: must be a file beside the plan",
    ),
    "values above": (_changed(values={"file": "..", "sha256": "0"}), r"values\.file: "),
    "values gone": (_changed(values={"file": "gone", "sha256": "0"}), r"values\.file: .*missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_file_is_refused(case: str, tmp_path: Path) -> None:
    text, words = WRONG[case]
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(PlanError, match=words) as caught:
        Plan.read(path)
    assert_sentence(str(caught.value), path)


def assert_sentence(message: str, path: Path) -> None:
    assert message.startswith(str(path)), message
    assert message.endswith("."), message
    assert "\n" not in message, message


def test_unreadable_paths(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path, words in (
        (tmp_path / "none.yaml", "no such plan file"),
        (tmp_path, "cannot be read as a plan"),
        (tmp_path / "binary.yaml", "cannot be read as a plan"),
    ):
        with pytest.raises(PlanError, match=words) as caught:
            Plan.read(path)
        assert_sentence(str(caught.value), path)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _replace(path: Path) -> None:
    save_file({"drop.attention.1.mean": torch.zeros(3)}, path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit": _flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "another's": _replace,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_values_are_refused(damage: str, tmp_path: Path) -> None:
    plan = Plan(MODEL, {"drop": DROP}).with_values({"drop.attention.1.mean": torch.ones(3)})
    plan.write(tmp_path / "plan.yaml")
    sidecar = tmp_path / "plan.safetensors"
    DAMAGE[damage](sidecar)
    with pytest.raises(PlanError, match="is damaged or was changed") as caught:
        Plan.read(tmp_path / "plan.yaml")
    assert_sentence(str(caught.value), sidecar)


def test_values_of_another_format_are_refused(tmp_path: Path) -> None:
    content = b"\x80\x04K\x01."
    (tmp_path / "v.bin").write_bytes(content)
    values = {"file": "v.bin", "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "plan.yaml").write_text(_changed(values=values))
    with pytest.raises(PlanError, match="is not a safetensors file") as caught:
        Plan.read(tmp_path / "plan.yaml")
    assert_sentence(str(caught.value), tmp_path / "v.bin")


@given(text=st.text() | DATA.map(yaml.safe_dump) | SECTION.map(lambda s: _changed(**s)))
def test_any_text_is_read_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            Plan.read(path)
        except PlanError as error:
            assert_sentence(str(error), path)


# --- sections -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [("dorp", "did you mean 'drop'?"), ("drops", "did you mean 'drop'?"), ("zzz", "known are ")],
)
def test_unknown_section_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(PlanError) as caught:
        registry.sections(Plan(MODEL, {name: {}}))
    assert str(caught.value).startswith(f"{name}: there is no such method; ")
    assert hint in str(caught.value)


def test_known_sections_are_named_when_nothing_is_near() -> None:
    with pytest.raises(PlanError) as caught:
        registry.sections(Plan(MODEL, {"zzz": {}}))
    assert all(name in str(caught.value) for name in registry.methods())


def test_two_methods_cannot_share_a_name() -> None:
    found = dict(registry.methods())
    with pytest.raises(ValueError, match="'drop'"):
        registry._add(found, found["drop"])


# --- JSON Schema --------------------------------------------------------------------------------


def schema_faults(data: Any) -> list[str]:
    schema = registry.json_schema()
    return list(faults(data, schema, schema))


def test_schema_accepts_what_is_written(tmp_path: Path) -> None:
    plan = Plan.empty(Anatomy.of(build("llama"))).with_section("drop", DROP)
    plan = plan.with_values({"drop.attention.1.mean": torch.ones(3)}).with_evidence(a=1)
    plan.write(tmp_path / "plan.yaml")
    assert schema_faults(yaml.safe_load((tmp_path / "plan.yaml").read_text())) == []
    assert schema_faults(GOOD) == []


@pytest.mark.parametrize(
    "text",
    [
        _changed(skimp=2),
        _without("model"),
        _without("skimp"),
        _model(layers=0),
        _model(fingerprint="sha256:abc"),
        _model(size="7B"),
        _changed(drop={"attention": ["one"]}),
        _changed(drop={"attention": 1}),
        _changed(drop={"fill": 3}),
        _changed(drop={"atention": [1]}),
        _changed(dorp={"attention": [1]}),
        _changed(values={"file": "x"}),
    ],
)
def test_schema_refuses(text: str) -> None:
    assert schema_faults(yaml.safe_load(text))


def test_every_method_describes_its_fields() -> None:
    schema = registry.json_schema()
    for name in registry.methods():
        assert schema["properties"][name] == {"$ref": f"#/$defs/{name}"}
        fields = schema["$defs"][name]["properties"]
        assert fields
        assert all("description" in each or "$ref" in each for each in fields.values()), name


def test_a_digest_is_of_what_a_plan_does() -> None:
    plan = Plan(ModelRef("llama", 2, "sha256:" + "0" * 32), {"drop": {"attention": [1]}})
    fitted = plan.with_values({"drop.attention.1.mean": torch.ones(3)})
    refitted = plan.with_values({"drop.attention.1.mean": torch.zeros(3)})
    other = plan.with_section("drop", {"attention": [0]})
    assert len({each.digest() for each in (plan, fitted, refitted, other)}) == 4
    assert fitted.with_evidence(seconds=3).digest() == fitted.digest()
