"""What features of large multimodal models (LMMs) cost: to keep, to find, to serve from, to compute.

    python -m benchmarks.features [--quick] [--real] [--only stores|serving|lmm ...] [--json FILE]

The LMM is a toy with random weights on the CPU: its times say how the parts compare, not how long a real one takes.
``--real`` adds the scoring module at the width of real LMMs (4,096; 340 MB of weights).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.feature_stores import Costs, compare_stores
from benchmarks.toy_lmm import WIDTH, save_toy
from critiq_exporters.cli import main as export
from critiq_exporters.families.eliq.network import Scorer, Shape
from critiq_exporters.features.build import Plan, Progress, build
from critiq_exporters.features.progress import summary
from critiq_exporters.features.questions import Computing, of_bundle
from critiq_exporters.features.sources import open_source
from critiq_server.app import App
from critiq_server.features.disk import DiskStore
from critiq_server.images.source import EncodedImage
from critiq_server.queries import Query
from critiq_server.runtime.lmm.base import Instruction, Pixels, rounded
from critiq_server.settings import load_settings

REAL_WIDTH = 4096
SIDE = 1024


@dataclass(frozen=True, slots=True)
class Effort:
    entries: int
    pictures: int
    rounds: int


FULL, QUICK = Effort(10_000, 24, 10), Effort(2_000, 6, 5)


@dataclass(frozen=True, slots=True)
class Scoring:
    """Medians over pictures of the best round, in milliseconds: a whole score, the head's computation in it, the rest.

    The best, because other load on the machine only ever slows a score down.
    """

    width: int
    features: str
    total_ms: float
    head_ms: float
    rest_ms: float


@dataclass(frozen=True, slots=True)
class Sharing:
    """Three questions about one picture: the best of some rounds, in seconds, and tokens through the language model."""

    side: int
    shared_s: float
    separate_s: float
    shared_tokens: int
    separate_tokens: int


class _Guess:
    """Stands for an LMM where only the features' size matters."""

    provider, concurrency, gathers = "random", 1, True

    def __init__(self, width: int) -> None:
        self._width = width

    def bucket(self, height: int, width: int) -> Hashable:
        return height, width

    def extract(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> NDArray[np.float32]:
        values = np.random.default_rng(0).standard_normal((len(pictures), len(instructions), self._width))
        return rounded(values.astype(np.float32), "float16")

    def close(self) -> None:
        pass


def write_pictures(folder: Path, count: int, side: int = SIDE) -> Path:
    """JPEG files of ``side`` x ``side`` with large shapes and some noise, each with a prompt beside it."""
    folder.mkdir()
    for number in range(count):
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).resize((side, side))
        noisy = np.asarray(coarse, np.int16) + generator.integers(-8, 9, (side, side, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=90)
        (folder / f"{number:04}.txt").write_text(f"a pattern of colours, number {number}")
    return folder


def write_bundle(root: Path, width: int, lmm: Path | None = None) -> Path:
    """An ELIQ bundle with random heads for features of ``width``; of ``lmm``, or of one that is nowhere."""
    torch.manual_seed(0)
    shape = Shape(feature=width, hidden=width // 4, width=512 if width >= 1024 else 64, heads=8)
    torch.save(Scorer(shape).state_dict(), root / f"heads{width}.pt")
    command = ["eliq", "--checkpoint", str(root / f"heads{width}.pt"), "--name", f"eliq{width}", "--count", "4"]
    command += ["--out", str(root / "models"), "--lmm-name", f"toy{width}", "--heads", "8", "--lmm-dtype", "float32"]
    command += ["--lmm", str(lmm)] if lmm is not None else ["--lmm-revision", "0" * 64]
    assert export(command) == 0
    return root / "models" / f"eliq{width}" / "1"


def serve(root: Path, bundle: Path, images: Path, effort: Effort, *, lmm: Path | None) -> list[Scoring]:
    """Scores every picture from a warm store on disk, from memory, and (with ``lmm``) by computing."""
    width = int(bundle.parent.name.removeprefix("eliq"))
    queries = [
        Query(EncodedImage(path.read_bytes()), path.with_suffix(".txt").read_text())
        for path in sorted(images.glob("*.jpg"))
    ]
    store = root / f"store{width}"
    asked = of_bundle(bundle, [], Computing(lmm)).questions
    with DiskStore(store) as opened:
        source = open_source(images)
        build(source.items(), Plan(asked, batch=4), _Guess(width), opened, Progress(source.count))
    disk = {"disk": {"path": store, "read_only": True}}
    stored: dict[str, Any] = {"features": disk, "lmm": {"on_miss": "stored"}}
    cold: dict[str, Any] = {**stored, "engine": {"store_mb": 0}}
    rows = [
        asyncio.run(_score(bundle, queries, "on disk, file not seen before", 1, **cold)),
        asyncio.run(_score(bundle, queries, "on disk", effort.rounds, **cold)),
    ]
    if lmm is not None:
        computing = {"engine": {"store_mb": 0}, "lmm": {"folders": {f"toy{width}": lmm}, "device": "cpu"}}
        rows.append(asyncio.run(_score(bundle, queries, "computed by the toy", 1, **computing)))
    return rows


async def _score(bundle: Path, queries: Sequence[Query], name: str, rounds: int, **settings: Any) -> Scoring:
    model = bundle.parent.name
    ports = {"rest_port": 0, "grpc_port": 0, "metrics_port": 0}
    models = {"directories": [bundle.parent.parent], "default": model, "load": [model]}
    app = App(load_settings(None, {"server": ports, "models": models, **settings}))
    await app.start()

    def head_seconds() -> float:
        labels = {"model": model, "stage": "scorer"}
        return app.metrics.registry.get_sample_value("critiq_compute_seconds_sum", labels) or 0.0

    await app.service.score(queries[0], 300.0)
    best: dict[int, tuple[float, float, float]] = {}
    for round_ in range(rounds if rounds == 1 else rounds + 1):
        for number, query in enumerate(queries[1:]):
            before, started = head_seconds(), time.perf_counter()
            await app.service.score(query, 300.0)
            elapsed, head = time.perf_counter() - started, head_seconds() - before
            if rounds == 1 or round_:  # the first round reads the files
                best[number] = min(best.get(number, (1e9, 0.0, 0.0)), (elapsed, head, elapsed - head))
    await app.stop(grace=1)
    total, head, rest = (1e3 * median(values) for values in zip(*best.values(), strict=True))
    return Scoring(int(model.removeprefix("eliq")), name, total, head, rest)


def share(lmm: Path, bundle: Path, effort: Effort) -> list[Sharing]:
    """Three questions together, and one after the other."""
    from critiq_server.runtime.lmm.qwen3_vl import QwenExtractor

    questions = [
        Instruction(one.lmm.instruction, one.lmm.text) for one in of_bundle(bundle, [], Computing(lmm)).questions
    ]
    backbone = of_bundle(bundle, [], Computing(lmm)).questions[0].lmm.asked()
    extractor = QwenExtractor(lmm, backbone, "cpu")
    rows = []
    for side in (512, SIDE):
        picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        prompt = ["two horses and a cart on a road in front of a green hill"]
        together, apart = [], []
        for _ in range(effort.rounds // 3):
            started = time.perf_counter()
            extractor.extract([picture], prompt, questions)
            together.append(time.perf_counter() - started)
            started = time.perf_counter()
            for question in questions:
                extractor.extract([picture], prompt, [question])
            apart.append(time.perf_counter() - started)
        tokens = extractor.count_tokens([picture], prompt, questions)
        rows.append(Sharing(side, min(together), min(apart), tokens.shared, tokens.separate))
    extractor.close()
    return rows


def time_build(root: Path, bundle: Path, lmm: Path, images: Path) -> str:
    """A build with the toy, and what its time went into."""
    inquiry = of_bundle(bundle, [], Computing(lmm, device="cpu"))
    extractor = inquiry.open()
    source = open_source(images)
    progress = Progress(source.count)
    with DiskStore(root / "built") as store:
        build(source.items(), Plan(inquiry.questions, batch=4, workers=2), extractor, store, progress)
    extractor.close()
    return summary(progress, time.monotonic())


def print_stores(rows: Sequence[Costs], width: int, batch: int) -> None:
    print(f"\nStores: features of {width} values in half precision, {batch} at once\n")
    print("| store | written a second | one by one | read a second | one look-up p50, p99 | MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        size = f"{row.megabytes:,.0f}" if row.megabytes else "in memory"
        print(
            f"| {row.store} | {row.written:,.0f} | {row.written_singly:,.0f} | {row.read:,.0f} | "
            f"{row.one_p50:,.0f}, {row.one_p99:,.0f} us | {size} |"
        )


def print_scoring(rows: Sequence[Scoring]) -> None:
    print(f"\nScoring one picture of {SIDE} x {SIDE} after the other, in process\n")
    print("| width | features | ms a score | of it the head | the rest |\n|---:|---|---:|---:|---:|")
    for row in rows:
        print(f"| {row.width} | {row.features} | {row.total_ms:,.2f} | {row.head_ms:,.2f} | {row.rest_ms:,.2f} |")


def print_sharing(rows: Sequence[Sharing]) -> None:
    print("\nThree questions about a picture, toy LMM on the CPU\n")
    print("| picture | together | one by one | faster | tokens together | one by one |\n|---|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row.side} x {row.side} | {row.shared_s:.2f} s | {row.separate_s:.2f} s | "
            f"{row.separate_s / row.shared_s:.2f} x | {row.shared_tokens:,} | {row.separate_tokens:,} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer entries, pictures and rounds")
    parser.add_argument("--real", action="store_true", help="also heads for features of 4,096")
    parser.add_argument("--only", choices=["stores", "serving", "lmm"], action="append")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    parts = arguments.only or ["stores", "serving", "lmm"]
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if "stores" in parts:
            stores = compare_stores(root, effort.entries, REAL_WIDTH, 32)
            print_stores(stores, REAL_WIDTH, 32)
            figures["stores"] = [asdict(row) for row in stores]
        if {"serving", "lmm"} & set(parts):
            images = write_pictures(root / "images", effort.pictures)
            lmm = save_toy(root / "toy")
            bundle = write_bundle(root, WIDTH, lmm)
        if "serving" in parts:
            scoring = serve(root, bundle, images, effort, lmm=lmm)
            if arguments.real:
                scoring += serve(root, write_bundle(root, REAL_WIDTH), images, effort, lmm=None)
            print_scoring(scoring)
            figures["serving"] = [asdict(row) for row in scoring]
        if "lmm" in parts:
            sharing = share(lmm, bundle, effort)
            print_sharing(sharing)
            figures["sharing"] = [asdict(row) for row in sharing]
            figures["build"] = time_build(root, bundle, lmm, images)
            print(f"\nBuilding {effort.pictures} pictures of {SIDE} x {SIDE}, toy LMM\n\n{figures['build']}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
