"""Threads shared by several batchers: never more jobs than threads, everybody gets a turn, nothing is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq_server.bundles.manifest import CropsView, ImageInput, ResizeView, Simulated, Stage
from critiq_server.bundles.model import LoadedStage, load_model
from critiq_server.engine.batcher import Batcher
from critiq_server.engine.engine import batch_limit
from critiq_server.engine.workers import Workers
from critiq_server.runtime.onnx import RuntimeSettings
from critiq_server.runtime.simulated import SimulatedAccelerator
from tests.server.engine.devices import Device, in_an_hour, queued, submit
from tests.support.bundles import write_bundle
from tests.support.waiting import until


class Crowd:
    """How many jobs run at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def compute(self, items: list[int]) -> Sequence[int]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Event().wait(0.0005)
        with self._lock:
            self.now -= 1
        return [item + 1 for item in items]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=60),
    st.integers(1, 4),
)
def test_no_more_jobs_run_than_there_are_threads(threads: int, plan: list[tuple[int, int]], max_batch: int) -> None:
    async def run() -> None:
        crowd, workers = Crowd(), Workers(threads, "test")
        batchers: list[Batcher[int, int]] = [
            Batcher(crowd.compute, max_batch, 1000, workers=count, pool=workers) for count in (1, 2, 3)
        ]
        tasks = []
        for number, (which, turns) in enumerate(plan):
            tasks.append(asyncio.ensure_future(batchers[which].submit(number, "one", in_an_hour())))
            for _ in range(turns):
                await asyncio.sleep(0)
        async with asyncio.timeout(120):
            assert await asyncio.gather(*tasks) == [number + 1 for number in range(len(plan))]
            for batcher in batchers:
                await batcher.close()
        assert crowd.most <= threads
        assert workers.free == threads
        workers.close()

    asyncio.run(run())


async def test_a_batch_grows_while_all_threads_are_busy_with_others() -> None:
    workers = Workers(1, "test")
    slow, quick = Device(held=True), Device()
    first = Batcher(slow.compute, 8, 100, pool=workers)
    second = Batcher(quick.compute, 8, 100, pool=workers)
    blocking = submit(first, "busy")
    await until(lambda: len(slow.batches) == 1)
    tasks = await queued(second, [1, 2, 3])
    slow.release()
    await asyncio.gather(blocking, *tasks)
    assert quick.batches == [[1, 2, 3]]
    workers.close()


async def test_a_flood_in_one_batcher_does_not_keep_another_from_its_turn() -> None:
    workers = Workers(1, "test")
    flooded, lone = Device(held=True), Device()
    first = Batcher(flooded.compute, 1, 100, pool=workers)
    second = Batcher(lone.compute, 1, 100, pool=workers)
    tasks = [submit(first, "busy")]
    await until(lambda: len(flooded.batches) == 1)
    tasks += await queued(first, list(range(50)))
    answer = submit(second, "lone")
    await asyncio.sleep(0)
    flooded.let_go(3)
    assert await asyncio.wait_for(answer, 120) == ("done", "lone")
    flooded.release()
    await asyncio.gather(*tasks)
    workers.close()


async def test_closing_one_batcher_leaves_the_shared_threads_to_the_others() -> None:
    workers = Workers(2, "test")
    first = Batcher(Device().compute, 8, 100, pool=workers)
    second = Batcher(Device().compute, 8, 100, pool=workers)
    await submit(first, 1)
    await first.close()
    assert await submit(second, 2) == ("done", 2)
    workers.close()


async def test_an_observer_that_fails_stops_nobody() -> None:
    def fail(_: object) -> None:
        raise ValueError("the observer failed")

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    workers = Workers(1, "test")
    first = Batcher(Device().compute, 1, 100, on_batch=fail, pool=workers)
    second = Batcher(Device().compute, 1, 100, pool=workers)
    async with asyncio.timeout(120):
        await asyncio.gather(*(submit(batcher, number) for number in range(6) for batcher in (first, second)))
    workers.close()


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> LoadedStage:
    directory = write_bundle(tmp_path_factory.mktemp("bundles"), max_batch=64)
    return load_model(directory, RuntimeSettings(provider="cpu")).stages["image_encoder"]


def seeing(stage: LoadedStage, view: ResizeView | CropsView) -> LoadedStage:
    source = ImageInput(view=view)
    spec = Stage.model_validate({**stage.spec.model_dump(), "inputs": {"image": source.model_dump()}})
    return replace(stage, spec=spec, inputs=(("image", source),))


def test_large_views_make_smaller_batches_on_a_cpu(on_cpu: LoadedStage) -> None:
    assert batch_limit(on_cpu, 0) == 64, "8 x 8 pixels are nothing"
    sizes = [batch_limit(seeing(on_cpu, ResizeView(height=side, width=side)), 0) for side in (224, 384, 512, 4096)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1
    assert sizes[-1] == 1


def test_the_setting_goes_before_the_rule_but_not_beyond_the_bundle(on_cpu: LoadedStage) -> None:
    large = seeing(on_cpu, ResizeView(height=512, width=512))
    assert [batch_limit(large, setting) for setting in (1, 7, 64, 1000)] == [1, 7, 64, 64]


def test_an_accelerator_takes_what_the_bundle_says(on_cpu: LoadedStage, tmp_path: Path) -> None:
    device = SimulatedAccelerator(Simulated(batch_ms=1, item_ms=0), ["brightness"])
    large = seeing(replace(on_cpu, runtime=device), ResizeView(height=512, width=512))
    assert batch_limit(large, 0) == 64
