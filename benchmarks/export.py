"""What exporting buys on a CPU: torch in eager mode against onnxruntime, by stage, batch and precision.

    python -m benchmarks.export                                      # every family that has a maker in checkpoints.py
    python -m benchmarks.export --family maniqa --batch 1 8
    python -m benchmarks.export --checkpoint maniqa=ckpt_koniq10k.pt

One thread; processor time, so that other work on the machine matters little; every figure is the best of some rounds in
which torch and all graphs take turns. Columns are torch's time over the graph's: 1.3 is 1.3 times as fast.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import MAKERS, OPTIONS
from critiq_exporters.core.evaluate import Arrays, evaluate, open_session, open_tokenizers, torch_run
from critiq_exporters.core.exportable import Exportable
from critiq_exporters.core.graphs import write_graph
from critiq_exporters.core.pictures import Pixels, drawn_pictures, prompts
from critiq_exporters.core.precisions import Precision, convert
from critiq_exporters.families import FAMILIES
from critiq_server.bundles.manifest import Stage

Job = Callable[[], object]
COLUMNS = ("fp32", "fp32, unoptimised", "fp16", "int8")


def main() -> None:
    """Prints one table."""
    options = _options()
    torch.set_num_threads(1)
    given = dict(entry.split("=", 1) for entry in options.checkpoint)
    table = Table("family", "stage", "batch", "torch core-ms a picture", *COLUMNS)
    console = Console(width=140)
    for family in [*given, *(name for name in options.family or MAKERS if name not in given)]:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(given[family]) if family in given else MAKERS[family](Path(folder))
            model = FAMILIES[family].load(checkpoint, **({} if family in given else OPTIONS.get(family, {})))
            for row in _rows(model, Path(folder), options.batch, options.rounds, options.most_seconds):
                table.add_row(family, *row)
                console.print(family, *row)
    console.print(table)


def _rows(
    model: Exportable, folder: Path, batches: Sequence[int], rounds: int, most_seconds: float
) -> list[tuple[str, ...]]:
    for name, file in model.files.items():
        (folder / name).write_bytes(file if isinstance(file, bytes) else file.read_bytes())
    run = torch_run(model.modules)
    trace = evaluate(model.stages, open_tokenizers(model.tokenizers, folder), run, _pictures(), prompts(2))
    rows = []
    for stage in model.stages:
        if stage.graph is None:
            continue
        sample = trace.inputs[stage.name]
        graphs = _graphs(model, stage, sample, folder)
        for batch in batches:
            arrays = {name: np.resize(value, (batch, *value.shape[1:])) for name, value in sample.items()}
            if trace.seconds[stage.name] / 2 * batch > most_seconds:
                rows.append((stage.name, str(batch), "too long", *[""] * len(COLUMNS)))
                continue
            seconds = _best({"torch": lambda s=stage, a=arrays: run(s, a), **_jobs(graphs, arrays)}, rounds)
            eager = seconds.pop("torch")
            shares = [f"{eager / seconds[name]:.2f}" if name in seconds else "" for name in COLUMNS]
            rows.append((stage.name, str(batch), f"{1000 * eager / batch:.2f}", *shares))
    return rows


def _pictures() -> list[Pixels]:
    """Two of one size, so that they make a batch for any view."""
    drawn = drawn_pictures(8)
    return [picture for picture in drawn if picture.shape == drawn[0].shape][:2]


def _graphs(
    model: Exportable, stage: Stage, sample: Arrays, folder: Path
) -> Mapping[str, onnxruntime.InferenceSession]:
    source = folder / f"{stage.name}.onnx"
    write_graph(model.modules[stage.name], stage, sample, source)
    sessions = {"fp32": open_session(source, 1)}
    plain = onnxruntime.SessionOptions()
    plain.intra_op_num_threads = 1
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions["fp32, unoptimised"] = onnxruntime.InferenceSession(str(source), plain, ["CPUExecutionProvider"])
    precisions: tuple[Precision, ...] = ("fp16", "int8")
    for precision in precisions:
        target = folder / f"{stage.name}-{precision}.onnx"
        try:
            convert(precision, source, target)
            session = open_session(target, 1)
            session.run(None, dict(sample))
            sessions[precision] = session
        except Exception as error:  # a graph that cannot be converted or run leaves its column empty
            print(f"{stage.name}: no {precision}: {type(error).__name__}: {error}")
    return sessions


def _jobs(graphs: Mapping[str, onnxruntime.InferenceSession], arrays: Arrays) -> dict[str, Job]:
    return {name: lambda s=session: s.run(None, dict(arrays)) for name, session in graphs.items()}


def _best(jobs: Mapping[str, Job], rounds: int) -> dict[str, float]:
    """Processor seconds of each job, the least of ``rounds`` after one that does not count."""
    for job in jobs.values():
        job()
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - started)
    return best


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=[*MAKERS], help="only these")
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="FAMILY=PATH", help="of your own")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most-seconds", type=float, default=60.0, help="a batch that takes torch longer is left out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
