"""`skimp inspect`."""

from pathlib import Path

import pytest
from tests.cli.conftest import Skimp, complaint, read


def test_counts_and_header(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    result = skimp("inspect", folder, "--dtype", "float32", "--json", "a.json")
    assert "0-3" in result.stdout
    assert "self_attn.q_proj" in result.stdout
    found = read(tmp_path / "a.json")
    model = found["model"]
    assert (model["type"], model["layers"], model["dtype"]) == ("llama", 4, "float32")
    assert model["fingerprint"].startswith("sha256:")
    assert found["plan"] is None
    assert found["planned"] is None
    assert found["command"].startswith("skimp inspect ")
    attention = 32 * 32 * 2 + 32 * 16 * 2 + 32
    [group] = found["layers"]
    assert group["layers"] == [0, 1, 2, 3]
    assert group["attention"]["parameters"] == attention
    assert group["attention"]["kv_bytes_per_token"] == 2 * 2 * 8 * 4
    assert model["parameters"] == found["totals"]["weight_bytes"] / 4
    assert sum(found["shares"].values()) == pytest.approx(1)


def test_a_plan_stands_beside_the_dense_model(
    skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path
) -> None:
    result = skimp("inspect", folder, "--plan", zero_plan, "--json", "a.json")
    assert "attention of layers 1-2" in result.stdout
    found = read(tmp_path / "a.json")
    saved = found["totals"]["kv_bytes_per_token"] / found["planned"]["totals"]["kv_bytes_per_token"]
    assert saved == 2
    assert [group["layers"] for group in found["planned"]["layers"]] == [[0, 3], [1, 2]]


def test_json_on_standard_output_is_alone_there(skimp: Skimp, folder: Path) -> None:
    import json

    result = skimp("inspect", folder, "--json", "-")
    assert json.loads(result.stdout)["model"]["layers"] == 4
    assert "self_attn.q_proj" in result.stderr


def test_a_shape_is_counted_without_being_allocated(skimp: Skimp, tmp_path: Path) -> None:
    """16 GB of weights would not fit here, nor be drawn in time."""
    skimp(
        *("inspect", "random:llama-3.1-8b", "--dtype", "bfloat16"),
        *("--workload", "8192+256x4", "--json", "a.json"),
    )
    found = read(tmp_path / "a.json")
    assert found["model"]["parameters"] == 8_030_261_248
    assert found["model"]["fingerprint"] is None
    assert found["shares"]["kv"] > 0.2


def test_a_plan_for_another_model_is_refused(skimp: Skimp, zero_plan: Path) -> None:
    words = ("inspect", "random:smollm2-135m", "--plan", zero_plan)
    assert "model.layers" in complaint(skimp(*words, code=2))


def test_a_second_plan_is_refused(skimp: Skimp, folder: Path, zero_plan: Path) -> None:
    skimp("apply", folder, "--plan", zero_plan, "--out", "small")
    skimp("inspect", "./small")
    words = ("inspect", "./small", "--plan", zero_plan)
    assert "carries a plan of its own" in complaint(skimp(*words, code=2))


def test_devices_share_a_model(skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path) -> None:
    words = ("inspect", folder, "--dtype", "float32", "--plan", zero_plan)
    result = skimp(*words, "--tensor-parallel", "2", "--link", "10,5", "--json", "a.json")
    assert "Each of 2 devices" in result.stdout
    found = read(tmp_path / "a.json")["tensor_parallel"]
    assert found["link"] == {"bandwidth": 10e9, "latency": pytest.approx(5e-6)}
    assert (found["dense"]["all_reduces"], found["planned"]["all_reduces"]) == (9, 7)
    assert found["dense"]["kv_bytes_per_token"] == 4 * 2 * 8 * 4
    assert found["planned"]["tpot_s"] > found["planned"]["decode"]["link"] > 8 * 5e-6
    skimp(*words, "--json", "b.json")
    assert read(tmp_path / "b.json")["tensor_parallel"] is None


@pytest.mark.parametrize(
    "words",
    [("--tensor-parallel", "3"), ("--link", "25,20"), ("--tensor-parallel", "2", "--link", "x")],
)
def test_devices_that_cannot_be_are_refused(
    skimp: Skimp, folder: Path, words: tuple[str, ...]
) -> None:
    assert complaint(skimp("inspect", folder, *words, code=2)).startswith("--")
