"""``critiq jobs``: hand many pictures over, look how far they are, wait for them, fetch what came of them."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.table import Table

import critiq
from critiq.cli import exits, options, tables
from critiq.cli.pictures import collect
from critiq.cli.score import prompt_source
from critiq.jobs import Job, JobResult, JobState

app = typer.Typer(help="Asynchronous jobs: many pictures, scored when nothing more urgent waits.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The job.")]
Wait = Annotated[float | None, typer.Option("--wait-timeout", min=0.001, help="Seconds to wait; default: no limit.")]


@app.command(epilog=exits.HELP)
def submit(
    paths: options.Pictures,
    prompt: options.Prompt = "",
    prompts: options.PromptsFile = None,
    prompt_sidecars: options.PromptSidecars = False,
    policy: Annotated[str, typer.Option(help="Moderation policy that decides about each picture.")] = "",
    policy_version: Annotated[str, typer.Option(help="Its version; default: the newest.")] = "",
    model: options.ModelName = "",
    version: options.Version = "",
    dimension: options.Dimensions = None,
    callback: Annotated[str, typer.Option(help="https URL to tell when the job has ended.")] = "",
    key: Annotated[str, typer.Option(help="The same key with the same pictures is the same job.")] = "",
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: options.Timeout = options.DEFAULT_TIMEOUT,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """Hand pictures over and print the job's id. Its results call the pictures as this command does."""
    find_prompt = prompt_source(prompt, prompts, prompt_sidecars)
    items = [critiq.Item(picture.source(), find_prompt(picture), picture.name) for picture in collect(paths)]
    with options.client(url, timeout, retries) as client:
        job = client.submit_job(
            items,
            policy=policy,
            policy_version=policy_version,
            callback=callback,
            key=key,
            model=model,
            version=version,
            dimensions=dimension or (),
        )
    if json:
        tables.print_json(job)
    else:
        typer.echo(job.id)


@app.command("list", epilog=exits.HELP)
def list_jobs(
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: options.Timeout = options.DEFAULT_TIMEOUT,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """The newest hundred jobs that the server keeps."""
    with options.client(url, timeout, retries) as client:
        _print(client.jobs(state), json)


@app.command(epilog=exits.HELP)
def show(
    id: Id,
    results: Annotated[bool, typer.Option("--results", help="The results so far, not only the state.")] = False,
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: options.Timeout = options.DEFAULT_TIMEOUT,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """How far a job is, or its results."""
    with options.client(url, timeout, retries) as client:
        if results:
            _print_results(client.job_results(id), json)
        else:
            _print([client.job(id)], json)


@app.command(epilog=exits.HELP)
def wait(
    id: Id,
    results: Annotated[bool, typer.Option("--results", help="Then its results.")] = False,
    wait_timeout: Wait = None,
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: options.Timeout = options.DEFAULT_TIMEOUT,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """Wait until a job has ended. The exit status is 1 if it failed, was cancelled, or a picture failed."""
    with options.client(url, timeout, retries) as client:
        job = client.wait_job(id, timeout=wait_timeout)
        if results:
            _print_results(client.job_results(id), json)
        else:
            _print([job], json)
    if job.state != "done" or job.failed:
        raise typer.Exit(exits.SOME_FAILED)


@app.command(epilog=exits.HELP)
def cancel(
    id: Id,
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: options.Timeout = options.DEFAULT_TIMEOUT,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """End a job that has not ended; what is scored stays."""
    with options.client(url, timeout, retries) as client:
        _print([client.cancel_job(id)], json)


def _print(jobs: Iterable[Job], json: bool) -> None:
    if json:
        for job in jobs:
            tables.print_json(job)
        return
    table = Table("job", "state", "answered", "failed", "decisions", "created", "callback", box=None)
    for job in jobs:
        table.add_row(
            job.id,
            f"{job.state}: {job.error}" if job.error else job.state,
            f"{job.answered} of {job.items}",
            str(job.failed),
            ", ".join(f"{count} {name}" for name, count in job.decisions.items()),
            datetime.datetime.fromtimestamp(job.created).astimezone().isoformat(" ", "seconds"),
            _callback(job),
        )
    tables.print_table(table)


def _callback(job: Job) -> str:
    callback = job.callback
    if callback is None:
        return ""
    tries = f" after {callback.attempts} tries" if callback.attempts > 1 else ""
    why = f": {callback.last_error}" if callback.last_error else ""
    return f"{callback.state}{tries}{why}"


def _print_results(results: Iterable[JobResult], json: bool) -> None:
    if json:
        for entry in results:
            tables.print_json(entry)
        return
    table = Table("picture", "decision", "scores (calibrated)", box=None)
    for entry in results:
        if entry.error is not None:
            table.add_row(entry.id, "", f"{entry.error.code}: {entry.error}")
            continue
        answered = entry.verdict or entry.result
        scores = answered.scores if answered is not None else ()
        shown = ", ".join(f"{score.dimension} {_value(score)}" for score in scores)
        table.add_row(entry.id, entry.verdict.decision if entry.verdict is not None else "", shown)
    tables.print_table(table)


def _value(score: critiq.Score) -> str:
    return f"{score.calibrated:.3f}" if score.calibrated is not None else f"{score.raw:g} (raw)"
