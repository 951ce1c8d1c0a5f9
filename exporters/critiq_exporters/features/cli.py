"""``critiq features``: features of large multimodal models (LMMs), computed ahead and kept in a store."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from critiq.cli.exits import INTERRUPTED, UsageError
from critiq.cli.running import complain, run
from critiq.errors import CritiqError
from critiq_exporters.features import contents
from critiq_exporters.features.build import Plan, Progress, build
from critiq_exporters.features.catalogue import find_entry
from critiq_exporters.features.progress import Teller, summary, write_failures
from critiq_exporters.features.questions import Computing, Inquiry, of_backbone, of_bundle
from critiq_exporters.features.sources import Shard, open_source
from critiq_server.bundles.model import BrokenBundle
from critiq_server.features.disk import DiskStore
from critiq_server.features.files import compact as compact_files
from critiq_server.features.store import StoreError
from critiq_server.runtime.lmm.folder import LmmUnavailable
from critiq_server.runtime.lmm.settings import RemoteSettings

_NAME = "critiq features"

app = typer.Typer(
    name=_NAME,
    help="Compute features of large multimodal models (LMMs) once, keep them, look into what is kept.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Store = Annotated[Path, typer.Argument(help="Directory of a store.")]
Questions = Annotated[
    str | None, typer.Option(help="Ids of questions, with commas; all where left out. Also stages of a bundle.")
]


@app.command(name="build")
def _build(
    images: Annotated[
        Path, typer.Option(help="Directory of pictures, FILE.jsonl, FILE.parquet or WebDataset FILE.tar.")
    ],
    store: Annotated[Path, typer.Option(help="Directory of the store; it is made, or added to.")],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Directory of a bundle: what its LMM stages ask, exactly as the server names it."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Instead of a bundle: qwen3-vl or mplug-owl2.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of the LMM: its safetensors, configuration, words.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="With --backbone: what bundles call the LMM (--lmm-name of their export).")
    ] = "",
    questions: Questions = None,
    prompts: Annotated[
        Path | None, typer.Option(help="With a directory: .csv, .jsonl or .txt of pictures and prompts.")
    ] = None,
    shard: Annotated[str, typer.Option(help="2/4: the second of four parts, for four machines.")] = "1/1",
    batch: Annotated[int, typer.Option(min=1, help="Pictures in one call of the LMM. Keep it when resuming.")] = 16,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read and decode pictures.")] = 4,
    device: Annotated[
        str, typer.Option(help="Of torch, for instance cuda:1; auto: the first GPU, else the CPU.")
    ] = "auto",
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens computed at once; bounds memory.")] = 16_384,
    dtype: Annotated[str, typer.Option(help="With --backbone: to compute in, instead of the family's.")] = "",
    stored: Annotated[str, typer.Option(help="With --backbone: to keep features in, instead of float16.")] = "",
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="With --backbone qwen3-vl: larger pictures are shrunk to it.")
    ] = None,
    remote: Annotated[str, typer.Option(help="Address of a vLLM server that holds the LMM, instead of torch.")] = "",
    limit_mb: Annotated[
        int | None, typer.Option(min=1, help="MiB that the store may take; the oldest features go first.")
    ] = None,
    failures: Annotated[
        Path | None, typer.Option(help="Where failed pictures are told, as JSON lines; STORE/failures.jsonl.")
    ] = None,
) -> None:
    """Compute the features of pictures into a store. What is there is left out, so a build that was killed goes on."""
    part = Shard.parse(shard)
    source = open_source(images, prompts)
    settings = RemoteSettings(url=remote) if remote else None
    computing = Computing(model, device, batch_tokens, settings)
    inquiry = _inquiry(bundle, backbone, questions, computing, name, dtype, stored, max_pixels)
    plan = Plan(inquiry.questions, batch, workers)
    limit = limit_mb * 2**20 if limit_mb is not None else None
    count = round(source.count / part.of) if source.count is not None else None
    with DiskStore(store, limit) as opened:
        lmm = inquiry.questions[0].lmm
        _say(f"opening {lmm.model}, fingerprint {lmm.revision}")
        extractor = inquiry.open()
        progress, teller = Progress(count), Teller()
        try:
            build(source.items(), plan, extractor, opened, progress, teller.tell, part)
        finally:
            teller.end()
            extractor.close()
            write_failures(progress, failures or store / "failures.jsonl")
            _say(summary(progress, time.monotonic()))
    for failure in progress.failures[:10]:
        _say(f"{failure.name}: {failure.error}")
    if progress.failures:
        _say(f"all {len(progress.failures):,} failures are in {failures or store / 'failures.jsonl'}")
        raise typer.Exit(1)


def _inquiry(
    bundle: Path | None,
    backbone: str | None,
    questions: str | None,
    computing: Computing,
    name: str,
    dtype: str,
    stored: str,
    max_pixels: int | None,
) -> Inquiry:
    wanted = [part.strip() for part in (questions or "").split(",") if part.strip()]
    if (bundle is None) == (backbone is None):
        raise UsageError("give either --bundle or --backbone")
    if bundle is not None:
        if name or dtype or stored or max_pixels is not None:
            raise UsageError("--name, --dtype, --stored and --max-pixels go with --backbone; the bundle says all that")
        return of_bundle(bundle, wanted, computing)
    assert backbone is not None  # noqa: S101 - one of the two is given
    return of_backbone(backbone, wanted, computing, model=name, dtype=dtype, stored=stored, max_pixels=max_pixels)


@app.command(name="merge")
def _merge(
    into: Annotated[Path, typer.Argument(help="Directory of the store that gets everything; it is made if missing.")],
    sources: Annotated[list[Path], typer.Argument(help="Stores to copy from.")],
) -> None:
    """Put the features of several stores, for instance of shards, into one."""
    if into.resolve() in [path.resolve() for path in sources]:
        raise UsageError(f"{into} cannot be merged into itself")
    merged = contents.Merged()
    with DiskStore(into) as target:
        for path in sources:
            with DiskStore(path, read_only=True) as source:
                contents.merge(target, source, merged)
    typer.echo(f"{merged.features:,} features and {merged.pictures:,} pictures added to {into}")
    for name in merged.conflicts[:10]:
        _say(f"{name}: another picture or prompt has this name; it kept it")
    if merged.conflicts:
        _say(f"{len(merged.conflicts):,} names in conflict: build with names of their own to find these pictures again")
        raise typer.Exit(1)


@app.command(name="stat")
def _stat(
    store: Store, as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")] = False
) -> None:
    """Say what a store holds."""
    with DiskStore(store, read_only=True) as opened:
        found = contents.statistics(opened)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(
        f"{found['path']} ({found['format']}): {found['features']:,} features of {found['pictures']:,} pictures, "
        f"{found['file_bytes'] / 2**20:,.1f} MiB on disk, {found['entry_bytes'] / 2**20:,.1f} MiB of it in use"
    )
    for digest, one in found["questions"].items():
        typer.echo(
            f"  {one['instruction']} ({digest[:12]}): {one['pictures']:,} pictures, {one['model']} "
            f"(revision {one['revision'][:12]}), {one['width']} values in {one['stored']}"
        )


@app.command(name="get")
def _get(
    store: Store,
    name: Annotated[
        str, typer.Argument(help="A picture, as the build called it, or the key of a feature (64 digits).")
    ],
    question: Annotated[str | None, typer.Option(help="Only this question.")] = None,
    output: Annotated[Path | None, typer.Option(help="File that gets the arrays, .npz.")] = None,
) -> None:
    """Show the features of one picture."""
    with DiskStore(store, read_only=True) as opened:
        keys = _keys(opened, name, question)
        found = opened.get_many(keys)
    arrays: dict[str, Any] = {}
    for key, label in keys.items():
        if key not in found:
            _say(f"{label}: the feature {key.hex()} is missing or damaged")
        for output_name, array in found.get(key, {}).items():
            typer.echo(f"{label} {output_name} {array.dtype}{list(array.shape)} key {key.hex()}")
            typer.echo(np.array2string(array, precision=5, threshold=8))
            arrays[label] = array
    if output is not None and arrays:
        np.savez(output, **arrays)
    if len(found) < len(keys):
        raise typer.Exit(1)


def _keys(store: DiskStore, name: str, question: str | None) -> dict[bytes, str]:
    """Keys to look up, with what they are called."""
    entry = find_entry(store, name)
    if entry is None:
        if len(name) == 64 and all(digit in "0123456789abcdef" for digit in name):
            return {bytes.fromhex(name): name[:12]}
        raise UsageError(f"{store.path} knows no picture {name!r}; names are as in the build's source")
    asked = contents.chosen_questions(store, [question] if question else [])
    return {
        bytes.fromhex(key): asked[digest].lmm.instruction for digest, key in entry.features.items() if digest in asked
    }


@app.command(name="verify")
def _verify(store: Store) -> None:
    """Read a whole store: is everything there and undamaged? Prints a digest of the content to compare stores by."""
    verdict = contents.verify(store)
    for line in (*verdict.damaged[:10], *(f"{name}: features are missing" for name in verdict.incomplete[:10])):
        _say(line)
    typer.echo(
        f"{verdict.features:,} features of {verdict.pictures:,} pictures: {len(verdict.damaged):,} damaged, "
        f"{len(verdict.incomplete):,} pictures incomplete"
    )
    typer.echo(f"content {verdict.content}")
    if not verdict.good:
        _say("build again from the same source: it computes what is missing or damaged")
        raise typer.Exit(1)


@app.command(name="export")
def _export(
    store: Store,
    output: Annotated[Path, typer.Argument(help="FILE.safetensors or FILE.parquet.")],
    questions: Questions = None,
) -> None:
    """Write features to a file, to train heads elsewhere."""
    wanted = [part.strip() for part in (questions or "").split(",") if part.strip()]
    with DiskStore(store, read_only=True) as opened:
        asked = contents.chosen_questions(opened, wanted)
        count = contents.export(opened, output, asked)
    typer.echo(f"{count:,} pictures with {len(asked)} features each in {output}")


@app.command(name="compact")
def _compact(store: Store) -> None:
    """Make a store's file as small as its content, while nobody writes to it."""
    before, after = compact_files(store)
    typer.echo(f"{before / 2**20:,.1f} MiB before, {after / 2**20:,.1f} MiB now")


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq features ARGUMENTS``; returns the exit status: 0 done, 1 something failed, 2 bad input."""
    bad_input = (UsageError, BrokenBundle, LmmUnavailable, OSError)
    try:
        return run(app, _NAME, arguments, bad_input, failed=(StoreError, CritiqError))
    except KeyboardInterrupt:
        complain(_NAME, "interrupted; the same command goes on from here")
        return INTERRUPTED


def _say(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
