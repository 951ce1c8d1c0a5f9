"""The engine alone: what is looked up, shared, computed and given up."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from critiq.errors import DeadlineExceeded, InvalidArgument
from critiq_server.bundles.model import load_model
from critiq_server.engine.batcher import Batcher
from critiq_server.engine.computing import compute_batch
from critiq_server.engine.demand import Call, Priority
from critiq_server.engine.engine import Engine, Evaluation, Inputs, ServedModel
from critiq_server.engine.pictures import Darkroom
from critiq_server.features.memory import MemoryStore
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage
from critiq_server.runtime.onnx import RuntimeSettings
from tests.support import requests
from tests.support.bundles import write_bundle
from tests.support.waiting import until

BOTH = frozenset({"image_encoder", "head"})


class Bench:
    """An engine with one model, whose batches are counted by stage and can be held."""

    def __init__(self, directory: Path, store_bytes: int = 10**6) -> None:
        self.computed: Counter[str] = Counter()
        self.lookups: Counter[tuple[str, bool]] = Counter()
        self.go = threading.Event()
        self.go.set()
        self.engine = Engine(MemoryStore(store_bytes), lambda stage, hit: self.lookups.update([(stage, hit)]))
        self.darkroom = Darkroom(ImageLimits(), (255, 255, 255))
        self.served = self.serve(directory)

    def serve(self, directory: Path) -> ServedModel:
        model = load_model(directory, RuntimeSettings(provider="cpu"))
        batchers: dict[str, Batcher[Inputs, Any]] = {
            name: Batcher(partial(self._compute, name, stage), max_batch=8, max_queue=100)
            for name, stage in model.stages.items()
        }
        return ServedModel(model, batchers)

    def ask(
        self,
        picture: bytes,
        prompt: str = "a cat",
        outputs: frozenset[str] = BOTH,
        demand: Call | None = None,
        served: ServedModel | None = None,
    ) -> asyncio.Task[Evaluation]:
        demand = demand or Call(asyncio.get_running_loop().time() + 60)
        developed = self.darkroom.picture(EncodedImage(picture))
        return asyncio.ensure_future(self.engine.evaluate(served or self.served, outputs, developed, prompt, demand))

    def _compute(self, name: str, stage: Any, items: list[Inputs]) -> Any:
        self.computed[name] += len(items)
        if not self.go.wait(120):
            raise AssertionError("nobody let the batch go")
        return compute_batch(stage, items)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_bundle(tmp_path)


@pytest.fixture
async def bench(directory: Path) -> Any:
    bench = Bench(directory)
    yield bench
    bench.go.set()
    await bench.served.close()
    bench.darkroom.close()


async def test_computes_every_stage_once(bench: Bench) -> None:
    evaluation = await bench.ask(requests.flat(51), "a red cat")
    assert evaluation.values["image_encoder"]["brightness"].item() == pytest.approx(0.2)
    assert evaluation.values["head"]["wordiness"].item() == pytest.approx(1.0)
    assert evaluation.from_store == frozenset()
    assert evaluation.prompt is not None
    assert evaluation.prompt.token_count == 5
    assert bench.computed == {"image_encoder": 1, "text_encoder": 1, "head": 1}


async def test_only_what_is_asked_for_is_computed(bench: Bench) -> None:
    evaluation = await bench.ask(requests.flat(51), outputs=frozenset({"image_encoder"}))
    assert set(evaluation.values) == {"image_encoder"}
    assert evaluation.prompt is None
    assert bench.computed == {"image_encoder": 1}


async def test_the_second_time_comes_from_the_store(bench: Bench) -> None:
    first = await bench.ask(requests.flat(51))
    second = await bench.ask(requests.flat(51, kind="WEBP"))
    assert second.from_store == BOTH
    assert {name: dict(values) for name, values in second.values.items()} == {
        name: dict(values) for name, values in first.values.items()
    }
    assert bench.computed.total() == 3
    assert bench.lookups["head", True] == 1


async def test_a_prompt_is_encoded_once_for_many_pictures(bench: Bench) -> None:
    await asyncio.gather(*(bench.ask(requests.flat(level), "a red cat") for level in range(10)))
    assert bench.computed == {"image_encoder": 10, "text_encoder": 1, "head": 10}


async def test_a_picture_is_encoded_once_for_many_prompts(bench: Bench) -> None:
    await asyncio.gather(*(bench.ask(requests.flat(51), "cat " * number) for number in range(1, 11)))
    assert bench.computed == {"image_encoder": 1, "text_encoder": 10, "head": 10}


async def test_two_callers_at_once_share_one_computation(bench: Bench) -> None:
    bench.go.clear()
    tasks = [bench.ask(requests.flat(51, kind=kind)) for kind in ("PNG", "PNG", "WEBP")]
    await until(lambda: bench.computed["image_encoder"] == 1)
    await asyncio.sleep(0.05)
    bench.go.set()
    evaluations = await asyncio.gather(*tasks)
    assert len({evaluation.values["head"]["wordiness"].item() for evaluation in evaluations}) == 1
    assert bench.computed == {"image_encoder": 1, "text_encoder": 1, "head": 1}


async def test_without_a_store_callers_at_once_share_all_the_same(directory: Path) -> None:
    bench = Bench(directory, store_bytes=0)
    bench.go.clear()
    tasks = [bench.ask(requests.flat(51)) for _ in range(3)]
    await until(lambda: bench.computed["image_encoder"] == 1)
    bench.go.set()
    await asyncio.gather(*tasks)
    assert bench.computed["image_encoder"] == 1
    await bench.ask(requests.flat(51))
    assert bench.computed["image_encoder"] == 2


async def test_a_joined_computation_lives_as_long_as_its_most_patient_caller(bench: Bench) -> None:
    loop = asyncio.get_running_loop()
    bench.go.clear()
    blocking = bench.ask(requests.flat(1))
    await until(lambda: bench.computed["image_encoder"] == 1)
    batcher = bench.served.batchers["image_encoder"]
    image = frozenset({"image_encoder"})
    soon = loop.time() + 0.5
    hasty = bench.ask(requests.flat(2), outputs=image, demand=Call(soon))
    await until(lambda: batcher.waiting == 1)
    patient = bench.ask(requests.flat(2), outputs=image, demand=Call(loop.time() + 60))
    lonely = bench.ask(requests.flat(3), outputs=image, demand=Call(soon))
    await until(lambda: batcher.waiting == 2)
    await until(lambda: loop.time() > soon)
    bench.go.set()
    assert (await patient).values["image_encoder"]["brightness"].item() == pytest.approx(2 / 255)
    with pytest.raises(DeadlineExceeded):
        await lonely
    await asyncio.gather(blocking, hasty)
    assert bench.computed["image_encoder"] == 2, "the picture that only a late caller wanted was not computed"


async def test_the_last_caller_to_leave_takes_the_computation_along(bench: Bench) -> None:
    bench.go.clear()
    blocking = bench.ask(requests.flat(1))
    await until(lambda: bench.computed["image_encoder"] == 1)
    batcher = bench.served.batchers["image_encoder"]
    leaving = [bench.ask(requests.flat(2)) for _ in range(2)]
    await until(lambda: batcher.waiting == 1)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    bench.go.set()
    await blocking
    await bench.ask(requests.flat(3))
    assert bench.computed["image_encoder"] == 2
    await until(lambda: len(bench.engine._flights) == 0)


async def test_urgency_passes_through_the_graph(bench: Bench) -> None:
    bench.go.clear()
    blocking = bench.ask(requests.flat(1))
    await until(lambda: bench.computed["image_encoder"] == 1)
    batcher = bench.served.batchers["image_encoder"]
    bulk = Call(asyncio.get_running_loop().time() + 60, Priority.BULK)
    task = bench.ask(requests.flat(2), demand=bulk)
    await until(lambda: batcher.waiting == 1)
    assert batcher._queue[0].demand.priority is Priority.BULK
    urgent = bench.ask(requests.flat(2))
    await until(lambda: batcher._queue[0].demand.priority is Priority.INTERACTIVE)
    bench.go.set()
    await asyncio.gather(blocking, task, urgent)


async def test_models_with_the_same_stage_share_its_outputs(bench: Bench, tmp_path: Path) -> None:
    other = bench.serve(write_bundle(tmp_path, name="other", bias=0.25))
    await bench.ask(requests.flat(51), "a red cat")
    evaluation = await bench.ask(requests.flat(51), "a red cat", served=other)
    assert evaluation.values["image_encoder"]["brightness"].item() == pytest.approx(0.45), "its own image encoder"
    assert bench.computed == {"image_encoder": 2, "text_encoder": 1, "head": 2}
    await other.close()


async def test_a_picture_that_cannot_be_decoded_fails_alone(bench: Bench) -> None:
    good, bad = bench.ask(requests.flat(51)), bench.ask(requests.flat(52)[:-30])
    with pytest.raises(InvalidArgument):
        await bad
    await good
    await until(lambda: len(bench.engine._flights) == 0)


async def test_batch_of_inputs_of_different_lengths(bench: Bench) -> None:
    prompts = ["a cat", "a red cat a red cat a red cat", "dog", "a red cat a red house"]
    evaluations = await asyncio.gather(*(bench.ask(requests.flat(255), prompt) for prompt in prompts))
    counts = [evaluation.values["head"]["wordiness"].item() for evaluation in evaluations]
    assert counts == [4, 11, 3, 8]


@pytest.fixture(autouse=True)
def _no_task_is_left_failed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert "never retrieved" not in caplog.text
