"""One export: graphs written, held against torch, reduced precisions held against fp32, bundles published.

Nothing appears at its place before everything that concerns it has passed.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from critiq_exporters.core.bundle import publish, today, write_golden, write_manifest
from critiq_exporters.core.drift import SCOPES, LayerDrift, layer_drift
from critiq_exporters.core.evaluate import Run, Trace, evaluate, onnx_run, open_tokenizers, torch_run
from critiq_exporters.core.exportable import Exportable
from critiq_exporters.core.gates import (
    HALF_TOLERANCE,
    Gate,
    VariantLimits,
    largest_move,
    range_gate,
    score_gate,
    stage_gates,
    variant_gates,
)
from critiq_exporters.core.graphs import ExportError, graph_bytes, save_description, write_graph
from critiq_exporters.core.lmm_features import drawn_features, golden_features
from critiq_exporters.core.pictures import Pixels, drawn_pictures, prompts
from critiq_exporters.core.precisions import NOTES, Precision, convert
from critiq_exporters.core.report import PrecisionReport, Report, packages
from critiq_exporters.core.rows import alike, take
from critiq_server.bundles.manifest import Dimension, Stage
from critiq_server.bundles.staging import staging

_GOLDEN = 4
_LAYERS_SHOWN = 10
_PASSING = "; every gate passed"


@dataclass(frozen=True)
class Settings:
    """How to export. ``fp32`` is always written: it is what the other precisions are held against."""

    out: Path
    """Bundles go to ``out/NAME/VERSION``, reduced precisions to ``out/NAME-PRECISION/VERSION``."""
    name: str
    version: str
    checkpoint_sha256: str
    command: str
    precisions: Sequence[Precision] = ("fp32",)
    pictures: Sequence[Pixels] = ()
    """To judge reduced precisions on; drawn ones where empty."""
    picture_count: int = 32
    max_batch: int | None = None
    """Of every stage, instead of the family's."""
    limits: VariantLimits = field(default_factory=VariantLimits)
    threads: int = 1


@dataclass(frozen=True)
class Exported:
    """What came of it: the bundles that were written, and the report."""

    places: dict[Precision, Path]
    report: Report


def export(model: Exportable, settings: Settings, say: Callable[[str], None] = lambda line: None) -> Exported:
    """Exports ``model``; ``say`` is told of every step.

    A reduced precision that fails its gates is left out, and its entry in the report says why.

    Raises ``ExportError`` if a place is taken, a module cannot be exported, or the fp32 graphs disagree with torch;
    then nothing is written.
    """
    wanted: list[Precision] = ["fp32", *(entry for entry in dict.fromkeys(settings.precisions) if entry != "fp32")]
    places = {entry: settings.out / _name(settings, entry) / settings.version for entry in wanted}
    for place in places.values():
        if place.exists():
            raise ExportError(f"{place} exists; bundles are immutable, choose another version")
    stages = [stage.model_copy(update={"max_batch": settings.max_batch or stage.max_batch}) for stage in model.stages]
    golden = drawn_pictures(max(_GOLDEN, settings.picture_count))
    pictures = [*golden[:_GOLDEN], *(settings.pictures or golden[_GOLDEN:])]
    with contextlib.ExitStack() as stack:
        folders = {entry: stack.enter_context(staging(place)) for entry, place in places.items()}
        job = _Job(model, settings, stages, pictures, folders, say)
        report = job.run()
        written = [entry.precision for entry in report.precisions if entry.passed]
        for precision in written:
            job.complete(precision, report)
        for precision in written:
            publish(folders[precision], places[precision])
            say(f"{precision}: {places[precision]}")
    return Exported({precision: places[precision] for precision in written}, report)


