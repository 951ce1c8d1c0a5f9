"""The Helm chart: its generated files, and what it renders to, by Helm's own library (``helm-python-sdk``).

    python -m tools.chart generate              values.schema.json, the table in docs/kubernetes.md, the golden renders
    python -m tools.chart check                 whether they are what `generate` would write
    python -m tools.chart template [FILE ...]   what `helm template` prints with these files of values, and the notes

``renders`` reads a JSON list of values and writes a list of {"text", "notes"} or {"error"}: for tests, so that Helm,
which is a program in Go, has a process of its own.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "critiq"
SCHEMA = CHART / "values.schema.json"
GOLDEN = ROOT / "tests" / "deploy" / "golden"
PAGE = ROOT / "docs" / "kubernetes.md"
TABLE = re.compile("(?<=<!-- values -->\n).*(?=<!-- end of values -->)", re.DOTALL)
"""The part of the page that is generated."""
_NOTES = "\nNOTES:\n"


def main(arguments: list[str]) -> int:
    command, *files = arguments or [""]
    if command == "renders":
        json.dump([_outcome(values) for values in json.load(sys.stdin)], sys.stdout)
    elif command == "template":
        sys.stdout.write(render(*(yaml.safe_load(Path(file).read_bytes()) or {} for file in files), notes=True))
    elif command in ("generate", "check") and not files:
        return _bring_up_to_date(write=command == "generate")
    else:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    return 0


def render(*values: dict[str, Any], notes: bool = False) -> str:
    """The chart's objects as YAML documents, sorted by template; later values win.

    Raises:
        helm_python.HelmError: the values are refused, or a template fails.
    """
    merged: dict[str, Any] = {}
    for one in values:
        merged = _merge(merged, one)
    _chart().validate_schema(merged)
    rendered = _chart().render(merged, name="critiq", namespace="scoring")
    said = rendered.pop("critiq/templates/NOTES.txt")
    found = []
    for name, text in sorted(rendered.items()):
        documents = [document.strip("\n") for document in re.split(r"(?m)^---\n", text)]
        found += [f"---\n# Source: {name}\n{document}\n" for document in documents if document.strip()]
    return "".join(found) + (_NOTES + said if notes else "")


@cache
def _chart() -> Any:
    import helm_python

    return helm_python.Chart.load(CHART)


def values_files() -> dict[str, Path]:
    """The files of values that are tested, by name."""
    return {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}


def described() -> dict[Path, str]:
    """The files that follow from values.yaml and the server's settings."""
    from tools.chart_values import schema, table

    return {
        SCHEMA: json.dumps(schema(), indent=1) + "\n",
        PAGE: TABLE.sub(lambda _: table(), PAGE.read_text()),
    }


def golden() -> dict[Path, str]:
    """What each file of values renders to."""
    return {
        GOLDEN / f"{name}.yaml": without_copies(render(yaml.safe_load(path.read_bytes()) or {}))
        for name, path in values_files().items()
    }


def without_copies(text: str) -> str:
    """A render without the alerts and the dashboard, which stand in files of their own."""
    documents = re.split(r"(?m)^(?=---\n)", text)
    return "".join(one for one in documents if "kind: PrometheusRule" not in one and "\n  critiq.json: |" not in one)


def _bring_up_to_date(*, write: bool) -> int:
    stale = False
    for files in (described, golden):  # renders are held against the schema, so that comes first
        for path, text in files().items():
            if path.exists() and path.read_text() == text:
                continue
            stale = True
            if write:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            else:
                sys.stderr.write(f"chart: {path.relative_to(ROOT)} is stale: python -m tools.chart generate\n")
    return 1 if stale and not write else 0


def _outcome(values: dict[str, Any]) -> dict[str, str]:
    import helm_python

    try:
        text = render(values, notes=True)
        objects, _, said = text.rpartition(_NOTES)
        return {"text": objects, "notes": said}
    except helm_python.HelmError as error:
        return {"error": str(error)}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        inner = merged.get(name)
        merged[name] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
