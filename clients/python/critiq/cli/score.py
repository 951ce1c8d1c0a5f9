"""``critiq score``: one picture, or many with progress, an output file and resumption."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import critiq
from critiq.cli import exits, options, tables
from critiq.cli.ledger import Ledger, row_of
from critiq.cli.pictures import Picture, Prompts, collect, sidecar_prompt


@dataclass(frozen=True, slots=True)
class _Task:
    picture: Picture
    prompt: str


def score(
    paths: options.Pictures,
    prompt: options.Prompt = "",
    prompts: options.PromptsFile = None,
    prompt_sidecars: options.PromptSidecars = False,
    model: options.ModelName = "",
    version: options.Version = "",
    dimension: options.Dimensions = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Write scores to .csv, .jsonl or .parquet. The same command again takes up what is missing."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Pictures under way at once.")] = 32,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first picture that fails.")] = False,
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: options.Timeout = options.DEFAULT_TIMEOUT,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """Score pictures: a table for one, progress and a table, JSON lines or a file for many."""
    pictures = collect(paths)
    find_prompt = prompt_source(prompt, prompts, prompt_sidecars)
    tasks = [_Task(picture, find_prompt(picture)) for picture in pictures]
    if prompts is not None or prompt_sidecars:
        _warn_about_missing(tasks)
    ledger = Ledger(output) if output is not None else None
    with options.client(url, timeout, retries) as client:
        # One run, one version: asked for by name from here on, even if a newer one is loaded meanwhile.
        target = client.model(model, version)
        if ledger is None and len(tasks) == 1 and not paths[0].is_dir():
            _score_one(client, tasks[0], target, dimension or [], json)
            return
        run = _Run(client, target, dimension or [], concurrency, fail_fast, json, ledger)
        failed = run.score(tasks)
    if failed:
        raise typer.Exit(exits.SOME_FAILED)


def _score_one(client: critiq.Client, task: _Task, target: critiq.Model, dimensions: Sequence[str], json: bool) -> None:
    result = client.score(
        task.picture.source(), task.prompt, model=target.name, version=target.version, dimensions=dimensions
    )
    if json:
        tables.print_json(tables.score_json(task.picture.name, task.prompt, result))
    else:
        notes = [*tables.meanings(result, target), *tables.notes_on(result)]
        tables.print_table(tables.score_table(task.picture.name, result, target), notes)


class _Run:
    """Many pictures, once."""

    def __init__(
        self,
        client: critiq.Client,
        target: critiq.Model,
        dimensions: Sequence[str],
        concurrency: int,
        fail_fast: bool,
        json: bool,
        ledger: Ledger | None,
    ) -> None:
        self._client = client
        self._target = target
        self._dimensions = list(dimensions)
        self._concurrency = concurrency
        self._fail_fast = fail_fast
        self._json = json
        self._ledger = ledger

    def score(self, tasks: Sequence[_Task]) -> int:
        """The number of pictures that failed."""
        todo = [task for task in tasks if not self._is_done(task)]
        if len(todo) < len(tasks):
            exits.complain(f"{len(tasks) - len(todo)} of {len(tasks)} are scored already; {len(todo)} to go")
        results: dict[str, critiq.ItemResult] = {}
        try:
            failed = self._score_all(todo, results)
        except (KeyboardInterrupt, critiq.CritiqError) as stop:
            self._explain_stop(stop, len(results), len(todo))
            raise typer.Exit(_code_of(stop)) from None
        finally:
            if self._ledger is not None:
                self._ledger.close()
        if self._fail_fast and failed:
            return failed
        if self._ledger is not None:
            self._ledger.finish(task.picture.name for task in tasks)
            exits.complain(f"{len(tasks) - failed} scored, {failed} failed")
        elif not self._json:
            tables.print_table(tables.many_table([(task.picture.name, results[task.picture.name]) for task in tasks]))
        return failed

    def _score_all(self, todo: Sequence[_Task], results: dict[str, critiq.ItemResult]) -> int:
        failed = 0
        items = (critiq.Item(task.picture.source(), task.prompt, id=str(index)) for index, task in enumerate(todo))
        with progress() as bars:
            bar = bars.add_task("scoring", total=len(todo), failed=0)
            stream = self._client.score_stream(
                items,
                window=self._concurrency,
                model=self._target.name,
                version=self._target.version,
                dimensions=self._dimensions,
                priority="bulk",
            )
            for result in stream:
                task = todo[int(result.id)]
                failed += result.error is not None
                results[task.picture.name] = result
                self._report(task, result)
                bars.update(bar, advance=1, failed=failed)
                if self._fail_fast and result.error is not None:
                    exits.complain(f"{task.picture.name}: {result.error}")
                    break
        return failed

    def _is_done(self, task: _Task) -> bool:
        if self._ledger is None:
            return False
        due = self._dimensions or [
            dimension.name for dimension in self._target.dimensions if task.prompt or not dimension.needs_prompt
        ]
        return self._ledger.holds(task.picture.name, task.prompt, self._target.name, self._target.version, due)

    def _report(self, task: _Task, result: critiq.ItemResult) -> None:
        name = task.picture.name
        if self._ledger is not None:
            self._ledger.add(row_of(name, task.prompt, result))
        if self._json and result.result is not None:
            tables.print_json(tables.score_json(name, task.prompt, result.result))
        elif self._json:
            tables.print_json({"file": name, "prompt": task.prompt, "error": result.error})

    def _explain_stop(self, stop: BaseException, done: int, due: int) -> None:
        reason = "interrupted" if isinstance(stop, KeyboardInterrupt) else str(stop)
        state = f"{done} of {due} done"
        if self._ledger is None:
            exits.complain(f"{reason}; {state}; with --output FILE a run can be taken up again")
        else:
            again = shlex.join(["critiq", *sys.argv[1:]])
            exits.complain(f"{reason}; {state} and kept; to go on, run again: {again}")


def prompt_source(prompt: str, prompts: Path | None, sidecars: bool) -> Callable[[Picture], str]:
    """What finds a picture's prompt, from the three options of which at most one may be given."""
    if sum((bool(prompt), prompts is not None, sidecars)) > 1:
        raise exits.UsageError("--prompt, --prompts and --prompt-sidecars exclude each other")
    if prompts is not None:
        return Prompts(prompts).find
    if sidecars:
        return sidecar_prompt
    return lambda picture: prompt


def _warn_about_missing(tasks: Sequence[_Task]) -> None:
    missing = [task.picture.name for task in tasks if not task.prompt]
    if missing:
        exits.complain(f"{len(missing)} of {len(tasks)} pictures have no prompt, for instance {missing[0]}")


def _code_of(stop: BaseException) -> int:
    return exits.code_of(stop) if isinstance(stop, critiq.CritiqError) else exits.INTERRUPTED


def progress() -> Progress:
    """A bar on stderr, if that is a terminal; its tasks count `failed`."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
