"""docs/settings.md says what the settings say."""

from __future__ import annotations

import re

from tools import settings_page

FILES = (".py", ".proto", ".md", ".yaml", ".json", ".db", ".csv", ".jsonl")
CODE = ("models.proto", "jobs.proto")


def test_the_page_is_what_the_settings_say() -> None:
    assert settings_page.main(["check"]) == 0, "run: python -m tools.settings_page generate"


def test_every_setting_says_what_it_means() -> None:
    rows = [line.split(" | ") for line in settings_page.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row[0] for row in rows if row[-1].strip(" |") == ""] == []


def test_the_documentation_names_settings_that_are_there() -> None:
    known = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", settings_page.page()))
    sections = {name.partition(".")[0] for name in known}
    parents = {name.rpartition(".")[0] for name in known}
    named = re.compile(rf"`((?:{'|'.join(sorted(sections))})(?:\.[a-z_]+)+)(?:[:=][^`]*)?`")
    wrong = [
        (path.name, name)
        for path in [*settings_page.PAGE.parent.glob("*.md"), settings_page.PAGE.parents[1] / "README.md"]
        if path.name != "kubernetes.md"  # which names values of the chart
        for name in named.findall(path.read_text())
        if name not in known | parents and not name.endswith(FILES) and not name.startswith(CODE)
    ]
    assert wrong == []
