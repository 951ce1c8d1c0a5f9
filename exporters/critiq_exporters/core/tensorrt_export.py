"""``critiq export tensorrt``: a bundle -> the same with engines for the GPU at hand, held against its own graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from critiq_exporters.core.bundle import publish, sha256, today
from critiq_exporters.core.evaluate import Arrays, Run, evaluate, onnx_run, open_tokenizers
from critiq_exporters.core.gates import Gate, stage_gates
from critiq_exporters.core.graphs import ExportError
from critiq_exporters.core.pictures import Pixels, prompts
from critiq_exporters.core.tensorrt_build import build_engine, ranges, shapes_of
from critiq_server.bundles.manifest import MANIFEST_FILE, Engine, Manifest, Stage
from critiq_server.bundles.model import read_manifest, verify_files
from critiq_server.bundles.staging import staging
from critiq_server.runtime.tensorrt_engine import EngineRuntime, compute_capability, import_tensorrt, open_engine

ENGINE_TOLERANCE = 1e-3
"""Of a stage's output against the same graph in float32 on the CPU, as a share of its largest value (or of 1)."""
HALF_ENGINE_TOLERANCE = 1e-2
"""The same for graphs in float16, which onnxruntime computes in float32 on a CPU."""


def export_engines(
    bundle: Path,
    out: Path,
    pictures: Sequence[Pixels],
    *,
    version: str | None = None,
    device: int = 0,
    timing_cache: Path | None = None,
    workspace: int = 0,
    tf32: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Writes ``out/NAME/VERSION``: a copy of ``bundle`` with an engine for every graph. Returns where it lies.

    Engines that the bundle has for other GPUs are kept. ``version`` is the bundle's with ``-smNN`` where left out.

    Raises:
        ProviderUnavailable: there is no TensorRT or no GPU here.
        BrokenBundle: the bundle is not whole.
        ExportError: TensorRT cannot build a graph, an engine disagrees with its graph, or the place is taken; nothing
            is written.
    """
    trt = import_tensorrt()
    capability = compute_capability(device)
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    suffix = f"sm{capability.replace('.', '')}"
    version = version or f"{manifest.version}-{suffix}"
    place = out / manifest.name / version
    if place.exists():
        raise ExportError(f"{place} exists; bundles are immutable, choose another version")
    by_name = {stage.name: stage for stage in manifest.stages}
    with staging(place) as folder:
        stages = []
        for stage in manifest.stages:
            if stage.graph is None:
                stages.append(stage)
                continue
            say(f"{stage.name}: building for compute capability {capability} with TensorRT {trt.__version__}")
            shapes = shapes_of(bundle / stage.graph, ranges(stage, by_name, manifest.tokenizers))
            plan = build_engine(
                trt, bundle / stage.graph, shapes, timing_cache=timing_cache, workspace=workspace, tf32=tf32
            )
            engine = Engine(
                file=f"{stage.name}-{suffix}-trt{trt.__version__}.plan",
                tensorrt=trt.__version__,
                compute_capability=capability,
            )
            (folder / engine.file).write_bytes(plan)
            others = [entry for entry in stage.engines if entry.file != engine.file]
            stages.append(stage.model_copy(update={"engines": [*others, engine]}))
        failed = [gate for gate in _gates(bundle, folder, manifest, stages, pictures, device, say) if not gate.passed]
        if failed:
            raise ExportError(
                "the engines do not compute what the graphs compute:\n" + "\n".join(gate.line() for gate in failed)
            )
        for name in manifest.files:
            if not (folder / name).exists():
                shutil.copyfile(bundle / name, folder / name)
        _describe(folder, manifest, stages, version)
        publish(folder, place)
    say(str(place))
    return place


def _gates(
    bundle: Path,
    folder: Path,
    manifest: Manifest,
    stages: Sequence[Stage],
    pictures: Sequence[Pixels],
    device: int,
    say: Callable[[str], None],
) -> list[Gate]:
    run = onnx_run(bundle, stages, threads=1)
    tokenizers = open_tokenizers(manifest.tokenizers, bundle)
    trace = evaluate(stages, tokenizers, run, pictures, prompts(len(pictures)))
    gates = []
    for stage in stages:
        if stage.graph is None:
            continue
        half = _is_half(bundle / str(stage.graph))
        tolerance = HALF_ENGINE_TOLERANCE if half else ENGINE_TOLERANCE
        engine = open_engine(folder, stage.engines[-1:], stage.outputs, device)
        found = stage_gates(stage, _engine_run(engine), trace, "onnxruntime", tolerance)
        for gate in found:
            say(gate.line())
        gates += found
    return gates


def _engine_run(engine: EngineRuntime) -> Run:
    def run(stage: Stage, arrays: Arrays) -> Arrays:
        return engine.run(arrays)

    return run


def _is_half(graph: Path) -> bool:
    import onnx

    weights = onnx.load(str(graph), load_external_data=False).graph.initializer
    floats = [
        entry.data_type for entry in weights if entry.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    ]
    return onnx.TensorProto.FLOAT16 in floats


def _describe(folder: Path, manifest: Manifest, stages: Sequence[Stage], version: str) -> None:
    notes = f"{manifest.provenance.notes}; engines added {today()}: critiq export tensorrt".removeprefix("; ")
    described = manifest.model_copy(
        update={
            "version": version,
            "stages": list(stages),
            "provenance": manifest.provenance.model_copy(update={"notes": notes}),
            "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        }
    )
    checked = Manifest.model_validate(described.model_dump())
    (folder / MANIFEST_FILE).write_text(checked.model_dump_json(indent=1) + "\n", "utf-8")
