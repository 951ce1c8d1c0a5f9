"""``critiq calibrate head``: a linear regressor on frozen features as one more dimension; a new bundle version."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from critiq_evaluation.errors import EvaluationError

app = typer.Typer(name="critiq calibrate head", add_completion=False, rich_markup_mode=None)


@app.command(epilog="Exit status: 0 done; 1 the server that was started for it failed; 2 wrong usage or bad input.")
def head(
    bundle: Annotated[Path, typer.Argument(help="Directory of the bundle: the one with manifest.json.")],
    feature: Annotated[str, typer.Option(help="STAGE.OUTPUT of the bundle: what the regressor reads.")],
    name: Annotated[str, typer.Option(help="Of the new dimension.")],
    labels: Annotated[
        Path, typer.Option(help="Label file: a published dataset's, or a table of pictures and ratings.")
    ],
    images: Annotated[Path, typer.Option(help="Directory of the pictures.")],
    out: Annotated[Path, typer.Option(help="Where the new version goes: OUT/NAME/VERSION.")],
    version: Annotated[str, typer.Option(help="The new version.")],
    rating: Annotated[str, typer.Option(help="Which rating of --labels, where it has several.")] = "",
    scale: Annotated[
        str, typer.Option(help="MIN:MAX of the ratings (MAX:MIN: lower is better); default: the published dataset's.")
    ] = "",
    beside: Annotated[str, typer.Option(help="Dimension of the bundle to hold it against: the label-free score.")] = "",
    share: Annotated[float, typer.Option(min=0.01, max=0.99, help="Of the labels, to fit to in the trial.")] = 0.2,
    repeats: Annotated[int, typer.Option(min=1, help="Draws of that share.")] = 20,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    column: Annotated[
        list[str] | None, typer.Option(help="WHAT=COLUMN: image, prompt, a rating. May be repeated.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Directory for head.json; default: OUT/NAME-VERSION-report.")
    ] = None,
) -> None:
    """Fit a linear regressor on a stage's output to ratings; try it on a share of them; add it to the bundle."""
    from critiq_evaluation.calibration import bundles, head_bundles
    from critiq_evaluation.calibration.features import features_of
    from critiq_evaluation.calibration.labels import column_options
    from critiq_evaluation.calibration.ridge import fit_ridge, weak_supervision
    from critiq_evaluation.calibration.scored import rated_pictures
    from critiq_evaluation.local_server import local_server
    from critiq_evaluation.scoring import score_pictures

    head_bundles.require_onnx()
    manifest = bundles.open_bundle(bundle)
    stage, output = head_bundles.feature_of(manifest, feature)
    head_bundles.check_name(manifest, name)
    if beside:
        bundles.dimension_of(manifest, beside)
    place = bundles.place_of(out, manifest, version)
    rated = rated_pictures(labels, column_options(column or []), rating, scale)
    model = f"{manifest.name}:{manifest.version}"
    with local_server([model], [bundle]) as url:
        found = features_of(
            list(rated.ratings),
            images,
            server=url,
            model=manifest.name,
            version=manifest.version,
            stage=stage.name,
            output=output,
            with_prompts="prompt" in manifest.roots(stage.name),
        )
        free = score_pictures(found.asked, images, [model], server=url, dimensions=[beside])[0] if beside else None
    for line in (*rated.problems, *found.failures):
        typer.echo(f"left out: {line}", err=True)
    ratings = np.array([rated.ratings[asked] for asked in found.asked])
    label_free = None
    if free is not None:
        said = free.values(beside)
        missing = free.failures(beside)
        if missing:
            asked, why = next(iter(missing.items()))
            raise EvaluationError(f"--beside {beside}: {len(missing)} pictures have no score; {asked.image}: {why}")
        label_free = np.array([said[asked] for asked in found.asked])
    trial = weak_supervision(found.values, ratings, label_free, share=share, repeats=repeats, seed=seed)
    fitted = fit_ridge(found.values, ratings, seed)
    reference = bundles.reference_of(fitted(found.values), "the labelled pictures")
    made = head_bundles.with_head(manifest, name, stage, output, rated.bounds, reference, len(ratings))
    told = (
        f"--feature={stage.name}.{output}",
        f"--name={name}",
        f"--scale={rated.bounds[0]:g}:{rated.bounds[1]:g}",
        f"--version={version}",
    )
    bundles.write_version(
        bundle,
        made,
        place,
        command=shlex.join(["critiq", "calibrate", "head", bundle.name, *told]),
        notes=f"{name}: ridge regression on {len(ratings)} ratings, penalty {fitted.penalty:.3g}; on {trial.labels} of "
        f"them SRCC {trial.head.srcc:.4f} on the others",
        change=lambda folder: head_bundles.add_head(folder, made, name, found, fitted),
    )
    folder = report or out / f"{manifest.name}-{version}-report"
    folder.mkdir(parents=True, exist_ok=True)
    details = {
        **asdict(trial),
        "penalty": fitted.penalty,
        "width": found.values.shape[1],
        "left_out": [*rated.problems, *found.failures],
    }
    (folder / "head.json").write_text(json.dumps(details, indent=2, allow_nan=False) + "\n", "utf-8")
    typer.echo(f"{trial.labels} labels, tested on {trial.tested} other pictures, {trial.repeats} draws:")
    for who, agreement in ((f"{name} (linear head)", trial.head), (f"{beside} (label-free)", trial.label_free)):
        if agreement is not None:
            typer.echo(
                f"{who:32} SRCC {agreement.srcc:.4f} ± {agreement.srcc_spread:.4f}   "
                f"PLCC {agreement.plcc:.4f} ± {agreement.plcc_spread:.4f}"
            )
    if trial.undefined:
        typer.echo(f"note: {trial.undefined} draws gave constant predictions and are left out")
    typer.echo(
        f"note: the head in the bundle is fitted to all {len(ratings)} labels\nbundle: {place}\nreport: {folder}"
    )
