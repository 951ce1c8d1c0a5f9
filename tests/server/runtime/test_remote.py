"""An LMM served elsewhere, over vLLM's pooling endpoint: what is sent, what comes back, and every way to fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from critiq_server.bundles.lmm import Backbone
from critiq_server.runtime.lmm.base import Instruction, LmmUnreachable
from critiq_server.runtime.lmm.folder import LmmUnavailable
from critiq_server.runtime.lmm.instructions import standard_backbone
from critiq_server.runtime.lmm.settings import RemoteSettings
from critiq_server.runtime.remote import Breaker, RemoteExtractor
from critiq_server.telemetry import traces
from critiq_server.telemetry.settings import TraceSettings
from critiq_server.telemetry.tracer import OtlpTracer
from tests.support.collector import collecting
from tests.support.pooling import Answer, Behaviour, PoolingServer, pooled, pooling_server, question_of

WIDTH = 6
BACKBONE = standard_backbone(
    "qwen3-vl", "Qwen/tiny", "revision", WIDTH, stored="float32", max_pixels=25600, min_pixels=1
)
QUESTIONS = [Instruction("one", "How sharp?"), Instruction("two", "Does it show {prompt}?")]
PICTURES = [np.full((8, 12, 3), level, np.uint8) for level in (10, 20, 30)]


def feature_of(level: int, text: str) -> NDArray[np.float32]:
    return np.array([level, len(text), *range(WIDTH - 2)], np.float32)


def well(body: dict[str, Any], number: int) -> Answer:
    """Answers with what it was asked."""
    picture, text = question_of(body)
    return pooled(feature_of(int(picture.mean()), text))


@contextmanager
def remote(behave: Behaviour = well, **settings: Any) -> Iterator[tuple[RemoteExtractor, PoolingServer]]:
    with pooling_server(behave) as served:
        given = {"url": served.url, "timeout_seconds": 5.0, "attempts": 2, **settings}
        extractor = RemoteExtractor(BACKBONE, RemoteSettings.model_validate(given))
        try:
            yield extractor, served
        finally:
            extractor.close()


def ask(extractor: RemoteExtractor, count: int = 1) -> NDArray[np.float32]:
    return extractor.extract(PICTURES[:count], ["a cat"] * count, QUESTIONS)


def test_each_picture_is_asked_each_question_as_a_chat() -> None:
    with remote(api_key="secret", model="served-name") as (extractor, served):
        found = ask(extractor, 3)
        assert extractor.provider == "remote:127.0.0.1"
    for row, level in enumerate((10, 20, 30)):
        assert np.array_equal(found[row, 0], feature_of(level, "How sharp?"))
        assert np.array_equal(found[row, 1], feature_of(level, "Does it show a cat?"))
    body = served.bodies[0]
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert body["model"] == "served-name"
    assert (body["task"], body["add_generation_prompt"], body["use_activation"]) == ("embed", True, False)
    assert body["mm_processor_kwargs"] == {"min_pixels": 1, "max_pixels": 25600}
    assert {headers["Authorization"] for headers in served.headers} == {"Bearer secret"}


def test_a_passing_fault_is_overcome_by_asking_again() -> None:
    def first_fails(body: dict[str, Any], number: int) -> Answer:
        return (503, {"error": "starting"}) if number == 1 else well(body, number)

    with remote(first_fails) as (extractor, served):
        found = extractor.extract(PICTURES[:1], None, QUESTIONS[:1])
        assert np.array_equal(found[0, 0], feature_of(10, "How sharp?"))
        assert len(served.bodies) == 2


def test_a_lasting_fault_is_reported_with_the_servers_words() -> None:
    with (
        remote(lambda body, number: (500, {"error": "out of memory"})) as (extractor, served),
        pytest.raises(LmmUnreachable, match=r"failed 2 times: it answered 500: .*out of memory") as caught,
    ):
        extractor.extract(PICTURES[:1], None, QUESTIONS[:1])
    assert len(served.bodies) == 2
    assert caught.value.retry_after == pytest.approx(10)


def test_a_slow_server_is_not_waited_for() -> None:
    given_up = Event()

    def slow(body: dict[str, Any], number: int) -> Answer:
        assert given_up.wait(60)
        return well(body, number)

    with remote(slow, timeout_seconds=0.1, attempts=1) as (extractor, _):
        with pytest.raises(LmmUnreachable, match="ReadTimeout"):
            extractor.extract(PICTURES[:1], None, QUESTIONS[:1])
        given_up.set()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (pooled([1.0, 2.0]), r"shape \[2\] instead of \[6\]: another model, or it pools otherwise"),
        (pooled([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]), "a feature of length 1: it normalises"),
        (pooled([float("nan")] * WIDTH), "not finite"),
        ((200, {"data": []}), "no pooled hidden state"),
        ((200, {"choices": [{"text": "high"}]}), "no pooled hidden state"),
        ((400, {"error": "no such model"}), r"refused the question with 400: .*no such model"),
    ],
)
def test_useless_answers_are_refused_at_once(answer: Answer, message: str) -> None:
    with remote(lambda body, number: answer) as (extractor, served), pytest.raises(LmmUnreachable, match=message):
        extractor.extract(PICTURES[:1], None, QUESTIONS[:1])
    assert len(served.bodies) == 1


def test_a_server_that_is_gone_is_unreachable() -> None:
    with remote() as (extractor, served):
        url = served.url
    extractor = RemoteExtractor(BACKBONE, RemoteSettings(url=url, attempts=1))
    with pytest.raises(LmmUnreachable, match="ConnectError"):
        extractor.extract(PICTURES[:1], None, QUESTIONS[:1])


def test_no_more_questions_than_allowed_are_under_way() -> None:
    def lingering(body: dict[str, Any], number: int) -> Answer:
        time.sleep(0.02)
        return well(body, number)

    with remote(lingering, concurrency=2) as (extractor, served):
        ask(extractor, 3)
    assert served.most_at_once == 2


def test_after_several_failures_nothing_is_asked_for_a_while() -> None:
    broken = threading.Event()
    broken.set()

    def sometimes(body: dict[str, Any], number: int) -> Answer:
        return (500, {}) if broken.is_set() else well(body, number)

    with remote(sometimes, attempts=1, breaker_failures=2, breaker_seconds=0.3) as (extractor, served):
        for _ in range(2):
            with pytest.raises(LmmUnreachable, match="answered 500"):
                extractor.extract(PICTURES[:1], None, QUESTIONS[:1])
        with pytest.raises(LmmUnreachable, match="failed 2 times in a row and is not asked") as caught:
            extractor.extract(PICTURES[:1], None, QUESTIONS[:1])
        assert len(served.bodies) == 2
        assert 0 < (caught.value.retry_after or 0) <= 0.3
        broken.clear()
        time.sleep(0.35)
        extractor.extract(PICTURES[:1], None, QUESTIONS[:1])
        extractor.extract(PICTURES[:1], None, QUESTIONS[:1])
    assert len(served.bodies) == 4


def test_the_breaker_lets_one_try_and_closes_when_it_succeeds() -> None:
    now = [0.0]
    breaker = Breaker(2, 10.0, lambda: now[0])
    breaker.failed()
    breaker.check()
    breaker.failed()
    with pytest.raises(LmmUnreachable):
        breaker.check()
    now[0] = 10.0
    breaker.check()
    with pytest.raises(LmmUnreachable):  # somebody is trying
        breaker.check()
    breaker.succeeded()
    breaker.check()


def test_bad_settings_and_questions_are_refused() -> None:
    with pytest.raises(LmmUnavailable, match=r"lmm\.remote\.url names no server"):
        RemoteExtractor(BACKBONE, RemoteSettings())
    with remote() as (extractor, _), pytest.raises(ValueError, match="two quotes the picture's prompt"):
        extractor.extract(PICTURES[:1], None, QUESTIONS)


def test_features_are_rounded_to_what_the_store_keeps() -> None:
    half = Backbone.model_validate({**BACKBONE.model_dump(), "stored": "float16"})
    with remote(lambda body, number: pooled([1 / 3] * WIDTH)) as (_, served):
        extractor = RemoteExtractor(half, RemoteSettings(url=served.url))
        found = extractor.extract(PICTURES[:1], None, QUESTIONS[:1])
        extractor.close()
    assert np.array_equal(found, np.full((1, 1, WIDTH), np.float16(1 / 3), np.float32))


async def test_each_question_carries_the_trace_of_its_batch() -> None:
    with collecting() as collector:
        tracer = OtlpTracer(TraceSettings(endpoint=f"http://127.0.0.1:{collector.port}"))
        with remote() as (extractor, served), pytest.MonkeyPatch.context() as patched:
            patched.setattr(traces, "tracer", tracer)
            call = tracer.call("call", {}, {})
            item = SimpleNamespace(origin=traces.origin(), queued_at=time.perf_counter())
            with traces.batch("ask", {}, [item]):
                extractor.extract(PICTURES[:1], ["a cat"], QUESTIONS)
            tracer.answered(call, {}, "")
        await tracer.close()
    (batch,) = collector.named("ask batch")
    asked = collector.named("ask remote LMM")
    assert [(span.parent, span.kind) for span in asked] == [(batch.id, 3)] * 2
    sent = {tuple(headers["traceparent"].split("-")[1:3]) for headers in served.headers}
    assert sent == {(batch.trace, span.id) for span in asked}
