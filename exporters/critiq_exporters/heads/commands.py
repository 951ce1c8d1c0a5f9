"""``critiq-train eliq`` and ``critiq-train ma-agiqa``: heads on stored features, and the bundles made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from critiq_exporters.features.catalogue import Asked

Features = Annotated[Path, typer.Option(help="Store of `critiq features build`.")]
Out = Annotated[Path, typer.Option(help="FILE.safetensors to write, for `critiq export`.")]
Bundle = Annotated[Path | None, typer.Option(help="Also export the bundle: OUT/NAME/VERSION in this directory.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the labels.")]
HeldOut = Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the pictures to judge by.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of torch.")]

_GATE_PICTURES = 8


def eliq(
    features: Features,
    labels: Annotated[
        Path,
        typer.Option(
            help=".csv or .jsonl with columns picture, technical_negative, aesthetic_negative, alignment_negative: "
            "names of the store's pictures; empty where there is none."
        ),
    ],
    out: Out,
    opinions: Annotated[
        Path | None,
        typer.Option(help="Weak supervision: .csv or .jsonl with columns picture, visual_quality, alignment."),
    ] = None,
    opinion_share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of the opinions to fit to; the others judge the fit.")
    ] = 0.2,
    bundle: Bundle = None,
    epochs: Epochs = 30,
    rate: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 1e-4,
    batch: Annotated[int, typer.Option(min=1, help="Pairs in a step.")] = 32,
    margin: Annotated[float, typer.Option(help="m of equations 18 and 19.")] = 0.5,
    held_out: HeldOut = 0.2,
    hidden: Annotated[int, typer.Option(min=1, help="Of the fusion's small network.")] = 1024,
    width: Annotated[int, typer.Option(min=1, help="Of the transformer's tokens.")] = 512,
    layers: Annotated[int, typer.Option(min=1, help="Of the transformer.")] = 2,
    heads: Annotated[int, typer.Option(min=1, help="Of attention.")] = 8,
    seed: Seed = 1,
    threads: Threads = 1,
) -> None:
    """Train ELIQ's scoring module on stored features: by ranking, then (optionally) a linear layer on opinions."""
    with _one_line_errors():
        import torch
        from safetensors.torch import save_file

        from critiq_exporters.heads import eliq as training
        from critiq_exporters.heads.data import load_features

        if width % heads:
            raise typer.BadParameter(f"a width of {width} cannot be cut into {heads} heads", param_hint="--heads")
        torch.set_num_threads(threads)
        stored = load_features(features, training.INSTRUCTIONS)
        pairs = training.read_pairs(labels, stored)
        recipe = training.Recipe(
            epochs=epochs,
            rate=rate,
            batch=batch,
            margin=margin,
            held_out=held_out,
            hidden=hidden,
            width=width,
            layers=layers,
            heads=heads,
            seed=seed,
        )
        scorer, shares = training.train_by_ranking(stored, pairs, recipe, _say)
        for kind, share in shares.items():
            typer.echo(f"held out, {kind.replace('_', ' ')}: {share:.1%} of the pairs in the right order")
        if opinions is not None:
            for dimension, (fitted, judged, srcc) in training.fit_opinions(
                scorer, stored, opinions, opinion_share
            ).items():
                typer.echo(f"{dimension}: fitted to {fitted} opinions; SRCC {srcc:.3f} on {judged} others")
        save_file(scorer.state_dict(), out)
        typer.echo(f"{out} written")
        if bundle is not None:
            _export("eliq", out, bundle, stored.questions, ["--heads", str(heads)])


def ma_agiqa(
    features: Features,
    labels: Annotated[Path, typer.Option(help=".csv or .jsonl with columns picture and mos.")],
    checkpoint: Annotated[
        Path, typer.Option(help="The tower: a MANIQA or MA-AGIQA checkpoint in the authors' layout.")
    ],
    images: Annotated[Path, typer.Option(help="The pictures, as `critiq features build` was given them.")],
    out: Out,
    bundle: Bundle = None,
    epochs: Epochs = 30,
    rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-3,
    batch: Annotated[int, typer.Option(min=1, help="Pictures in a step.")] = 8,
    held_out: HeldOut = 0.2,
    seed: Seed = 1,
    threads: Threads = 1,
) -> None:
    """Train MA-AGIQA's fusion on stored features and opinions; the tower stays as its checkpoint has it."""
    with _one_line_errors():
        import torch
        from safetensors.torch import save_file

        from critiq_exporters.core.checkpoints import fingerprint, read_state
        from critiq_exporters.features.sources import open_source
        from critiq_exporters.heads import ma_agiqa as training
        from critiq_exporters.heads.data import load_features

        torch.set_num_threads(threads)
        stored = load_features(features, training.INSTRUCTIONS)
        opinions = training.read_opinions(labels, stored)
        state = read_state(checkpoint)
        tower = training.open_tower(state)
        cache = out.with_name(f"{out.stem}.votes-{fingerprint(checkpoint)[:12]}.safetensors")
        wanted = {name: stored.pictures[stored.place[name]] for name in opinions}
        votes = training.compute_votes(tower, open_source(images).items(), wanted, cache, _say)
        recipe = training.Recipe(epochs=epochs, rate=rate, batch=batch, held_out=held_out, seed=seed)
        fusion, outcome = training.train_fusion(stored, votes, opinions, recipe, _say)
        typer.echo(
            f"epoch {outcome.epoch}: SRCC {outcome.srcc:.3f}, PLCC {outcome.plcc:.3f} on {outcome.judged_on} held-out "
            f"pictures, after training on {outcome.trained_on}"
        )
        save_file(training.authors_layout(state, tower, fusion), out)
        typer.echo(f"{out} written; the tower's votes are kept in {cache.name} for the next training")
        if bundle is not None:
            _export("ma-agiqa", out, bundle, stored.questions, [])


def _export(family: str, checkpoint: Path, bundles: Path, questions: Mapping[str, Asked], more: Sequence[str]) -> None:
    """Exports with the LMM that the features came from, and makes sure that the bundle asks the same questions."""
    from critiq_exporters.cli import main
    from critiq_exporters.features.questions import Computing, of_bundle
    from critiq_server.bundles.lmm import GridProcessor

    lmm = next(iter(questions.values())).lmm
    command = [family, "--checkpoint", str(checkpoint), "--out", str(bundles), "--on-miss", "stored"]
    command += ["--count", str(_GATE_PICTURES)]
    command += ["--lmm-name", lmm.model, "--lmm-revision", lmm.revision, "--lmm-dtype", lmm.dtype, *more]
    if isinstance(lmm.processor, GridProcessor):
        command += ["--max-pixels", str(lmm.processor.max_pixels)]
    if main(command) != 0:
        raise typer.Exit(1)
    place = bundles / family / "1"
    asked = {one.digest for one in of_bundle(place, [], Computing()).questions}
    if asked != {one.digest for one in questions.values()}:
        typer.echo(
            f"{place} asks its LMM otherwise than the store's features were built (number formats or processor): it "
            "would not find them. Build the features with --bundle, and train again",
            err=True,
        )
        raise typer.Exit(1)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    from critiq.cli.exits import UsageError
    from critiq.errors import CritiqError
    from critiq_exporters.core.checkpoints import CheckpointError
    from critiq_server.features.store import StoreError

    try:
        yield
    except (UsageError, StoreError, CheckpointError, CritiqError, OSError) as error:
        typer.echo(f"critiq-train: {error}", err=True)
        raise typer.Exit(2) from None


def _say(line: str) -> None:
    typer.echo(line, err=True)
