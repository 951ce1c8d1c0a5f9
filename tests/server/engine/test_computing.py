"""What becomes of a batch of which something is wrong, and of a model of which nothing comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from critiq.errors import CritiqError, Internal, InvalidArgument, Unavailable
from critiq_server.bundles.model import LoadedStage, load_model
from critiq_server.engine.batcher import Batcher
from critiq_server.engine.computing import FaultKind, compute_batch
from critiq_server.engine.health import ModelHealth
from critiq_server.runtime.base import TensorSpec
from critiq_server.runtime.fault_settings import FaultSettings
from critiq_server.runtime.onnx import RuntimeSettings
from tests.server.engine.devices import in_an_hour
from tests.support.bundles import write_bundle
from tests.support.waiting import until

BAD = 99.0
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Odd:
    """Doubles its input, and does something else where that is ``BAD``; remembers the sizes of its batches."""

    provider, concurrency, outputs = "test", 1, {"twice": TensorSpec("float32", (2,))}

    def __init__(self, spoil: Callable[[Any, Any], Any]) -> None:
        self.sizes: list[int] = []
        self._spoil = spoil

    def run(self, inputs: Mapping[str, Any], *, keep_memory: bool = True) -> Mapping[str, Any]:
        values = inputs["x"]
        self.sizes.append(len(values))
        twice = 2 * values
        bad = values[:, 0] == BAD
        return {"twice": self._spoil(twice, bad) if bad.any() else twice}


def raised(twice: Any, bad: Any) -> Any:
    raise RuntimeError("a secret of the device")


def not_finite(twice: Any, bad: Any) -> Any:
    twice[bad, 1] = np.nan
    return twice


def too_many(twice: Any, bad: Any) -> Any:
    return np.concatenate([twice, twice])


def too_wide(twice: Any, bad: Any) -> Any:
    return np.concatenate([twice, twice], axis=1)


@pytest.fixture
def stage(tmp_path: Path) -> LoadedStage:
    return load_model(write_bundle(tmp_path), RuntimeSettings(provider="cpu")).stages["image_encoder"]


def items(*values: float) -> list[Mapping[str, Any]]:
    return [{"x": np.full(2, value, np.float32)} for value in values]


@pytest.mark.parametrize("spoil", [raised, not_finite, too_many, too_wide])
def test_one_bad_item_leaves_its_neighbours_alone(
    stage: LoadedStage, spoil: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = Odd(spoil)
    told: list[tuple[Sequence[FaultKind], bool]] = []
    outcomes = compute_batch(
        replace(stage, runtime=runtime), items(1, BAD, 3), lambda faults, sound: told.append((faults, sound))
    )
    first, bad, last = outcomes
    assert isinstance(bad, Internal)
    assert not isinstance(first, CritiqError)
    assert not isinstance(last, CritiqError)
    assert (first["twice"][0], last["twice"][0]) == (2, 6)
    assert "secret" not in str(bad)
    # What is sound in a batch with values that are not finite stays; otherwise each is tried alone.
    assert runtime.sizes == ([3, 1] if spoil is not_finite else [3, 1, 1, 1])
    ((faults, sound),) = told
    kind = {raised: "raised", not_finite: "not_finite"}.get(spoil, "wrong_shape")
    assert (set(faults), len(faults), sound) == ({kind}, 2, True)


def test_a_picture_that_the_model_has_no_value_for_is_refused_and_no_fault(stage: LoadedStage) -> None:
    runtime = Odd(not_finite)
    spec = stage.spec.model_copy(update={"no_value_for": "pictures of one colour"})
    told: list[Sequence[FaultKind]] = []
    outcomes = compute_batch(
        replace(stage, runtime=runtime, spec=spec), items(1, BAD, BAD), lambda faults, sound: told.append(faults)
    )
    first, *refused = outcomes
    assert not isinstance(first, CritiqError)
    for error in refused:
        assert isinstance(error, InvalidArgument)
        assert error.field == "image"
        assert "has no value for pictures of one colour, and this picture is one of them" in str(error)
    assert (runtime.sizes, told) == ([3], [[]])


def test_a_single_bad_item_is_not_tried_twice(stage: LoadedStage) -> None:
    runtime = Odd(raised)
    told: list[bool] = []
    (outcome,) = compute_batch(replace(stage, runtime=runtime), items(BAD), lambda faults, sound: told.append(sound))
    assert isinstance(outcome, Internal)
    assert (runtime.sizes, told) == ([1], [False])


async def test_a_batch_that_hangs_is_given_up_and_the_next_goes_on() -> None:
    gate, lost = threading.Event(), []

    def compute(values: list[str]) -> list[str]:
        if "hang" in values:
            gate.wait(120)
        return values

    batcher = Batcher(compute, max_batch=1, max_queue=10, max_compute=0.05, on_lost=lost.append)
    hanging = asyncio.ensure_future(batcher.submit("hang", "one", in_an_hour()))
    following = asyncio.ensure_future(batcher.submit("next", "one", in_an_hour()))
    with pytest.raises(Unavailable, match=r"gave nothing within 0\.05 s") as failure:
        await hanging
    assert failure.value.retry_after
    assert await following == "next"
    assert lost == [True]
    gate.set()
    await until(lambda: lost == [True, False])
    assert await batcher.submit("after", "one", in_an_hour()) == "after"
    await batcher.close()


async def test_a_suspended_batcher_refuses_what_waits_and_what_comes() -> None:
    gate = threading.Event()

    def compute(values: list[str]) -> list[str]:
        gate.wait(120)
        return values

    batcher = Batcher(compute, max_batch=1, max_queue=10)
    running, waiting = (asyncio.ensure_future(batcher.submit(name, "one", in_an_hour())) for name in "ab")
    await until(lambda: batcher.waiting == 1)
    batcher.suspend(lambda: Unavailable("not now", retry_after=1.0))
    with pytest.raises(Unavailable, match="not now"):
        await waiting
    with pytest.raises(Unavailable, match="not now"):
        await batcher.submit("c", "one", in_an_hour())
    gate.set()
    assert await running == "a", "what is being computed is answered"
    batcher.resume()
    assert await batcher.submit("d", "one", in_an_hour()) == "d"


class Patient:
    """A model whose golden record comes out as the test says."""

    def __init__(self, **settings: Any) -> None:
        self.problem: Exception | None = None
        self.probes = 0
        self.faults: list[tuple[str, str]] = []
        self.states: list[str] = []
        self.health = ModelHealth(
            "m",
            FaultSettings(probe_seconds=0.01, **settings),
            self._probe,
            lambda stage, kind: self.faults.append((stage, kind)),
            lambda: self.states.append(self.health.reason),
        )

    def _probe(self) -> None:
        self.probes += 1
        if self.problem is not None:
            raise self.problem


async def test_the_golden_record_decides_whether_a_model_is_suspended() -> None:
    patient = Patient(suspend_after=3)
    for _ in range(3):
        patient.health.batch_ended("encoder", ["raised"], False)
    await until(lambda: patient.probes == 1)
    await asyncio.sleep(0.02)
    assert (patient.health.reason, patient.states) == ("", []), "it computes: the pictures were to blame"
    patient.problem = RuntimeError("a secret of the device")
    patient.health.batch_ended("encoder", ["raised"], False)
    patient.health.batch_ended("encoder", ["not_finite"], True)  # something came out: the count begins anew
    for _ in range(2):
        patient.health.batch_ended("encoder", ["raised"], False)
    await asyncio.sleep(0.02)
    assert patient.probes == 1
    patient.health.batch_ended("encoder", ["raised"], False)
    await until(lambda: bool(patient.health.reason))
    assert "secret" not in patient.health.reason
    patient.problem = None
    await until(lambda: not patient.health.reason)
    assert [bool(state) for state in patient.states] == [True, False]
    assert patient.faults.count(("encoder", "raised")) == 7


async def test_too_many_lost_threads_are_not_added_to() -> None:
    patient = Patient(suspend_after=2)
    patient.health.batch_lost("encoder", True)
    await until(lambda: patient.probes == 1 and not patient.health.reason)
    patient.health.batch_lost("encoder", True)
    await asyncio.sleep(0.05)
    assert patient.probes == 1, "no thread more for one that hangs"
    assert "2 batches have not come back" in patient.health.reason or "gave nothing" in patient.health.reason
    patient.health.batch_lost("encoder", False)
    await until(lambda: not patient.health.reason)
    patient.health.close()
