"""``critiq moderate``: a policy of the server decides about pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

import typer

import critiq
from critiq.cli import exits, options, tables
from critiq.cli.pictures import Picture, collect
from critiq.cli.score import progress, prompt_source
from critiq.types import Priority

_SEVERE = {"never": (), "reject": ("reject",), "review": ("review", "reject")}


def moderate(
    paths: options.Pictures,
    policy: Annotated[str, typer.Option(help="Policy of the server; default: its own default.")] = "",
    policy_version: Annotated[str, typer.Option("--policy-version", help="Its version; default: the newest.")] = "",
    prompt: options.Prompt = "",
    prompts: options.PromptsFile = None,
    prompt_sidecars: options.PromptSidecars = False,
    fail_on: Annotated[
        Literal["reject", "review", "never"],
        typer.Option(help=f"Mildest decision that ends the command with exit code {exits.REJECTED}."),
    ] = "reject",
    concurrency: Annotated[int, typer.Option(min=1, help="Pictures under way at once.")] = 16,
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: options.Timeout = options.DEFAULT_TIMEOUT,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """Let a moderation policy decide about pictures: accept, review or reject. Quality is not safety."""
    pictures = collect(paths)
    find_prompt = prompt_source(prompt, prompts, prompt_sidecars)
    rows: list[tuple[str, critiq.Verdict | critiq.CritiqError]] = []
    with options.client(url, timeout, retries) as client:
        chosen = _chosen(client, policy, policy_version)
        asked = [(picture, find_prompt(picture)) for picture in pictures]
        with progress() as bars:
            bar = bars.add_task("moderating", total=len(asked), failed=0)
            outcomes = _decisions(client, asked, chosen, concurrency)
            for (picture, text), outcome in zip(asked, outcomes, strict=True):
                rows.append((picture.name, outcome))
                if json:
                    field = "error" if isinstance(outcome, critiq.CritiqError) else "verdict"
                    tables.print_json({"file": picture.name, "prompt": text, field: outcome})
                bars.update(bar, advance=1, failed=sum(isinstance(row[1], critiq.CritiqError) for row in rows))
    if not json:
        tables.print_table(tables.verdict_table(rows, chosen))
    counted = Counter("failed" if isinstance(row, critiq.CritiqError) else row.decision for _, row in rows)
    words = {"accept": "accepted", "review": "to review", "reject": "rejected", "failed": "failed"}
    exits.complain(", ".join(f"{counted[name]} {word}" for name, word in words.items()))
    if counted["failed"]:
        raise typer.Exit(exits.SOME_FAILED)
    if any(counted[decision] for decision in _SEVERE[fail_on]):
        raise typer.Exit(exits.REJECTED)


def _chosen(client: critiq.Client, name: str, version: str) -> critiq.PolicyInfo:
    """One run, one version of the policy: asked for by name from here on."""
    known = client.policies()
    for policy in reversed(known):  # the newest version stands last
        if (policy.name == name if name else policy.is_default) and version in ("", policy.version):
            return policy
    listed = ", ".join(f"{policy.name} {policy.version}" for policy in known) or "none"
    asked = f"{name or 'the default policy'} {version}".strip()
    raise exits.UsageError(f"the server has no policy {asked!r}; name one with --policy, there are: {listed}")


def _decisions(
    client: critiq.Client, asked: Sequence[tuple[Picture, str]], policy: critiq.PolicyInfo, concurrency: int
) -> Iterator[critiq.Verdict | critiq.CritiqError]:
    """In the order of ``asked``; raises what ends the run: the server cannot be reached, or stays too busy."""
    priority: Priority = "interactive" if len(asked) == 1 else "bulk"

    def decide(entry: tuple[Picture, str]) -> critiq.Verdict | critiq.CritiqError:
        picture, prompt = entry
        try:
            return client.moderate(
                picture.source(), prompt, policy=policy.name, policy_version=policy.version, priority=priority
            )
        except (critiq.Unavailable, critiq.TooBusy):
            raise
        except critiq.CritiqError as error:
            return error

    pool = ThreadPoolExecutor(concurrency)
    try:
        yield from pool.map(decide, asked)
    finally:
        pool.shutdown(cancel_futures=True)
