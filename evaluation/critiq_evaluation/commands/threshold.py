"""``critiq threshold``: where to cut, from pictures that people accepted or rejected; written as a policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from critiq.cli.options import DEFAULT_URL
from critiq.cli.running import run
from critiq.errors import CritiqError, InvalidArgument, NotFound
from critiq.types import Scale
from critiq_evaluation.commands.asking import Server
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.thresholds import Goal, Threshold, as_json, curves, find_threshold, turned_back

if TYPE_CHECKING:
    from critiq_evaluation.scoring import Asked
    from critiq_evaluation.threshold_files import Decided
    from critiq_server.scoring.policies import Policy

_NAME = "critiq threshold"
_HELP = "Exit status: 0 done; 1 the server was not reached; 2 wrong usage, bad input, or no threshold does it."

app = typer.Typer(name=_NAME, add_completion=False, rich_markup_mode=None)


@app.command(epilog=_HELP)
def threshold(
    labels: Annotated[Path, typer.Option(help="Table of pictures and labels: accept or reject.")],
    dimension: Annotated[str, typer.Option(help="Which of the model's dimensions.")],
    out: Annotated[Path, typer.Option(help="The policy's file, .yaml; plots and figures go beside it.")],
    precision: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the passing pictures that people accept.")
    ] = None,
    pass_rate: Annotated[float | None, typer.Option(min=0, max=1, help="Share of all pictures that pass.")] = None,
    cost_false_accept: Annotated[
        float | None, typer.Option(min=0, help="What it costs to pass a picture that people reject.")
    ] = None,
    cost_false_reject: Annotated[
        float | None, typer.Option(min=0, help="What it costs to stop a picture that people accept.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="What `critiq score --output` wrote (.csv, .jsonl), or a table of image and score."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Directory of the pictures, to score them with --server.")] = None,
    server: Server = DEFAULT_URL,
    model: Annotated[str, typer.Option(help="NAME or NAME:VERSION; default: the server's default model.")] = "",
    on: Annotated[str, typer.Option(help="The scale of the threshold: calibrated, percentile or raw.")] = "calibrated",
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="Of raw values in --scores: the lower ones are better.")
    ] = False,
    decision: Annotated[str, typer.Option(help="Of pictures that do not pass: reject or review.")] = "reject",
    name: Annotated[str, typer.Option(help="Of the policy; default: DIMENSION-threshold.")] = "",
    policy_version: Annotated[str, typer.Option(help="Of the policy.")] = "1",
    column: Annotated[
        list[str] | None, typer.Option(help="WHAT=COLUMN: image, prompt, label of --labels. May be repeated.")
    ] = None,
    score_column: Annotated[str, typer.Option(help="Column of --scores; default: DIMENSION_SCALE, raw or score.")] = "",
    resamples: Annotated[int, typer.Option(min=0, help="Of the bootstrap; 0: no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Choose the threshold for a precision, a pass rate or the least cost, and write it as a policy."""
    from critiq_evaluation import threshold_figures
    from critiq_evaluation.calibration.labels import column_options
    from critiq_evaluation.threshold_files import read_labels
    from critiq_server.scoring.policy_files import write_policy

    goal = _goal(precision, pass_rate, cost_false_accept, cost_false_reject)
    scale = _scale(on)
    if decision not in ("reject", "review"):
        raise EvaluationError(f"--decision {decision!r}: reject and review are possible")
    if not out.parent.is_dir():
        raise EvaluationError(f"--out {out}: there is no directory {out.parent}")
    if (scores is None) == (images is None):
        raise EvaluationError("give either --scores FILE, or --images DIR and a --server that scores them")
    if lower_is_better and (scale != "raw" or scores is None):
        raise EvaluationError("--lower-is-better is for --on raw with --scores: elsewhere it is known")
    said, notes = read_labels(labels, column_options(column or []))
    if scores is not None:
        from critiq_evaluation.threshold_files import with_scores

        found = with_scores(said, scores, dimension, scale, {"score": score_column} if score_column else {})
        falls, asked = lower_is_better, model
        values = -found.values if falls else found.values
    else:
        assert images is not None  # noqa: S101 - one of the two is given
        found, falls, asked = _ask(said, images, server, model, dimension, scale)
        values = found.values
    chosen = find_threshold(values, found.accepted, goal, resamples=resamples, seed=seed)
    lines = curves(values, found.accepted, goal)
    if falls:
        chosen, lines = turned_back(chosen, lines)
    policy = _policy(chosen, name or f"{dimension}-threshold", policy_version, asked, dimension, scale, falls, decision)
    text = summary(chosen, dimension, scale, falls)
    write_policy(out, policy, comment=f"{_NAME}: {text}")
    plot = threshold_figures.draw(lines, chosen, f"{dimension} ({scale})", out.with_suffix(".png"))
    details = {
        "dimension": dimension,
        "scale": scale,
        "passes": "at or below" if falls else "at or above",
        **as_json(chosen, lines),
        "left_out": [*notes, *found.notes],
    }
    out.with_suffix(".json").write_text(json.dumps(details, indent=1, allow_nan=False) + "\n", "utf-8")
    for note in (*notes, *found.notes):
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{text}\npolicy: {out}\ncurves: {plot}, {out.with_suffix('.json')}")


