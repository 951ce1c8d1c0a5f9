"""``critiq policy``: checks policies, and tries them on recorded scores, before a server decides by them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from critiq.cli import options, tables
from critiq.cli.running import BAD_INPUT, complain, run
from critiq_server.bundles.manifest import Manifest
from critiq_server.bundles.repository import BUILTIN, Bundle, find_bundles, version_order
from critiq_server.scoring.policies import SEVERITY, Policy, lacking
from critiq_server.scoring.policy_files import PolicyError, files_in, read_policy
from critiq_server.scoring.policy_trial import (
    Outcome,
    RecordingError,
    Trial,
    read_recording,
    severity_of_change,
    try_policy,
)

_NAME = "critiq policy"

app = typer.Typer(name=_NAME, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Check moderation policies and try them on recorded scores."""


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Policy files, or directories of them.")],
    models: Annotated[
        list[Path] | None, typer.Option(help="Directory of bundles, as in models.directories. May be repeated.")
    ] = None,
    default: Annotated[
        str, typer.Option(help="Model of policies that name none, as in models.default.")
    ] = "critiq-builtin",
    json: options.Json = False,
) -> None:
    """Read policies as a server would, and hold them against the models that they are about.

    Exit status: 0 all can be used, 2 at least one cannot.
    """
    bundles = find_bundles([*(models or []), BUILTIN])
    failed = False
    for path in [file for given in files for file in files_in(given)]:
        problem, policy, model = "", None, None
        try:
            policy = read_policy(path)
            model = _manifest(bundles, policy, default)
            problem = lacking(policy, model) if model is not None else ""
        except PolicyError as error:
            problem = str(error)
        failed = failed or bool(problem)
        if json:
            tables.print_json(_checked(path, policy, model, problem))
        elif problem:
            complain(_NAME, problem if str(path) in problem else f"{path}: {problem}")
        elif policy is not None:
            about = (
                f"fits {model.name} {model.version}" if model else f"its model {policy.model or default} is not here"
            )
            looked = ", ".join(policy.dimensions) or "no dimension"
            sys.stdout.write(
                f"{path}: {policy.name} {policy.version}: {len(policy.rules)} rules over {looked}; {about}\n"
            )
    if failed:
        raise typer.Exit(BAD_INPUT)


