"""`skimp serve` as a user starts it: what it says, serves and refuses, and how it ends."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Skimp, complaint, make_tokenizer, read
from tests.cli.test_main import START, environment

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

# Where the tests' own process has its kernels: compiling them takes longer than any of these tests.
CACHE = os.environ.get("SKIMP_CACHE", "")
BODY = {"prompt": "The river runs", "max_tokens": 8, "temperature": 0}


@dataclass
class Started:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    document: dict[str, Any]
    said: Path

    def post(self, **body: Any) -> Any:
        return httpx.post(f"{self.url}/v1/completions", json={**BODY, **body}, timeout=60)


@contextmanager
def started(tmp_path: Path, *words: str | Path, **extra: str) -> Iterator[Started]:
    ready, said = tmp_path / "ready.json", tmp_path / "said.txt"
    command = [*START, "serve", *map(str, words), "--port", "0", "--json", str(ready)]
    with said.open("wb") as out:
        process = subprocess.Popen(
            command,
            env={**environment(**extra), "SKIMP_CACHE": CACHE},
            stdout=out,
            stderr=subprocess.STDOUT,
            # A background job may have been started with Ctrl-C ignored, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        until = time.monotonic() + 120
        while not ready.exists():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < until, said.read_text()
            time.sleep(0.1)
        document = read(ready)
        yield Started(document["url"], process, document, said)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)


def first_logprob(source: Path) -> float:
    """Of the likeliest token after the prompt, by transformers."""
    from skimp.models.load import load

    ids = torch.tensor([make_tokenizer()(BODY["prompt"])["input_ids"]])
    with torch.inference_mode():
        logits = load(str(source), dtype="float32").model(ids).logits[0, -1]
    return float(logits.log_softmax(-1).max())


def told_logprob(found: Any) -> float:
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]["logprobs"]["token_logprobs"][0]


@pytest.mark.slow
def test_a_model_is_served_until_ctrl_c(folder: Path, tmp_path: Path, skimp: Skimp) -> None:
    words = ("--max-new-tokens", "8", "--dtype", "float32", "--threads", "1")
    expected = skimp("generate", folder, "The river runs", *words).stdout.removesuffix("\n")
    with started(tmp_path, folder, "--dtype", "float32", "--threads", "1") as own:
        found = own.post(logprobs=0)
        assert found.json()["choices"][0]["text"] == expected
        assert found.json()["skimp"]["side"] == "dense"
        assert told_logprob(found) == pytest.approx(first_logprob(folder), abs=1e-4)
        assert own.document["models"] == {"model": "dense"}
        assert own.document["context"] == 512
        assert own.document["plan"] is None
        ids = make_tokenizer()(BODY["prompt"])["input_ids"]
        assert own.post(prompt=ids).json()["choices"] == own.post().json()["choices"]
        assert own.post(prompt="a secret prompt").status_code == 200
        assert own.post(prompt="a secret prompt", n="x").status_code == 400
        own.process.send_signal(signal.SIGINT)
        assert own.process.wait(60) == 0
        said = own.said.read_text()
        assert "model is served dense" in said
        for word in ("Warning", "Traceback", "secret"):
            assert word not in said


@pytest.mark.slow
def test_a_plan_beside_the_dense_model(folder: Path, tmp_path: Path, zero_plan: Path) -> None:
    options = ("--plan", zero_plan, "--compare", "--model-name", "mine", "--dtype", "float32")
    with started(tmp_path, folder, *options, "--api-key", "s3cret") as own:
        assert own.post().status_code == 401
        headers = {"Authorization": "Bearer s3cret"}
        found = [
            httpx.post(
                f"{own.url}/v1/completions",
                json={**BODY, "model": name, "logprobs": 0},
                headers=headers,
                timeout=60,
            )
            for name in ("mine", "mine:dense")
        ]
        assert [one.json()["skimp"]["side"] for one in found] == ["planned", "dense"]
        assert told_logprob(found[1]) == pytest.approx(first_logprob(folder), abs=1e-4)
        assert abs(told_logprob(found[0]) - told_logprob(found[1])) > 1e-4
        models = httpx.get(f"{own.url}/v1/models", headers=headers).json()["data"]
        assert models[0]["skimp"]["plan"] == "no attention in layers 1-2"
        check_example(own)
        assert "--api-key KEY" in own.document["command"]
        for text in (own.said.read_text(), json.dumps(own.document)):
            assert "s3cret" not in text
        own.process.terminate()
        assert own.process.wait(60) == 0


def check_example(own: Started) -> None:
    """The line for curl works once the key is filled in."""
    [line] = [one for one in own.said.read_text().splitlines() if one.startswith("curl ")]
    url, *rest = shlex.split(line)[1:]
    flags = list(zip(rest[::2], rest[1::2], strict=True))
    headers = dict(value.split(": ") for flag, value in flags if flag == "-H")
    [body] = [json.loads(value) for flag, value in flags if flag == "-d"]
    assert httpx.post(url, json=body, headers=headers).status_code == 401
    headers["Authorization"] = headers["Authorization"].replace("KEY", "s3cret")
    assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200


@pytest.mark.slow
def test_a_folder_that_apply_wrote(
    folder: Path, tmp_path: Path, zero_plan: Path, skimp: Skimp
) -> None:
    skimp("apply", folder, "--plan", zero_plan, "--out", "planned")
    with started(tmp_path, tmp_path / "planned", "--dtype", "float32") as own:
        found = own.post(logprobs=0)
        assert told_logprob(found) == pytest.approx(first_logprob(tmp_path / "planned"), abs=1e-4)
        assert found.json()["model"] == "planned"
        assert found.json()["skimp"]["side"] == "planned"


@pytest.mark.slow
def test_tokens_may_leave_early_where_anyone_may_ask(folder: Path, tmp_path: Path) -> None:
    from skimp.models.anatomy import Anatomy
    from skimp.models.load import load
    from skimp.plan import Plan

    section = {"probe": [0], "rule": "threshold", "translator": "plain", "threshold": -1.0}
    plan = Plan.empty(Anatomy.of(load(str(folder)).model)).with_section("exit", section)
    plan.write(tmp_path / "exit.yaml")
    options = ("--exit", tmp_path / "exit.yaml", "--host", "0.0.0.0")
    with started(tmp_path, folder, *options, SKIMP_API_KEY="") as own:
        found = own.post(skimp={"tokens": True}).json()["skimp"]
        depths = [token["depth"] for token in found["tokens"][0]]
        assert set(depths[1:]) == {1}
        assert found["layers"] == 4
        text = " ".join(own.said.read_text().split())
        assert "0.0.0.0 can be reached by others" in text
        assert "--api-key" in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--host", "no such host"], "--host"),
        (["--allow", "sides"], "--allow"),
        (["--cors", "a.example"], "--cors"),
        (["--cors", "https://a.example/path"], "--cors"),
        (["--api-key", " "], "--api-key"),
        (["--model-name", ""], "--model-name"),
        (["--port", "70000"], "--port"),
        (["--max-batch", "0"], "--max-batch"),
        (["--timeout", "-1"], "--timeout"),
        (["--plan", "nowhere.yaml"], "nowhere.yaml"),
        (["--experts", "2"], "--experts"),
        (["--json", "no/such/folder.json"], "--json"),
        (["--compare", "--port", "0"], "--compare"),
    ],
)
def test_mistakes_are_named(skimp: Skimp, folder: Path, words: list[str], named: str) -> None:
    assert named in complaint(skimp("serve", folder, *words, code=2))


def test_nothing_to_compare(skimp: Skimp) -> None:
    assert "--plan" in complaint(skimp("serve", "demo", "--compare", code=2))


def test_random_weights_have_no_words(skimp: Skimp) -> None:
    words = ("serve", "random:smollm2-135m,layers=1", "--port", "0")
    assert "tokenizer" in complaint(skimp(*words, code=2))


def test_a_model_that_is_not_there(skimp: Skimp) -> None:
    assert "no/model" in complaint(skimp("serve", "./no/model", "--port", "0", code=2))


def test_the_port_is_taken(skimp: Skimp, folder: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = complaint(skimp("serve", folder, "--port", str(port), code=2))
    assert f"--port: 127.0.0.1 port {port}" in said


def test_the_extra_is_missing(skimp: Skimp, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    said = complaint(skimp("serve", folder, code=2))
    assert said == "serve: uvicorn must be installed for it; pip install 'skimp[serve]'."
