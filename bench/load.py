"""Many clients at once against a server: no error, no lost token, no growing memory.

    python bench/load.py --streams 64 --seconds 120 --json bench/results/load.json

Without --url it starts `skimp serve` itself. Every client streams one answer after the other, each
to a prompt of a fixed set and greedily; how the answers must look is asked for beforehand, one by
one. See bench/README.md.
"""

import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from skimp.cli import output
from skimp.errors import SkimpError
from skimp.measure.machine import identity

PROMPTS = [
    "Why is the sky blue?",
    "Name three rivers of Europe.",
    "What is a haiku?",
    "Explain how bread rises.",
    "Who wrote Don Quixote?",
    "How far away is the moon?",
    "Give me a recipe for pancakes, in short.",
    "What do bees do in winter? Answer in two sentences, and mention the queen.",
]
# Two tokens this close, in nats, may change places with the size of the batch: sums are rounded.
TIE = 0.1


@dataclass(frozen=True)
class Expected:
    """A prompt's answer when nobody else asks: tokens, and how far ahead each was of the next."""

    prompt: str
    new: int
    tokens: tuple[int, ...]
    leads: tuple[float, ...]


@dataclass
class Tally:
    """What the clients saw."""

    answers: int = 0
    tokens: int = 0
    busy: int = 0
    ties: int = 0
    errors: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The documents of a streamed answer; its end must be said."""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise Refused(response.status_code, (await response.aread()).decode())
        ended = False
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                ended = True
                continue
            found = json.loads(line[6:])
            if "error" in found:
                raise Refused(200, found["error"]["message"])
            yield found
        if not ended:
            raise Refused(200, "the stream ended without [DONE]")


class Refused(Exception):
    """The server's answer was no answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:200]}")
        self.status = status


def asking(prompt: str, new: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": new,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "skimp": {"tokens": True},
    }


async def expect(client: httpx.AsyncClient, prompt: str, new: int) -> Expected:
    """Ask once, alone, with the runner-up of every token."""
    body = {**asking(prompt, new), "logprobs": True, "top_logprobs": 2}
    tokens, leads = list[int](), list[float]()
    async for chunk in stream(client, body):
        if "id" in chunk.get("skimp", {}):
            tokens.append(chunk["skimp"]["id"])
            [entry] = chunk["choices"][0]["logprobs"]["content"]
            first, second = (one["logprob"] for one in entry["top_logprobs"])
            leads.append(abs(first - second))
    return Expected(prompt, new, tuple(tokens), tuple(leads))


async def one(client: httpx.AsyncClient, expected: Expected, tally: Tally) -> None:
    """Stream one answer and hold it against what was expected."""
    last = time.perf_counter()
    tokens, usage, finish = list[int](), None, None
    async for chunk in stream(client, asking(expected.prompt, expected.new)):
        if "id" in chunk.get("skimp", {}):
            now = time.perf_counter()
            (tally.gap_s if tokens else tally.first_s).append(now - last)
            last = now
            tokens.append(chunk["skimp"]["id"])
        for choice in chunk["choices"]:
            finish = choice["finish_reason"] or finish
        usage = chunk.get("usage") or usage
    tally.answers += 1
    tally.tokens += len(tokens)
    told = usage["completion_tokens"] if usage else None
    if told != len(tokens) or finish is None:
        tally.lost.append(f"{expected.prompt!r}: usage {told}, received {len(tokens)}, {finish}")
    compare(expected, tokens, tally)


def compare(expected: Expected, tokens: Sequence[int], tally: Tally) -> None:
    """Tokens must be the expected ones, up to where two were as likely as each other."""
    if tuple(tokens) == expected.tokens:
        return
    pairs = zip(tokens, expected.tokens, strict=False)
    at = next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(expected.tokens))
    )
    if at < len(expected.leads) and expected.leads[at] <= TIE:
        tally.ties += 1
    else:
        lead = expected.leads[at] if at < len(expected.leads) else None
        tally.wrong.append(f"{expected.prompt!r}: token {at} differs, lead {lead}")


async def client_of(
    client: httpx.AsyncClient, expected: list[Expected], until: float, tally: Tally, seed: int
) -> None:
    draw = random.Random(seed)
    while time.perf_counter() < until:
        try:
            await one(client, draw.choice(expected), tally)
        except Refused as error:
            if error.status == 429:
                tally.busy += 1
                await asyncio.sleep(0.2)
            else:
                tally.errors.append(str(error))
        except httpx.HTTPError as error:
            tally.errors.append(f"{type(error).__name__}: {error}")


async def watch(pid: int | None, url: httpx.AsyncClient, tally: Tally) -> None:
    """Note the server's resident memory every second, by its own metrics if it runs elsewhere."""
    import psutil

    since = time.perf_counter()
    while True:
        if pid is not None:
            size = psutil.Process(pid).memory_info().rss
        else:
            text = (await url.get("/metrics")).text
            lines = [x for x in text.splitlines() if x.startswith("process_resident_memory_bytes ")]
            size = int(float(lines[0].split()[1])) if lines else 0
        tally.memory.append((round(time.perf_counter() - since, 1), size))
        await asyncio.sleep(1)


