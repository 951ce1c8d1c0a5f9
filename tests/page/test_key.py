"""The page on a server that asks for keys."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from critiq_server.security.keys import append, new_key
from tests.fixtures.images import encoded, photo
from tests.page.conftest import Watch
from tests.support.bundles import write_bundle
from tests.support.servers import server_process


def test_the_page_asks_for_a_key_and_keeps_it_for_this_tab(browser: Browser, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundles")
    text, key = new_key("visitor", ["score"])
    append(tmp_path / "keys.yaml", key)
    settings = {
        "models.directories": f'["{tmp_path / "bundles"}"]',
        "models.default": "tiny",
        "models.load": '["tiny"]',
        "security.keys_file": str(tmp_path / "keys.yaml"),
    }
    arguments = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    with server_process(arguments, tmp_path / "log") as server:
        page, watch = browser.new_page(), Watch()
        watch.attach(page)
        page.goto(server.rest)
        field = page.get_by_label("API key").and_(page.locator("input"))
        expect(field).to_be_visible()
        expect(page.locator("#key-why")).to_contain_text("asks for an API key")
        field.fill("critiq_wrong")
        field.press("Enter")
        expect(page.locator("#key-why")).to_have_text("The server does not know this key.")
        field.fill(text)
        field.press("Enter")
        expect(page.locator("#model option")).to_have_count(1)
        expect(field).to_be_hidden()
        picture = {"name": "one.png", "mimeType": "image/png", "buffer": encoded(photo(seed=7), "PNG")}
        page.set_input_files("#files", picture)  # type: ignore[arg-type]
        expect(page.locator(".score dl")).to_have_count(1, timeout=20_000)
        assert "Bearer $CRITIQ_API_KEY" in (page.locator("body").text_content() or "")
        assert text not in page.content()
        page.reload()
        expect(page.locator("#model option")).to_have_count(1)
        expect(field).to_be_hidden()
        page.goto(server.rest + "/#live")
        page.locator("#tab-live").click()
        expect(page.locator("#view-live")).to_contain_text("needs a key with the scope metrics")
        assert not watch.problems
        assert all(url.startswith((server.rest, "blob:")) for url in watch.requests)
        page.close()
        other = browser.new_page()
        other.goto(server.rest)
        expect(other.locator("#key")).to_be_visible()
        other.close()
    assert text not in (tmp_path / "log").read_text()