class _Job:
    """The parts of one export, and what they hand to each other."""

    def __init__(
        self,
        model: Exportable,
        settings: Settings,
        stages: Sequence[Stage],
        pictures: Sequence[Pixels],
        folders: dict[Precision, Path],
        say: Callable[[str], None],
    ) -> None:
        self.model, self.settings, self.stages, self.pictures = model, settings, stages, pictures
        self.graphs = [stage for stage in stages if stage.lmm is None]
        self.folders, self.say = folders, say
        for folder in folders.values():
            for name, file in model.files.items():
                if isinstance(file, bytes):
                    (folder / name).write_bytes(file)
                else:
                    shutil.copyfile(file, folder / name)
        self.tokenizers = open_tokenizers(model.tokenizers, folders["fp32"])
        self.golden: dict[Precision, Trace] = {}
        self.dimensions: dict[Precision, Sequence[Dimension]] = {}

    def run(self) -> Report:
        self.say("torch: the scores to agree with")
        count = max(_GOLDEN, *(stage.max_batch for stage in self.graphs))
        eager = self._evaluate(torch_run(self.model.modules), self.pictures[:count])
        reports = [self._fp32(eager)]
        if len(self.folders) > 1:
            reference = self._evaluate(self._onnx("fp32"), self.pictures)
            reports += [self._variant(precision, reference) for precision in self.folders if precision != "fp32"]
        shown = len(eager.raw(self.model.dimensions[0]))
        return Report(
            family=self.model.card.family,
            version=self.settings.version,
            options=dict(self.model.options),
            checkpoint_sha256=self.settings.checkpoint_sha256,
            command=self.settings.command,
            created=today(),
            pictures=f"{len(self.pictures)} pictures"
            f" ({len(self.settings.pictures) or 'none'} read from a folder, the others drawn)",
            threads=self.settings.threads,
            torch_seconds={name: seconds / shown for name, seconds in eager.seconds.items()},
            precisions=reports,
            packages=packages(),
        )

    def _fp32(self, eager: Trace) -> PrecisionReport:
        folder = self.folders["fp32"]
        for stage in self.graphs:
            self.say(f"fp32: writing {stage.graph}")
            numbers = np.resize(alike(eager.inputs[stage.name])[0], 2)
            example = {name: take(rows, numbers) for name, rows in eager.inputs[stage.name].items()}
            write_graph(self.model.modules[stage.name], stage, example, folder / str(stage.graph))
        self.say("fp32: holding the graphs against torch")
        run = self._onnx("fp32")
        gates = [gate for stage in self.graphs for gate in stage_gates(stage, run, eager, "torch")]
        found = self._evaluate(run, self.pictures[:_GOLDEN])
        gates += [score_gate(dimension, eager, found, "torch") for dimension in self.model.dimensions]
        if failed := [gate for gate in gates if not gate.passed]:
            raise ExportError(
                "the graphs do not compute what torch computes:\n" + "\n".join(gate.line() for gate in failed)
            )
        self.golden["fp32"], self.dimensions["fp32"] = eager, self.model.dimensions
        return self._report("fp32", gates, found)

    def _variant(self, precision: Precision, reference: Trace) -> PrecisionReport:
        self.say(f"{precision}: converting, and scoring {len(self.pictures)} pictures")
        source, folder = self.folders["fp32"], self.folders[precision]
        for stage in self.graphs:
            convert(precision, source / str(stage.graph), folder / str(stage.graph))
        run = self._onnx(precision)
        found = self._evaluate(run, self.pictures)
        gates = [
            gate
            for dimension in self.model.dimensions
            for gate in variant_gates(dimension, reference, found, self.settings.limits)
        ]
        drift = {}
        for stage in self.graphs:
            inputs = {name: take(rows, np.array([0])) for name, rows in reference.inputs[stage.name].items()}
            graphs = (source / str(stage.graph), folder / str(stage.graph))
            layers = layer_drift(*graphs, inputs, self.settings.threads)
            drift[stage.name] = layers[:_LAYERS_SHOWN]
            if precision == "fp16":
                gates += stage_gates(stage, run, found, "itself alone", HALF_TOLERANCE)
                gates.append(range_gate(stage, max((layer.largest for layer in layers), default=0.0)))
        # A machine with other instructions rounds differently: it may move as far as the precision itself does.
        self.golden[precision] = found
        self.dimensions[precision] = [_widened(entry, reference, found) for entry in self.model.dimensions]
        return self._report(precision, gates, found, drift)

    def complete(self, precision: Precision, report: Report) -> None:
        """Adds golden records, report and manifest to the graphs of ``precision``."""
        folder, int8 = self.folders[precision], precision == "int8"
        for stage in self.graphs:
            _strip(folder / str(stage.graph))
        count = 1 if int8 else _GOLDEN  # the server replays them as one batch, which int8 cannot bear
        trace = self.golden[precision]
        expected = {dimension.name: trace.raw(dimension) for dimension in self.model.dimensions}
        features = golden_features(self.stages, trace.outputs)
        own = self.model.features is not None
        write_golden(folder, self.pictures[:count], prompts(count), expected, features, features_from_lmm=own)
        report.write(folder)
        stages = [stage.model_copy(update={"max_batch": 1}) for stage in self.stages] if int8 else self.stages
        write_manifest(
            folder,
            self.model,
            stages,
            self.dimensions[precision],
            name=_name(self.settings, precision),
            version=self.settings.version,
            command=self.settings.command,
            notes=NOTES[precision] + _PASSING,
        )

    def _report(
        self, precision: Precision, gates: list[Gate], trace: Trace, drift: dict[str, list[LayerDrift]] | None = None
    ) -> PrecisionReport:
        for gate in gates:
            self.say(gate.line())
        folder = self.folders[precision]
        count = len(trace.raw(self.model.dimensions[0]))
        return PrecisionReport(
            precision=precision,
            name=_name(self.settings, precision),
            gates=gates,
            graph_bytes={stage.name: graph_bytes(folder / str(stage.graph)) for stage in self.graphs},
            seconds={name: seconds / count for name, seconds in trace.seconds.items()},
            drift=drift or {},
        )

    def _evaluate(self, run: Run, pictures: Sequence[Pixels]) -> Trace:
        features = self.model.features or drawn_features
        return evaluate(self.stages, self.tokenizers, run, pictures, prompts(len(pictures)), features=features)

    def _onnx(self, precision: Precision) -> Run:
        return onnx_run(self.folders[precision], self.stages, self.settings.threads)


def _name(settings: Settings, precision: Precision) -> str:
    return settings.name if precision == "fp32" else f"{settings.name}-{precision}"


def _widened(dimension: Dimension, reference: Trace, variant: Trace) -> Dimension:
    tolerance = max(dimension.tolerance, largest_move(dimension, reference, variant))
    return dimension.model_copy(update={"tolerance": tolerance})


def _strip(path: Path) -> None:
    """Drops what the exporter notes about the machine it ran on: stack traces with paths."""
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    holders: list[Any] = [model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output]
    for holder in holders:
        kept = [entry for entry in holder.metadata_props if entry.key == SCOPES]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
    save_description(model, path)