async def run(url: str, pid: int | None, streams: int, seconds: float, new: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=streams + 4, max_keepalive_connections=streams + 4)
    options: dict[str, Any] = {"base_url": url, "timeout": 600, "limits": limits}
    async with httpx.AsyncClient(**options) as client:
        await expect(client, PROMPTS[0], new)  # the first answer may come by torch
        lengths = [new, max(1, new // 2), max(1, new // 4)]
        expected = [await expect(client, prompt, n) for prompt in PROMPTS for n in lengths]
        expected = [one for one in expected if one.tokens]
        tally = Tally()
        watching = asyncio.create_task(watch(pid, client, tally))
        since = time.perf_counter()
        until = since + seconds
        clients = (client_of(client, expected, until, tally, seed) for seed in range(streams))
        await asyncio.gather(*clients)
        took = time.perf_counter() - since
        alone = await expect(client, PROMPTS[0], new)
        if alone.tokens != expected[0].tokens:
            compare(expected[0], alone.tokens, tally)
        health = (await client.get("/health")).json()
        await asyncio.sleep(1.1)
        watching.cancel()
    return summary(tally, took, streams) | {"after": health}


def summary(tally: Tally, took: float, streams: int) -> dict[str, Any]:
    """The figures of a run, as plain data."""
    sizes = [size for _, size in tally.memory]
    third = max(1, len(sizes) // 3)
    return {
        "streams": streams,
        "seconds": took,
        "answers": tally.answers,
        "tokens": tally.tokens,
        "tokens_per_s": tally.tokens / took,
        "busy": tally.busy,
        "errors": tally.errors,
        "lost": tally.lost,
        "wrong": tally.wrong,
        "ties": tally.ties,
        "first_s": quantiles(tally.first_s),
        "gap_s": quantiles(tally.gap_s),
        "memory": tally.memory,
        "memory_first": statistics.median(sizes[:third]) if sizes else None,
        "memory_last": statistics.median(sizes[-third:]) if sizes else None,
        "memory_most": max(sizes, default=None),
    }


def quantiles(values: list[float]) -> dict[str, float] | None:
    if len(values) < 2:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"median": cuts[49], "p90": cuts[89], "p99": cuts[98], "most": max(values)}


@contextmanager
def server(words: list[str]) -> Iterator[tuple[str, int]]:
    """`skimp serve` in a process of its own: its address and process id."""
    with tempfile.TemporaryDirectory() as folder:
        ready, log = Path(folder) / "ready.json", Path(folder) / "log.txt"
        start = [sys.executable, "-m", "skimp.cli.main", "serve", *words, "--port", "0"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*start, "--json", str(ready)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SKIMP_API_KEY": ""},
            )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SkimpError(f"the server did not start: {log.read_text()[-500:]}")
                time.sleep(0.2)
            yield json.loads(ready.read_text())["url"], process.pid
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 0:
                raise SkimpError(f"the server ended badly: {log.read_text()[-500:]}")
            if "Traceback" in log.read_text():
                raise SkimpError(f"the server's log has a traceback: {log.read_text()[-2000:]}")
        finally:
            if process.poll() is None:
                process.kill()


def table(found: dict[str, Any]) -> Any:
    made = output.table(
        f"{found['streams']} streams for {found['seconds']:.0f} s", "what", ">figure"
    )
    rows = {
        "answers": found["answers"],
        "tokens": found["tokens"],
        "tokens/s": f"{found['tokens_per_s']:.1f}",
        "refused for now (429)": found["busy"],
        "errors": len(found["errors"]),
        "answers with lost tokens": len(found["lost"]),
        "answers unlike the lone one": len(found["wrong"]),
        "answers that part from it at a tie": found["ties"],
    }
    for key, words in (("first_s", "first token"), ("gap_s", "between tokens")):
        if found[key]:
            rows |= {
                f"{words}, {name}": f"{found[key][name] * 1000:.0f} ms"
                for name in ("median", "p90", "p99")
            }
    for key, words in (("first", "first third"), ("last", "last third"), ("most", "at most")):
        size = found[f"memory_{key}"]
        if size:
            rows[f"memory, {words}"] = f"{size / 2**20:.0f} MiB"
    for what, figure in rows.items():
        made.add_row(what, str(figure))
    return made


def main(
    streams: Annotated[int, typer.Option(min=1, help="Clients at once.")] = 16,
    seconds: Annotated[float, typer.Option(min=1, help="How long they go on asking.")] = 20.0,
    new: Annotated[int, typer.Option(min=4, help="Tokens of an answer, at most.")] = 48,
    url: Annotated[
        str | None, typer.Option(help="A server that runs already, such as http://127.0.0.1:8000.")
    ] = None,
    model: Annotated[str, typer.Option(help="What to serve otherwise.")] = "demo",
    serve: Annotated[
        str, typer.Option(help="Further words for `skimp serve`, such as '--plan plan.yaml'.")
    ] = "--threads 1",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Put a server under load and check every answer; exit code 1 if something was wrong."""
    try:
        output.check_file(json_file, "--json")
        words = [model, *serve.split(), "--max-waiting", str(max(64, streams))]
        if url is not None:
            found = asyncio.run(run(url, None, streams, seconds, new))
        else:
            with server(words) as (address, pid):
                found = asyncio.run(run(address, pid, streams, seconds, new))
    except (SkimpError, Refused, httpx.HTTPError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    console = output.console(stderr=json_file == output.STDOUT)
    console.print(table(found))
    bad = [*found["errors"], *found["lost"], *found["wrong"]]
    for line in bad[:10]:
        console.print(line, markup=False, soft_wrap=True)
    document = {"machine": identity(), "served": words if url is None else url, "new": new, **found}
    if json_file == output.STDOUT:
        typer.echo(output.dump(document), nl=False)
    elif json_file is not None:
        output.write_text(json_file, output.dump(document), "--json")
    raise typer.Exit(1 if bad else 0)


if __name__ == "__main__":
    typer.run(main)
