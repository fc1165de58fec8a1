"""The whole of it on tiny models: engines, the real scheduler, HTTP, OpenAI's client."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from tests.families import VOCABULARY, build
from tests.serve.serving import openai
from tests.serve.test_http import until
from tests.tiny import byte_tokenizer

from skimp.engine import Engine
from skimp.models.anatomy import Anatomy
from skimp.models.load import Loaded
from skimp.plan import Plan
from skimp.serve.build import build as build_service
from skimp.serve.host import Host, address, listen
from skimp.serve.jobs import Limits
from skimp.serve.service import Service
from skimp.serve.terms import OVERRIDES, Settings

DROP = {"attention": [1], "ffn": [0], "fill": "zero"}
EXIT = {"probe": [0], "rule": "threshold", "translator": "plain", "threshold": 0.02}
PROMPTS = [[5, 6, 7], [9, 10], [11] * 9, [12, 40, 3, 77]]


@contextmanager
def served(
    section: dict[str, Any] | None = None, name: str = "drop", **options: Any
) -> Iterator[tuple[str, Service, Any, Plan | None]]:
    model = build("llama")
    anatomy = Anatomy.of(model)
    plan = Plan.empty(anatomy).with_section(name, section) if section else None
    settings = Settings(allow=frozenset(OVERRIDES), grace_s=5, **options)
    service: list[Service] = []

    def made() -> Service:
        return build_service(
            Loaded(model, byte_tokenizer(), "tiny"),
            plan,
            name="tiny",
            compare=plan is not None,
            limits=Limits(batch=3, waiting=8, chunk=4),
            settings=settings,
        )

    ready = threading.Event()
    listening = listen("127.0.0.1", 0)
    host = Host(made, settings, listening, lambda s: (service.append(s), ready.set())[0])
    thread = threading.Thread(target=host.run)
    url = address(listening)
    thread.start()
    assert ready.wait(60)
    try:
        yield url, service[0], model, plan
    finally:
        host.close()
        thread.join(30)
        assert not thread.is_alive()


def expected(model: Any, plan: Plan | None, prompt: list[int], new: int) -> list[int]:
    engine = Engine(model, plan, decode="eager")
    return engine.generate([prompt], new)[0].tokens


def tokens_of(found: dict[str, Any]) -> list[list[int]]:
    return [
        [token["id"] for token in choice if token["id"] is not None]
        for choice in found["skimp"]["tokens"]
    ]


ASKED = {"temperature": 0, "max_tokens": 12, "skimp": {"tokens": True}}


@pytest.mark.parametrize(
    ("name", "section"), [("drop", DROP), ("exit", EXIT), ("experts", {"keep": 0.5}), ("", None)]
)
def test_answers_are_the_engine_s(name: str, section: dict[str, Any] | None) -> None:
    with served(section, name) as (url, service, model, plan):
        body = {**ASKED, "prompt": PROMPTS}
        for side in service.terms.sides:
            body["skimp"] = {"tokens": True, "side": side}
            found = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
            of = plan if side == "planned" else None
            assert tokens_of(found) == [expected(model, of, prompt, 12) for prompt in PROMPTS]
            depths = [t["depth"] for choice in found["skimp"]["tokens"] for t in choice]
            if (name, side) == ("exit", "planned"):
                assert found["skimp"]["mean_exit_depth"] < found["skimp"]["layers"]
                assert min(depth for depth in depths if depth is not None) == 1
            else:
                assert found["skimp"]["mean_exit_depth"] is None


def test_many_at_once_get_what_each_gets_alone() -> None:
    with served(DROP) as (url, service, model, plan):
        wanted = {
            (side, index): expected(model, plan if side == "planned" else None, prompt, 12)
            for side in service.terms.sides
            for index, prompt in enumerate(PROMPTS)
        }

        async def ask(client: Any, side: str, index: int) -> tuple[Any, list[int], int]:
            model = "tiny" if side == "planned" else "tiny:dense"
            stream = await client.completions.create(
                model=model,
                prompt=PROMPTS[index],
                max_tokens=12,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"skimp": {"tokens": True}},
            )
            ids, usage = [], 0
            async for chunk in stream:
                told = getattr(chunk, "skimp", None) or {}
                ids += [told["id"]] if "id" in told else []
                usage = chunk.usage.completion_tokens if chunk.usage else usage
            return (side, index), ids, usage

        async def all_of_them() -> list[Any]:
            async with openai.AsyncOpenAI(
                base_url=f"{url}/v1", api_key="none", max_retries=20
            ) as client:
                return await asyncio.gather(
                    *(ask(client, *key) for key in wanted for _ in range(4))
                )

        for key, ids, usage in asyncio.run(all_of_them()):
            assert ids == wanted[key]
            assert usage == len(ids)
        until(lambda: service.scheduler.stats().running == 0)
        assert service.scheduler.stats().columns == 0


def test_a_client_that_leaves_frees_its_place() -> None:
    with served() as (url, service, _, _):
        body = {"prompt": [5, 6], "max_tokens": 60, "skimp": {"ignore_ends": True}}
        for _ in range(3):
            with httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as s:
                next(s.iter_lines())
            assert until(lambda: service.scheduler.stats().running == 0) < 1
        assert service.scheduler.stats().columns == 0
        found = httpx.post(f"{url}/v1/completions", json={**ASKED, "prompt": [5, 6]})
        assert found.status_code == 200


def test_ends_may_be_ignored() -> None:
    with served() as (url, _, _, _):
        body = {"prompt": [5, 6], "max_tokens": 50, "seed": 3}
        found = httpx.post(
            f"{url}/v1/completions", json={**body, "skimp": {"ignore_ends": True}}
        ).json()
        assert found["usage"]["completion_tokens"] == 50
        assert found["choices"][0]["finish_reason"] == "length"


def test_time_runs_out() -> None:
    with served() as (url, _, _, _):
        body = {"prompt": [5, 6], "max_tokens": 60, "skimp": {"timeout_s": 1e-6}}
        found = httpx.post(f"{url}/v1/completions", json=body)
        assert found.status_code == 504, found.text
        assert found.json()["error"]["code"] == "timeout"


def test_logprobs_are_the_model_s() -> None:
    import torch

    with served() as (url, _, model, _):
        body = {"prompt": [5, 6, 7], "max_tokens": 1, "logprobs": 3, "temperature": 2}
        found = httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]["logprobs"]
        with torch.inference_mode():
            own = model(torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(-1)
        best = own.topk(3).values.tolist()
        told = sorted(found["top_logprobs"][0].values(), reverse=True)
        assert min(abs(told[0] - value) for value in best) < 1e-4
        assert min(abs(found["token_logprobs"][0] - value) for value in own.tolist()) < 1e-4


def test_tokens_outside_the_vocabulary() -> None:
    with served() as (url, _, _, _):
        found = httpx.post(f"{url}/v1/completions", json={"prompt": [5, VOCABULARY]})
        assert found.status_code == 400
        assert found.json()["error"]["param"] == "prompt[1]"
