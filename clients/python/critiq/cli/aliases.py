"""``critiq models aliases``, ``route``, ``promote``, ``rollback``, ``remove`` and ``shadow``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import typer
from rich.table import Table
from rich.text import Text

from critiq import Client
from critiq.aliases import Alias, AliasRoute, ShadowReport
from critiq.cli import tables


def show_all(client: Client, json: bool) -> None:
    found = client.aliases()
    if not json:
        tables.print_table(_aliases_table(found))
        return
    for alias in found:
        tables.print_json(alias)


def route(client: Client, name: str, targets: Sequence[str], shadow: str, timeout: float, json: bool) -> None:
    _show(client.set_alias(name, targets, shadow=shadow or None, timeout=timeout), json)


def promote(client: Client, name: str, timeout: float, json: bool) -> None:
    _show(client.promote_alias(name, timeout=timeout), json)


def rollback(client: Client, name: str, timeout: float, json: bool) -> None:
    _show(client.rollback_alias(name, timeout=timeout), json)


def remove(client: Client, name: str, json: bool) -> None:
    client.remove_alias(name)
    if json:
        tables.print_json({"removed": name})
    else:
        typer.echo(f"removed {name}")


def shadow(client: Client, name: str, json: bool) -> None:
    report = client.shadow_report(name)
    if json:
        tables.print_json(report)
        return
    tables.print_table(_scores_table(report), _notes(report))
    if any(pair.decisions for pair in report.pairs):
        tables.print_table(_decisions_table(report))


def _show(alias: Alias, json: bool) -> None:
    if json:
        tables.print_json(alias)
    else:
        tables.print_table(_aliases_table([alias]))


def _aliases_table(aliases: Sequence[Alias]) -> Table:
    table = Table()
    for name in ("alias", "points at", "shadow", "since (UTC)", "by", "before"):
        table.add_column(name, overflow="fold")
    for alias in aliases:
        shadow = alias.shadow
        table.add_row(
            alias.name,
            _targets(alias.route),
            f"{shadow} ({shadow.percent:g} %)" if shadow is not None else "-",
            _time(alias.route.since),
            Text(alias.route.by or "-"),
            _targets(alias.history[0]) if alias.history else "-",
        )
    return table


def _targets(found: AliasRoute) -> str:
    return ", ".join(
        str(target) if len(found.targets) == 1 else f"{target} ({target.percent:g} %)" for target in found.targets
    )


def _time(seconds: float) -> str:
    """Empty for what the settings gave."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") if seconds else "start"


def _scores_table(report: ShadowReport) -> Table:
    title = f"{report.alias}: {report.candidate} beside what was served, since {_time(report.since)}"
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column("served")
    table.add_column("dimension")
    for name in ("pictures", "rank correlation", "served mean", "candidate mean", "shift", "spread of differences"):
        table.add_column(name, justify="right")
    for pair in report.pairs:
        for entry in pair.dimensions:
            scale = "" if entry.scale == "calibrated" else f" ({entry.scale})"
            table.add_row(
                str(pair.served),
                f"{entry.dimension}{scale}",
                str(entry.count),
                _number(entry.srcc),
                _number(entry.served_mean),
                _number(entry.candidate_mean),
                f"{entry.mean_shift:+.4f}",
                _number(entry.difference_stddev),
            )
    return table


def _decisions_table(report: ShadowReport) -> Table:
    table = Table()
    for name in ("served", "decided by", "pictures", "flips", "served -> candidate"):
        table.add_column(name, justify="right" if name in ("pictures", "flips") else "left", overflow="fold")
    for pair in report.pairs:
        for entry in pair.decisions:
            changes = ", ".join(f"{flip.served} -> {flip.candidate}: {flip.count}" for flip in entry.changes)
            share = f"{entry.flips} ({100 * entry.flips / entry.count:.1f} %)" if entry.count else "0"
            table.add_row(str(pair.served), Text(entry.rule), str(entry.count), share, changes or "-")
    return table


def _notes(report: ShadowReport) -> list[str]:
    counts = f"{report.scored} scored, {report.dropped} left out (no room), {report.failed} failed"
    notes = [f"{report.candidate.percent:g} % of answers are offered: {counts}."]
    found = report.processes
    if found is not None and found.missing:
        numbers = ", ".join(map(str, found.missing))
        notes.append(f"{found.answered} of {found.of} serving processes answered; these are left out: {numbers}.")
    return [*notes, f"Last failure: {report.last_failure}"] if report.last_failure else notes


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