@app.command(name="try")
def try_(
    file: Annotated[Path, typer.Argument(metavar="NEW.yaml", help="The policy.")],
    scores: Annotated[
        list[Path],
        typer.Option(help="Recording: what `critiq score --output X.jsonl` or --json wrote. May be repeated."),
    ],
    against: Annotated[Path | None, typer.Option(help="An older policy: what changes is told.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Pictures to name for each change.")] = 5,
    json: options.Json = False,
) -> None:
    """Decide about recorded scores, without a server: how often each decision, each rule, and what changes."""
    new = read_policy(file)
    old = read_policy(against) if against is not None else None
    recorded = (entry for path in scores for entry in read_recording(path))
    trial = try_policy(new, recorded, old, examples)
    if trial.pictures == 0:
        raise RecordingError(f"{', '.join(map(str, scores))}: there are no pictures in it")
    if json:
        tables.print_json(_trial_json(trial))
        return
    tables.print_table(_decisions_table(trial))
    tables.print_table(_rules_table(trial.new))
    if trial.old is not None:
        _print_changes(trial)
    for note in _notes(trial):
        complain(_NAME, note)


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq policy ARGUMENTS``; returns the exit status."""
    return run(app, _NAME, arguments, (PolicyError, RecordingError))


def _manifest(bundles: Mapping[str, Mapping[str, Bundle]], policy: Policy, default: str) -> Manifest | None:
    """Of the model that the policy is about; ``None`` if its bundle is not here."""
    versions = bundles.get(policy.model or default, {})
    version = policy.model_version or max(versions, key=version_order, default="")
    return versions[version].manifest if version in versions else None


def _checked(path: Path, policy: Policy | None, model: Manifest | None, problem: str) -> dict[str, Any]:
    return {
        "file": str(path),
        "policy": policy.name if policy is not None else None,
        "version": policy.version if policy is not None else None,
        "dimensions": policy.dimensions if policy is not None else [],
        "model": f"{model.name} {model.version}" if model is not None else None,
        "problem": problem or None,
    }


def _trial_json(trial: Trial) -> dict[str, Any]:
    return {
        "pictures": trial.pictures,
        "failed": trial.failed,
        "new": _outcome_json(trial.new),
        "old": _outcome_json(trial.old) if trial.old is not None else None,
        "changes": [
            {
                "from": pair[0],
                "to": pair[1],
                "pictures": trial.changes[pair],
                "examples": [
                    {"file": change.file, "reasons": change.reasons} for change in trial.examples.get(pair, [])
                ],
            }
            for pair in sorted(trial.changes, key=severity_of_change)
        ],
        "notes": list(_notes(trial)),
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    total = sum(outcome.decisions.values())
    return {
        "policy": outcome.policy.name,
        "version": outcome.policy.version,
        "decisions": {name: outcome.decisions[name] for name in SEVERITY},
        "rules": [
            {
                "rule": rule.name,
                "decision": rule.decision,
                "spoke": outcome.rules[rule.name],
                "share": outcome.rules[rule.name] / total if total else 0.0,
                "decided": outcome.decided[rule.name],
            }
            for rule in outcome.policy.rules
        ],
        "missing": outcome.missing,
        "default": outcome.default,
    }


def _decisions_table(trial: Trial) -> Table:
    table = _table(f"{trial.pictures} pictures, {trial.failed} failed")
    table.add_column("policy")
    for decision in SEVERITY:
        table.add_column(decision, justify="right")
    for outcome in (trial.old, trial.new):
        if outcome is not None:
            total = sum(outcome.decisions.values())
            cells = [_share(outcome.decisions[decision], total) for decision in SEVERITY]
            table.add_row(f"{outcome.policy.name} {outcome.policy.version}", *cells)
    return table


def _rules_table(outcome: Outcome) -> Table:
    total = sum(outcome.decisions.values())
    table = _table(f"rules of {outcome.policy.name} {outcome.policy.version}")
    for name in ("rule", "decision"):
        table.add_column(name, overflow="fold")
    table.add_column("spoke", justify="right")
    table.add_column("decided", justify="right")
    for rule in outcome.policy.rules:
        cells = (_share(outcome.rules[rule.name], total), _share(outcome.decided[rule.name], total))
        table.add_row(Text(rule.name), rule.decision, *cells)
    table.add_row("(a score is missing)", outcome.policy.missing, _share(outcome.missing, total), "")
    table.add_row("(nothing speaks)", outcome.policy.default, _share(outcome.default, total), "")
    return table


def _print_changes(trial: Trial) -> None:
    table = _table(f"{sum(trial.changes.values())} pictures change")
    for name in ("from", "to"):
        table.add_column(name)
    table.add_column("pictures", justify="right")
    table.add_column("for instance", overflow="fold")
    for pair in sorted(trial.changes, key=severity_of_change):
        shown = [f"{change.file}: {'; '.join(change.reasons)}" for change in trial.examples.get(pair, [])]
        table.add_row(*pair, str(trial.changes[pair]), Text("\n".join(shown)))
    tables.print_table(table)


def _notes(trial: Trial) -> Iterator[str]:
    """What makes the figures mean less than they seem to."""
    scored = trial.pictures - trial.failed
    for dimension, count in trial.unscored.items():
        yield f"{count} of {scored} pictures have no score of {dimension}; each counts as missing"
    for flag, count in trial.untold.items():
        yield (
            f"{count} of {scored} pictures do not tell the flag {flag}, which counts as not set there; "
            "record with `critiq score --json`, which keeps every flag"
        )
    for model, count in trial.strangers.items():
        yield f"{count} pictures were scored by {model}, and the policy is about {trial.new.policy.model}"


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else "0"


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", title_style="bold")
