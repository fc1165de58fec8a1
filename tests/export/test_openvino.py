"""OpenVINO says what the planned model says; the rest needs no OpenVINO."""

import json
import stat
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.export import engines

from skimp.errors import ExportError
from skimp.export.openvino.target import FAMILIES, TARGET
from skimp.export.verify import verify
from skimp.export.write import Refused, export

PYTHON = "SKIMP_OPENVINO_PYTHON"


def stub(folder: Path, answer: str) -> Path:
    """An interpreter that says it has all modules, and then runs `answer` on the job."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\ncase "$3" in *.py) exec {answer} ;; esac\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_an_interpreter_without_optimum_is_said_beforehand(tmp_path: Path) -> None:
    if find_spec("optimum"):
        pytest.skip("optimum is installed here")
    with engines.planned("llama", "zero") as made, pytest.raises(Refused, match="--engine-python"):
        export(made, TARGET, "f16", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_no_interpreter_at_all(tmp_path: Path) -> None:
    with (
        engines.planned("llama", "zero", python=tmp_path / "none") as made,
        pytest.raises(ExportError, match=r"--engine-python: .*none cannot be run"),
    ):
        export(made, TARGET, "f16", tmp_path / "out")


def test_families_that_were_not_tried_are_refused(tmp_path: Path) -> None:
    python = stub(tmp_path, "true")
    with engines.planned("gemma2", "zero", python=python) as made, pytest.raises(Refused) as error:
        export(made, TARGET, "f16", tmp_path / "out")
    assert [each.field for each in error.value.obstacles] == ["model"]


def test_the_conversion_gets_a_folder_and_a_job(tmp_path: Path) -> None:
    python = stub(tmp_path, f"tee {tmp_path}/job.json")
    with engines.planned("qwen3", "linear:8", python=python) as made:
        export(made, TARGET, "int4", tmp_path / "out")
    job = json.loads((tmp_path / "job.json").read_text())
    assert (job["family"], job["form"]) == ("qwen3", "int4")
    assert not Path(job["model"]).exists(), "what was only on the way is gone"


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    python = stub(tmp_path, 'sh -c "echo ValueError: no >&2; exit 1"')
    with (
        engines.planned("llama", "zero", python=python) as made,
        pytest.raises(ExportError, match=r"the conversion failed \(ValueError: no\)"),
    ):
        export(made, TARGET, "f16", inside / "out")
    assert not list(inside.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_says_what_the_planned_model_says(family: str, tmp_path: Path) -> None:
    python = engines.interpreter(PYTHON)
    with engines.planned(family, "linear:8", narrow=family == "llama", python=python) as made:
        written = export(made, TARGET, "f32", tmp_path / "out")
        found = verify(made, TARGET, written, python=python, prompts=6)
    assert found.passed, found.sentence


@pytest.mark.parametrize(("form", "most"), [("f16", 1.1), ("int8", 0.65), ("int4", 0.45)])
def test_weights_are_compressed(form: str, most: float, tmp_path: Path) -> None:
    """`most`: of the size in float16, embedding and head of so small a model weighing much."""
    python = engines.interpreter(PYTHON)
    with engines.planned("llama", "mean", python=python) as made:
        written = export(made, TARGET, form, tmp_path / "out")
        found = verify(made, TARGET, written, python=python, prompts=4)
    size = (written.path / "openvino_model.bin").stat().st_size
    assert size < most * 2 * made.anatomy.parameters
    assert found.passed is (True if form == "f16" else None)
    assert found.max_difference is not None
    assert (found.max_difference > 0.05) == form.startswith("int")
