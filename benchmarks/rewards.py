"""What training with critiq as the reward costs: a GRPO-shaped load, and the faces of trainers' clients.

    python -m benchmarks.rewards                  # about five minutes
    python -m benchmarks.rewards --quick          # about one

*GRPO*: ``critiq.rewards.Mix`` scores groups of pictures that share a prompt, as float tensors, in alternation with the
in-process limit on the same core: the same pictures in a plain loop of one thread that encodes each prompt once too.
*Faces*: 64 callers at once with one picture each, over the pickle face and UniRL's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import math
import multiprocessing
import pickle
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.bundles import SIMULATED_BATCH, write_simulated
from benchmarks.limit import BATCHES, LimitSlice, in_process_limit, prompt
from benchmarks.load import Load, Slice
from benchmarks.pictures import Album, Picture, RawAlbum, make_album
from benchmarks.server import Server, pin, serving, two_cores
from benchmarks.transports import Ask, Transport, _http, _post
from critiq.rewards import Mix
from critiq_server.bundles import repository
from critiq_server.bundles.manifest import ImageInput, PromptInput
from critiq_server.bundles.model import load_model
from critiq_server.bundles.repository import find_bundles
from critiq_server.images.views import apply_view
from critiq_server.runtime.onnx import RuntimeSettings

BUILTIN = "critiq-builtin"
CALLERS = 64


class Tensors(Sequence[Any]):
    """Float32 tensors ``[3, 512, 512]`` in 0..1, made when asked for; the number is in the first pixels."""

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers
        scene = np.frombuffer(RawAlbum()[0].data, np.uint8).reshape(512, 512, 3)
        self._scene = scene.transpose(2, 0, 1).astype(np.float32) / 255

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        tensor = self._scene.copy()
        tensor[0, 0, :8] = np.frombuffer(self._numbers[index].to_bytes(8, "little"), np.uint8) / np.float32(255)
        return tensor


@dataclass(frozen=True, slots=True)
class GroupSlice:
    """Pictures a second, processor milliseconds a picture in the server (or the limit's process)."""

    rate: float
    cpu_ms: float


class GroupLimit:
    """The loop of ``benchmarks.limit`` for groups: the stages that see the prompt alone run once a group."""

    def __init__(self, bundle: Path, group: int) -> None:
        self._model = load_model(bundle, RuntimeSettings())
        self._plan = self._model.plan(frozenset(entry.stage for entry in self._model.manifest.dimensions))
        self._album = RawAlbum()
        self._numbers = count()
        self._group = group
        self._batch = 1
        sizes = [size for size in BATCHES if size <= group]
        costs: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(3):
            for size in sizes:
                self._batch = size
                costs[size].append(self.run(1).cpu_ms)
        self._batch = min(sizes, key=lambda size: median(costs[size]))

    def run(self, groups: int) -> GroupSlice:
        work = [[self._album[next(self._numbers)] for _ in range(self._group)] for _ in range(groups)]
        texts = [prompt(next(self._numbers)) for _ in range(groups)]
        cpu, started = time.process_time(), time.perf_counter()
        for pictures, text in zip(work, texts, strict=True):
            self._score(pictures, text)
        elapsed, used = time.perf_counter() - started, time.process_time() - cpu
        total = groups * self._group
        return GroupSlice(total / elapsed, 1000 * used / total)

    def _score(self, pictures: Sequence[Picture], text: str) -> None:
        known: dict[tuple[str, str], Any] = {}
        for start in range(0, len(pictures), self._batch):
            part = pictures[start : start + self._batch]
            pixels = [np.frombuffer(picture.data, np.uint8).reshape(picture.shape) for picture in part]
            values = dict(known)
            for stage in self._plan.stages:
                if (stage.spec.name, stage.spec.outputs[0]) in known:
                    continue
                of_text = all(isinstance(source, PromptInput) for _, source in stage.inputs)
                arrays = {
                    name: self._input(source, pixels, text, 1 if of_text else len(part), values)
                    for name, source in stage.inputs
                }
                for output, value in stage.runtime.run(arrays).items():
                    values[stage.spec.name, output] = value
                    if of_text:
                        known[stage.spec.name, output] = value

    def _input(self, source: Any, pixels: Sequence[Any], text: str, size: int, values: dict[Any, Any]) -> Any:
        if isinstance(source, ImageInput):
            return np.stack([apply_view(entry, source.view) for entry in pixels])
        if isinstance(source, PromptInput):
            return getattr(self._model.tokenizers[source.tokenizer].encode(text), source.field)[None]
        value = values[source.stage, source.output]
        return np.repeat(value, size, axis=0) if len(value) == 1 and size > 1 else value


@contextmanager
def group_limit(bundle: Path, group: int, core: int | None) -> Iterator[Connection]:
    """The loop in a process of its own on the server's core; send a number of groups, receive a :class:`GroupSlice`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_limit, args=(theirs, bundle, group, core), daemon=True)
    process.start()
    try:
        assert ours.recv() == "ready"
        yield ours
    finally:
        ours.send(0)
        process.join(10)


def _serve_limit(pipe: Connection, bundle: Path, group: int, core: int | None) -> None:
    pin(core)
    loop = GroupLimit(bundle, group)
    pipe.send("ready")
    while (groups := pipe.recv()) > 0:
        pipe.send(loop.run(groups))


def grpo(server: Server, limit: Connection, prompts: int, group: int, rounds: int) -> dict[str, Any]:
    """``prompts`` groups in all, cut into ``rounds`` calls that alternate with the limit."""
    mix = Mix({"visual_quality": 1.0, "alignment": 1.0}, url=server.grpc, normalise="components")
    numbers = count(1)
    mix.score(Tensors(range(1)), ["a warm start"])
    before = server.scrape()
    served: list[GroupSlice] = []
    limits: list[GroupSlice] = []
    client = 0.0
    for _ in range(rounds):
        here = prompts // rounds
        limit.send(here)
        limits.append(limit.recv())
        texts = [text for text in (prompt(next(numbers)) for _ in range(here)) for _ in range(group)]
        first = 1_000_000 * next(numbers)
        images = Tensors(range(first, first + len(texts)))
        cpu, ours, started = server.cpu_seconds(), time.process_time(), time.perf_counter()
        rewards = mix.score(images, texts)
        elapsed = time.perf_counter() - started
        client += (time.process_time() - ours) / elapsed / rounds
        assert all(math.isfinite(value) for value in rewards.total)
        served.append(GroupSlice(len(texts) / elapsed, 1000 * (server.cpu_seconds() - cpu) / len(texts)))
    delta = server.scrape().since(before)
    encoded = delta.values.get(f'critiq_batch_size_sum{{model="{BUILTIN}",stage="text_encoder"}}', math.nan)
    return {
        "prompts": rounds * (prompts // rounds),
        "pictures": rounds * (prompts // rounds) * group,
        "rate": median(entry.rate for entry in served),
        "limit": median(entry.rate for entry in limits),
        "ratio": max(entry.rate for entry in served) / max(entry.rate for entry in limits),
        "cpu_ratio": median(entry.cpu_ms for entry in limits) / median(entry.cpu_ms for entry in served),
        "cpu_ms": median(entry.cpu_ms for entry in served),
        "encoded": encoded,
        "client": client,
    }


class SmallJpegs:
    """64x64 files that decode in no time, so that the device is what is measured; 4,096 of them differ."""

    def __init__(self) -> None:
        self._files: list[bytes] = []
        for number in range(4096):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=92)
            self._files.append(file.getvalue())

    def __getitem__(self, number: int) -> Picture:
        return Picture(self._files[number % len(self._files)])


def _pickled(asks: Sequence[Ask]) -> bytes:
    (ask,) = asks
    body = pickle.dumps({"images": [ask.picture.data], "prompts": [ask.prompt], "metadata": {}})
    return _post("/compat/pickle/value", "application/octet-stream", body)


def _unirl(asks: Sequence[Ask]) -> bytes:
    (ask,) = asks
    turn = {"text": ask.prompt, "image_b64": base64.b64encode(ask.picture.data).decode()}
    request = {"history": [turn], "required_rewards": ["value"], "metadata": None}
    return _post("/compat/unirl/score", "application/json", json.dumps({"requests": [request]}).encode())


def _pickled_scores(answer: bytes) -> list[bool]:
    return [False for score in pickle.loads(answer)["scores"] if math.isfinite(score)]  # noqa: S301 - our own server


def _unirl_scores(answer: bytes) -> list[bool]:
    return [False for result in json.loads(answer)["results"] for score in result.values() if score]


TRANSPORTS = (
    Transport("pickle", "pickle", _pickled, _pickled_scores, _http),
    Transport("unirl", "UniRL", _unirl, _unirl_scores, _http),
)


def with_faces(dimension: str) -> list[str]:
    """Arguments of a server whose reward ``value`` is that dimension of its default model."""
    settings = ("pickle.enabled=true", "unirl.enabled=true", f"rewards.value.dimension={dimension}")
    return [part for setting in (*settings, "rewards.value.scale=raw") for part in ("--set", f"compat.{setting}")]


async def faces(server: Server, load: Load, transport: Transport, requests: int, limit: Any, rounds: int) -> str:
    """One line of the table; ``limit`` is that of ``benchmarks.limit``, or ``None``."""
    served: list[Slice] = []
    limits: list[LimitSlice] = []
    for _ in range(rounds):
        if limit is not None:
            limits.append(limit.measure(2.0))
        # New connections each time: the server closes those that were idle for some seconds.
        async with transport.connect(server, CALLERS) as send:
            served.append(await load.run(requests, send, None))
    cells = [
        transport.title,
        f"{median(entry.rate for entry in served):.1f}",
        f"{max(entry.rate for entry in served) / max(entry.rate for entry in limits):.3f}" if limits else "",
        f"{median(entry.cpu_ms for entry in limits) / median(entry.cpu_ms for entry in served):.3f}" if limits else "",
        f"{median(entry.p50_ms for entry in served):.1f}",
        f"{median(entry.p99_ms for entry in served):.1f}",
        f"{median(entry.mean_batch for entry in served):.1f}",
        f"{median(entry.client_share for entry in served):.0%}",
    ]
    return f"| {' | '.join(cells)} |"


_HEAD = (
    "| face | pictures/s | ratio | CPU ratio | p50 ms | p99 ms | mean batch | client core |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewards", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="8 prompts instead of 64, short slices")
    parser.add_argument("--part", choices=("grpo", "faces"), help="only this part")
    options = parser.parse_args()
    prompts, group, rounds = (8, 16, 2) if options.quick else (64, 16, 8)
    core, rest = two_cores()
    builtin = find_bundles([repository.BUILTIN])[BUILTIN]
    bundle = builtin[next(reversed(builtin))].directory
    if options.part != "faces":
        with serving(["--load", BUILTIN], core) as server, group_limit(bundle, group, core) as pipe:
            pin(rest)
            found = grpo(server, pipe, prompts, group, rounds)
        print(
            f"\n**GRPO**, {BUILTIN}: {found['pictures']} float32 pictures of 512x512 in groups of {group}: "
            f"{found['rate']:.1f} pictures/s, limit {found['limit']:.1f}, ratio {found['ratio']:.3f}, "
            f"CPU ratio {found['cpu_ratio']:.3f}; {found['encoded']:.0f} prompts encoded for {found['prompts']}; "
            f"server CPU {found['cpu_ms']:.2f} ms, client core {found['client']:.0%}",
            flush=True,
        )
    if options.part != "grpo":
        with tempfile.TemporaryDirectory() as directory:
            write_simulated(Path(directory))
            arguments = ["--models", directory, "--default", "simulated", "--load", "simulated", *with_faces("value")]
            with serving([*arguments, "--set", "engine.store_mb=0"], core) as server:
                pin(rest)
                print(f"\n**simulated**, batches of at most {SIMULATED_BATCH}, {CALLERS} callers\n\n{_HEAD}")
                print_faces(server, SmallJpegs(), 1024 if options.quick else 2048, None, rounds)
        with serving(["--load", BUILTIN, *with_faces("visual_quality")], core) as server:
            pin(rest)
            print(f"\n**{BUILTIN}**, visual_quality, JPEG files of 512x512, {CALLERS} callers\n\n{_HEAD}")
            with in_process_limit(bundle, "jpeg", False, core) as limit:
                print_faces(
                    server, make_album("jpeg"), CALLERS if options.quick else 2 * CALLERS, limit, min(rounds, 4)
                )


def print_faces(server: Server, album: Album, requests: int, limit: Any, rounds: int) -> None:
    numbers = count()  # no picture twice
    for transport in TRANSPORTS:
        load = Load(server, transport, album, numbers, prompts=False, concurrency=CALLERS)
        print(asyncio.run(faces(server, load, transport, requests, limit, rounds)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
