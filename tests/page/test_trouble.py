"""What the page says when the server has no room, or is gone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from threading import Thread

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, expect

from tests.fixtures.images import encoded, photo
from tests.support.bundles import write_simulated
from tests.support.servers import ServerProcess, server_process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """It takes one picture at a time, and a second and a half over it."""
    tmp_path = tmp_path_factory.mktemp("simulated")
    write_simulated(tmp_path, batch_ms=1500)
    settings = {
        "models.directories": f'["{tmp_path}"]',
        "models.default": "simulated",
        "models.load": '["simulated"]',
        "limits.in_flight": "1",
        "limits.batch_items": "1",
    }
    arguments = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    with server_process(arguments, tmp_path / "log") as process:
        yield process


def as_file(name: str, seed: int = 7) -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": encoded(photo(seed=seed), "PNG")}


def test_busy_for_long(browser: Browser, server: ServerProcess) -> None:
    """After a few trials the page gives up and says why; the visitor may try again."""
    page = browser.new_page()
    refusal = '{"error": {"code": "TOO_BUSY", "message": "no room for this", "field": "", "retry_after_ms": 50}}'
    page.route("**/v1/score", lambda route: route.fulfill(status=429, body=refusal, content_type="application/json"))
    page.goto(server.rest)
    expect(page.locator("#model option")).to_have_count(1)
    page.set_input_files("#files", as_file("one.png"))
    expect(page.locator("#server-notice")).to_contain_text("The server is too busy: no room for this", timeout=15_000)
    page.unroute("**/v1/score")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".score dl")).to_have_count(1, timeout=20_000)
    expect(page.locator("#server-notice")).to_be_hidden()
    page.close()


def test_of_which_processes_nothing_is_told(browser: Browser, server: ServerProcess) -> None:
    """Of two, one is silent; then it is there again, and the other has begun anew with its counters at nothing."""
    page = browser.new_page()
    calls = {"operation": "score", "model": "simulated", "code": "OK"}
    told = {"processes": {"answered": 1, "of": 2, "missing": [1]}, "calls": [{**calls, "count": 5000}]}
    page.route(
        re.compile("/v1/(live|drift)$"),
        lambda route: route.fulfill(json={**route.fetch().json(), **{key: told[key] for key in told}}),
    )
    page.goto(server.rest)
    page.click("#tab-drift")
    expect(page.locator("#view-drift .notice")).to_have_text("without process 1 of 2, which did not answer")
    page.click("#tab-live")
    expect(page.locator("#live-state")).to_have_text("without process 1 of 2, which did not answer")
    told = {"processes": {"answered": 2, "of": 2, "missing": []}, "calls": [{**calls, "count": 7}]}
    expect(page.locator("#live-state")).to_have_text("updating every second")
    expect(page.locator("#view-live tr", has_text="simulated").locator("td").last).to_have_text("7")
    expect(page.locator(".figures dd").first).to_have_text("0.0")
    page.close()


def test_less_at_once_where_the_server_wants_it(browser: Browser, server: ServerProcess) -> None:
    """This server takes one picture a call; the page would send both in one."""
    page = browser.new_page()
    statuses: list[int] = []
    page.on("response", lambda response: statuses.append(response.status) if "/batch" in response.url else None)
    page.goto(server.rest)
    expect(page.locator("#model option")).to_have_count(1)
    page.set_input_files("#files", [as_file("one.png", 4), as_file("two.png", 5)])
    expect(page.locator("#sheet .number")).to_have_count(2, timeout=20_000)
    assert statuses == [413, 200, 200]
    page.close()


def test_busy_then_free_then_gone(browser: Browser, server: ServerProcess) -> None:
    page = browser.new_page()
    page.goto(server.rest)
    expect(page.locator("#model option")).to_have_count(1)

    def occupy() -> None:
        httpx.post(f"{server.rest}/v1/score", files={"image": encoded(photo(seed=3))}, timeout=120, trust_env=False)

    holding = Thread(target=occupy)
    holding.start()
    until = time.monotonic() + 60
    while httpx.get(f"{server.rest}/v1/live", trust_env=False).json()["under_way"]["pictures"] == 0:
        assert time.monotonic() < until
    page.set_input_files("#files", as_file("one.png", 8))
    expect(page.locator("#progress")).to_contain_text("The server is busy; trying again in")
    expect(page.locator(".score dl")).to_have_count(1, timeout=20_000)
    holding.join()

    server.terminate()
    page.fill("#prompt", "a cat")
    page.click("#score")
    expect(page.locator("#server-notice")).to_contain_text("does not answer. Is it still running?")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.locator("#detail")).to_contain_text("This picture was not scored.")
    page.click("#tab-live")
    expect(page.locator("#live-state")).to_contain_text("does not answer")
    page.close()
