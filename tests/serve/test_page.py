"""The built-in page in a real browser, with no network but the server's own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.serving import Running, running
from tests.serve.test_http import until

from skimp.serve.terms import Settings

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SHOTS = os.environ.get("SKIMP_TEST_SHOTS")  # a folder, to look at what was tested


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is not there")
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens the page of a server; anything the browser complains of fails the test."""
    contexts, complaints = [], []

    def opened(url: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else 0)
        page.on(
            "request",
            lambda asked: asked.url.startswith((url, "data:")) or complaints.append(asked.url),
        )
        page.goto(url + "/")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def write(page: Any, prompt: str, tokens: int = 24) -> None:
    page.fill("#prompt", prompt)
    page.fill("#tokens", str(tokens))
    page.click("#go:enabled")
    page.wait_for_selector("#go:enabled", timeout=20_000)


def shoot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def test_dense_and_planned_side_by_side(server: Running, open_page: Any) -> None:
    page = open_page(server.url)
    page.wait_for_selector("#go:enabled")
    assert page.inner_text("h1") == "tiny"
    write(page, "The river runs")
    for side in ("dense", "planned"):
        panel = page.locator(f"[data-side={side}]")
        assert panel.locator(".token").count() == 24
        assert panel.locator(".token.same").count() == 3  # the fake's sides part there
        assert panel.locator(".token.first").count() == 1
        assert float(panel.locator("[data-figure=speed]").inner_text()) > 0
        assert panel.locator(".depths rect").count() == 24
        assert panel.locator(".depths").is_visible()
        assert "of" in panel.locator("[data-figure=depth]").inner_text()
    assert "The first 3 of 24 tokens are the same" in page.inner_text("#verdict")
    assert "times as many tokens a second" in page.inner_text("#verdict")
    assert page.locator("#legend-depth").is_visible()
    shoot(page, "fake")


def test_the_text_is_the_api_s(server: Running, open_page: Any) -> None:
    page = open_page(server.url)
    page.wait_for_selector("#go:enabled")
    page.select_option("#mode", "text")
    write(page, "<b>The mill</b>")
    body = {"prompt": "<b>The mill</b>", "max_tokens": 24, "temperature": 0}
    for side, model in (("dense", "tiny:dense"), ("planned", "tiny")):
        found = httpx.post(f"{server.url}/v1/completions", json={**body, "model": model}).json()
        assert (
            page.locator(f"[data-side={side}] .text").text_content() == found["choices"][0]["text"]
        )


def test_both_at_once(server: Running, open_page: Any) -> None:
    page = open_page(server.url)
    page.check("#together")
    write(page, "The river runs")
    assert "shared the machine" in page.inner_text("#verdict")
    assert page.locator(".token").count() == 48


def test_one_side_alone(open_page: Any) -> None:
    with running(compare=False) as own:
        page = open_page(own.url)
        page.wait_for_selector("#go:enabled")
        write(page, "The river runs")
        assert page.locator(".side").count() == 1
        assert page.locator(".token").count() == 24
        assert page.locator(".token.first").count() == 0
        assert page.locator(".depths").is_hidden()
        assert page.locator("#together").is_hidden()
        assert page.locator("#legend").is_hidden()


def test_stopping_frees_the_server(open_page: Any) -> None:
    with running(pace_s=0.05) as own:
        page = open_page(own.url)
        page.wait_for_selector("#go:enabled")
        page.fill("#tokens", "200")
        page.click("#go")
        page.wait_for_selector(".token", state="attached")
        page.click("#stop")
        page.wait_for_selector("#go:enabled")
        assert page.inner_text("#verdict") == "Stopped."
        assert until(lambda: own.scheduler.cancelled == 1) < 1


def test_a_refusal_is_shown(browser: Any) -> None:
    with running(Settings(new=50)) as own:
        page = browser.new_page()
        page.goto(own.url)
        page.wait_for_selector("#go:enabled")
        write(page, "The river runs", tokens=51)
        assert "max_tokens: 51 is out of range" in page.inner_text("#verdict")
        page.close()


def test_a_key_is_asked_for_and_used(browser: Any) -> None:
    with running(Settings(key="s3cret")) as own:
        page = browser.new_page()
        page.goto(own.url)
        page.fill("#key:visible", "s3cret")
        page.press("#key", "Enter")
        page.wait_for_selector("#go:enabled")
        write(page, "The river runs")
        assert page.locator(".token").count() == 48
        page.close()


def test_everything_has_a_name_and_can_be_reached(server: Running, open_page: Any) -> None:
    page = open_page(server.url)
    page.wait_for_selector("#go:enabled")
    write(page, "The river runs")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll(
          "input, select, textarea, button, svg[role], [role=region]")]
        .filter((el) => !(el.labels?.length || el.ariaLabel || el.textContent.trim()))
        .map((el) => el.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    page.focus("#prompt")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert {"mode", "tokens", "temperature", "together", "go"} <= set(reached)
    page.fill("#prompt", "The mill")
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#go:enabled")
    assert page.locator(".token").count() == 48


def contrast(page: Any, selector: str) -> float:
    """WCAG 2 contrast of an element's text against what stands behind it."""
    return page.evaluate(
        """(selector) => {
          const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
            .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
          const numbers = (text) => {
            const canvas = document.createElement("canvas").getContext("2d");
            canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
            return canvas.getImageData(0, 0, 1, 1).data;
          };
          const el = document.querySelector(selector);
          const layers = [];
          for (let at = el; at; at = at.parentElement) {
            layers.push(getComputedStyle(at).backgroundColor);
          }
          let back = [255, 255, 255];
          const canvas = document.createElement("canvas").getContext("2d");
          for (const layer of layers.reverse()) {
            canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1);
          }
          back = canvas.getImageData(0, 0, 1, 1).data;
          const [a, b] = [light(numbers(getComputedStyle(el).color)), light(back)];
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_can_be_read(server: Running, open_page: Any, scheme: str, width: int) -> None:
    page = open_page(server.url, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.wait_for_selector("#go:enabled")
    write(page, "The river runs")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in (".lede", ".token.same", ".token.first", ".depth-5", ".note", "#go", "dt"):
        assert contrast(page, selector) >= 4.5, selector
    shoot(page, f"fake-{scheme}-{width}")


def test_the_page_may_load_nothing_else(server: Running) -> None:
    found = httpx.get(server.url)
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    for name in ("index.html", "page.css", "page.js"):
        text = httpx.get(f"{server.url}/page/{name}").text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), name
        assert "https://" not in text, name
        assert "style=" not in text