def summary(chosen: Threshold, dimension: str, scale: str, falls: bool) -> str:
    """What a person reads. ``falls``: lower raw values are better."""
    passes = "at or below" if falls else "at or above"
    lines = [
        f"{dimension} ({scale}): {chosen.pictures} labelled pictures, {chosen.accepted} accepted",
        f"passes {passes:12} {chosen.value:.10g}{_range(chosen, 'threshold')}",
    ]
    figures = [("precision", chosen.precision), ("recall", chosen.recall), ("pass_rate", chosen.pass_rate)]
    figures += [("cost", chosen.cost)] if chosen.goal.kind == "cost" else []
    for name, value in figures:
        told = "not defined" if value is None else f"{value:.4f}"
        expected = f"; {chosen.expected[name]:.4f} to be expected" if name in chosen.expected else ""
        lines.append(f"{name.replace('_', ' '):19} {told}{_range(chosen, name)}{expected}")
    if chosen.goal.kind == "cost":
        lines.append(
            f"{'cost without it':19} {chosen.cost_of_all:.4f} if all pass, {chosen.cost_of_none:.4f} if none does"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in chosen.notes)])


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq threshold ARGUMENTS``; returns the exit status, as ``--help`` has it."""
    return run(
        app,
        _NAME,
        arguments,
        bad_input=(EvaluationError, InvalidArgument, NotFound, OSError),
        failed=(CritiqError,),
    )


def _range(chosen: Threshold, name: str) -> str:
    found = chosen.intervals.get(name)
    return f" (95 %: {found.low:.4f} to {found.high:.4f})" if found is not None else ""


def _ask(
    said: dict[Asked, bool], images: Path, server: str, model: str, dimension: str, scale: Scale
) -> tuple[Decided, bool, str]:
    """Values of a server, whether lower raw ones are better, and the name of the model that gave them."""
    from critiq_evaluation.scoring import score_pictures
    from critiq_evaluation.threshold_files import with_answers

    answers = score_pictures(list(said), images, [model], server=server, dimensions=[dimension])[0]
    falls = scale == "raw" and answers.dimension(dimension).direction == "lower_is_better"
    return with_answers(said, answers, dimension, scale), falls, answers.name


def _policy(
    chosen: Threshold, name: str, version: str, model: str, dimension: str, scale: Scale, falls: bool, decision: str
) -> Policy:
    from pydantic import ValidationError

    from critiq_server.scoring.policies import Policy

    model_name, _, model_version = model.partition(":")
    limit = {"above": chosen.value} if falls else {"below": chosen.value}
    rule = {
        "name": f"{dimension} too {'high' if falls else 'low'}",
        "when": {"dimension": dimension, "scale": scale, **limit},
        "decision": decision,
        "reason": f"{dimension}_threshold",
    }
    fields = {"name": name, "version": version, "model": model_name, "model_version": model_version, "rules": [rule]}
    try:
        return Policy.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        raise EvaluationError(f"this makes no policy: {problem['loc'][0]}: {problem['msg']}") from error


def _goal(
    precision: float | None, pass_rate: float | None, false_accept: float | None, false_reject: float | None
) -> Goal:
    costs = (false_accept, false_reject)
    given = [precision is not None, pass_rate is not None, any(cost is not None for cost in costs)]
    if sum(given) != 1:
        raise EvaluationError(
            "say what the threshold is for: one of --precision, --pass-rate, or --cost-false-accept with "
            "--cost-false-reject"
        )
    if precision is not None:
        return Goal("precision", precision)
    if pass_rate is not None:
        return Goal("pass_rate", pass_rate)
    if false_accept is None or false_reject is None:
        raise EvaluationError("--cost-false-accept and --cost-false-reject go together: it is their ratio that counts")
    if false_accept == 0 or false_reject == 0:
        raise EvaluationError("a cost of 0 needs no threshold: all pictures pass, or none does")
    return Goal("cost", false_accept=false_accept, false_reject=false_reject)


def _scale(name: str) -> Scale:
    for known in get_args(Scale):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise EvaluationError(f"--on {name!r}: known are {', '.join(get_args(Scale))}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
