"""A real browser, a server with its own model to open in it, and pictures.

The browser is module-scoped: its event loop must be gone before other modules' asynchronous tests run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Response,
    expect,
    sync_playwright,
)

from tests.fixtures.images import encoded, photo
from tests.support.bundles import write_bundle
from tests.support.photographs import blurred, photographs
from tests.support.servers import server_process

PROMPT = "a red wooden door"
HOSTILE = "<img src=x onerror=document.title='hacked'>.png"
POLICY = """
name: gallery
version: "1"
rules:
  - {name: too-poor, when: {dimension: visual_quality, below: 0.99}, decision: reject, message: Not <b>fine</b> enough.}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium fonts-dejavu-core")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a page said and asked for."""

    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def attach(self, page: Page) -> None:
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("request", self._asked)
        page.on("response", self._answered)

    def paths(self) -> list[str]:
        return [urlsplit(url).path for url in self.requests]

    def _said(self, message: ConsoleMessage) -> None:
        # Failed requests are judged by what the page makes of them.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.problems.append(f"{message.type}: {message.text}")

    def _asked(self, request: Request) -> None:
        self.requests.append(request.url)

    def _answered(self, response: Response) -> None:
        if response.status >= 500:
            self.problems.append(f"{response.status} {response.url}")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    policy = folder / "gallery.yaml"
    policy.write_text(POLICY)
    write_bundle(folder / "bundles")
    settings = [f'moderation.policies=["{policy}"]', f'models.directories=["{folder / "bundles"}"]']
    with server_process([part for setting in settings for part in ("--set", setting)], folder / "log") as server:
        yield server.rest


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A photograph, a poor copy of another, a small picture, and no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    (door, _), (other, _) = (entry for entry in photographs("kodak", 2))
    found = {
        "door.png": encoded(door, "PNG"),
        "poor.png": blurred(other),
        "small.png": encoded(photo(200, 150), "PNG"),
        "notes.png": b"these are notes, not pixels",
        HOSTILE: encoded(photo(240, 240), "PNG"),
        """it's; "one", <b>.jpg""": encoded(photo(230, 300), "JPEG"),
    }
    for name, content in found.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in found}


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def page(browser: Browser, url: str, watch: Watch) -> Iterator[Page]:
    """The page, freshly opened. Afterwards it must have complained of nothing and asked nobody else."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    watch.attach(page)
    page.goto(url)
    expect(page.locator("#model option")).not_to_have_count(0)
    yield page
    context.close()
    assert watch.problems == []
    origins = {f"{part.scheme}://{part.netloc}" for part in map(urlsplit, watch.requests) if part.scheme != "blob"}
    assert origins == {url}


def ask(url: str, path: str, pictures: list[Path], **fields: str) -> Any:
    """What the API says."""
    data = [("image", ("image", picture.read_bytes())) for picture in pictures]
    response = httpx.post(f"{url}{path}", files=data, data=fields, timeout=60, trust_env=False)
    assert response.status_code == 200, response.text
    return response.json()


def choose(page: Page, *pictures: Path, prompt: str = "") -> None:
    page.fill("#prompt", prompt)
    page.set_input_files("#files", list(pictures))
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


def order(page: Page) -> list[str]:
    return page.locator("#sheet tbody th").all_inner_texts()


def reach(page: Page, target: Locator) -> None:
    """Presses Tab until ``target`` has the focus."""
    for _ in range(80):
        if target.evaluate("node => node === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {target}")
