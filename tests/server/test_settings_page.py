"""docs/settings.md says what the settings say."""

from __future__ import annotations

from tools import settings_page


def test_the_page_is_what_the_settings_say() -> None:
    assert settings_page.main(["check"]) == 0, "run: python -m tools.settings_page generate"


def test_every_setting_says_what_it_means() -> None:
    rows = [line.split(" | ") for line in settings_page.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row[0] for row in rows if row[-1].strip(" |") == ""] == []
