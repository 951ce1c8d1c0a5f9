"""Repeats the gates on a bundle that exists: digests, golden records, batch sizes, and agreement with its sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from critiq_exporters.core.evaluate import evaluate, onnx_run, open_tokenizers, torch_run
from critiq_exporters.core.exportable import Exportable
from critiq_exporters.core.gates import (
    HALF_TOLERANCE,
    OUTPUT_TOLERANCE,
    Gate,
    VariantLimits,
    score_gate,
    stage_gates,
    variant_gates,
)
from critiq_exporters.core.lmm_features import drawn_features
from critiq_exporters.core.pictures import Pixels, prompts
from critiq_exporters.core.precisions import Precision
from critiq_exporters.core.report import read_report
from critiq_server.bundles.model import load_model, read_manifest
from critiq_server.runtime.onnx import RuntimeSettings

Build = Callable[[], Exportable]


def verify(
    bundle: Path,
    pictures: Sequence[Pixels],
    *,
    build: Build | None = None,
    reference: Path | None = None,
    limits: VariantLimits | None = None,
    threads: int = 1,
) -> list[Gate]:
    """The gates of ``bundle`` on ``pictures``, anew.

    ``build`` makes the torch networks again, to hold an fp32 bundle against; ``reference`` is the fp32 bundle to hold a
    reduced precision against.

    Raises ``BrokenBundle`` if the server would refuse the bundle, ``FileNotFoundError`` if it has no report.
    """
    load_model(bundle, RuntimeSettings(provider="cpu"))
    manifest = read_manifest(bundle)
    texts = prompts(len(pictures))
    run = onnx_run(bundle, manifest.stages, threads)
    model = build() if build is not None else None
    features = (model.features if model is not None else None) or drawn_features
    alone = evaluate(
        manifest.stages, open_tokenizers(manifest.tokenizers, bundle), run, pictures, texts, features=features
    )
    tolerance = HALF_TOLERANCE if precision_of(bundle, manifest.name) == "fp16" else OUTPUT_TOLERANCE
    graphs = [stage for stage in manifest.stages if stage.lmm is None]
    gates = [gate for stage in graphs for gate in stage_gates(stage, run, alone, "itself alone", tolerance)]
    if model is not None:
        modules = torch_run(model.modules)
        eager = evaluate(
            manifest.stages, open_tokenizers(manifest.tokenizers, bundle), modules, pictures, texts, features=features
        )
        gates += [score_gate(dimension, eager, alone, "torch") for dimension in manifest.dimensions]
    if reference is not None:
        other = read_manifest(reference)
        expected = evaluate(
            other.stages,
            open_tokenizers(other.tokenizers, reference),
            onnx_run(reference, other.stages, threads),
            pictures,
            texts,
            features=features,
        )
        for dimension in manifest.dimensions:
            gates += variant_gates(dimension, expected, alone, limits or VariantLimits())
    return gates


def precision_of(bundle: Path, name: str) -> Precision:
    """At which precision ``bundle``, the model called ``name``, was written, as its report says."""
    return next(entry.precision for entry in read_report(bundle).precisions if entry.name == name)


def family_of(bundle: Path) -> tuple[str, dict[str, str | float | int]]:
    """Family and options that ``bundle`` was exported with. Raises ``FileNotFoundError`` where it has no report."""
    report = read_report(bundle)
    return report.family, report.options
