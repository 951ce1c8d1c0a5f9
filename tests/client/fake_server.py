"""A small server for the client's tests, on real sockets over both transports, that misbehaves as it is told.

It has no model: a picture's score is the mean of its bytes (or samples) / 255, so the tests can tell pictures apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import uvicorn
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from critiq import errors, types, wire
from critiq.v1 import models_pb2, models_pb2_grpc, scoring_pb2, scoring_pb2_grpc

PROTOBUF = "application/x-protobuf"
MODEL_NAME = "mean"


@dataclass
class Behaviour:
    """What the next calls meet. Tests set it, and read what was seen."""

    refuse: list[errors.CritiqError] = field(default_factory=list)
    """One for each of the next calls (or streams), then none."""
    refuse_items: list[errors.CritiqError] = field(default_factory=list)
    """One for each of the next items of batches and streams."""
    bare_status: int = 0
    """If set, REST answers this status with a page that is no protobuf, as a proxy would."""
    hint_in_headers: bool = False
    """Put the retry hint where proxies put it, instead of into the error."""
    delay: float = 0.0
    break_stream_after: list[int] = field(default_factory=list)
    """Answers after which each of the next streams breaks."""
    state: types.State = "ready"
    calls: list[str] = field(default_factory=list)
    requests: list[Message] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    timeouts: list[float | None] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    items: list[bytes] = field(default_factory=list)
    """The picture of each item that arrived in a stream."""
    under_way: int = 0
    most_under_way: int = 0

    def enter(self, call: str, request: Message | None, timeout: float | None, headers: dict[str, str]) -> None:
        self.calls.append(call)
        if request is not None:
            self.requests.append(request)
        self.times.append(time.monotonic())
        self.timeouts.append(timeout)
        self.headers.append(headers)
        if self.refuse:
            raise self.refuse.pop(0)


def model(state: types.State) -> types.Model:
    quality = types.Dimension(
        name="visual_quality",
        title="Visual quality",
        description="How bright it is.",
        minimum=0.0,
        maximum=1.0,
        direction="higher_is_better",
        scope="absolute",
        needs_prompt=False,
        tolerance=1e-6,
        reference_population="shades of grey",
        reference_count=256,
    )
    alignment = types.Dimension(
        name="alignment",
        title="Prompt match",
        description="How bright it is for the length of its prompt.",
        minimum=None,
        maximum=None,
        direction="higher_is_better",
        scope="within_prompt",
        needs_prompt=True,
        tolerance=1e-6,
    )
    return types.Model(
        name=MODEL_NAME,
        version="1",
        family="fake",
        title="Mean of the bytes",
        description="",
        state=state,
        state_reason="",
        is_default=True,
        dimensions=(quality, alignment),
        stages=(types.StageInfo("mean", "simulated", "", 1, "00", False),),
        licence=types.Licence("Apache-2.0", "none", "none"),
    )


def answer_score(request: scoring_pb2.ScoreRequest, prefix: str = "") -> scoring_pb2.ScoreResponse:
    if request.target.model not in ("", MODEL_NAME):
        raise errors.NotFound(f"no model {request.target.model!r}; known are ['{MODEL_NAME}']", field="target.model")
    source = request.image.WhichOneof("source")
    if source == "encoded" and request.image.encoded.startswith(b"bad"):
        raise errors.InvalidArgument("no picture", field=f"{prefix}image.encoded")
    value = mean_of(request.image)
    shape = request.image.raw.shape if source == "raw" else (1, 1, 3)
    known = {"visual_quality": value}
    if request.prompt:
        known["alignment"] = value / len(request.prompt)
    names = list(request.target.dimensions) or list(known)
    result = types.ScoreResult(
        scores=tuple(score_of(name, known[name]) for name in names),
        image=types.ImageReport("RAW" if source == "raw" else "PNG", width=shape[1], height=shape[0]),
        prompt=types.PromptReport(len(request.prompt.split()), 77, False) if request.prompt else None,
    )
    return wire.result_to_proto(result)


def mean_of(image: scoring_pb2.Image) -> float:
    if image.WhichOneof("source") == "encoded":
        return float(np.frombuffer(image.encoded, np.uint8).mean() / 255)
    if image.raw.dtype == scoring_pb2.RawImage.DTYPE_FLOAT32:
        return float(np.frombuffer(image.raw.data, "<f4").mean())
    return float(np.frombuffer(image.raw.data, np.uint8).mean() / 255)


def score_of(dimension: str, value: float) -> types.Score:
    return types.Score(
        dimension, value, value, 100 * value, "higher_is_better", "absolute", MODEL_NAME, "1", from_store=False
    )


def answer_batch(request: scoring_pb2.ScoreBatchRequest, behaviour: Behaviour) -> scoring_pb2.ScoreBatchResponse:
    return scoring_pb2.ScoreBatchResponse(results=[answer_item(item, behaviour) for item in request.items])


def answer_item(item: scoring_pb2.ScoreItem, behaviour: Behaviour) -> scoring_pb2.ScoreItemResult:
    try:
        if behaviour.refuse_items:
            raise behaviour.refuse_items.pop(0)
        return scoring_pb2.ScoreItemResult(id=item.id, response=answer_score(item.request))
    except errors.CritiqError as error:
        return scoring_pb2.ScoreItemResult(id=item.id, error=wire.error_to_proto(error))


def answer_rank(request: scoring_pb2.RankRequest) -> scoring_pb2.RankResponse:
    values = [mean_of(image) for image in request.images]
    order = sorted(range(len(values)), key=lambda index: -values[index])
    ranking = tuple(
        types.RankedImage(index, rank, score=score_of("visual_quality", values[index]))
        for rank, index in enumerate(order[: request.top_k or None], start=1)
    )
    return wire.rank_to_proto(types.RankResult("visual_quality", ranking))


def answer_compare(request: scoring_pb2.CompareRequest) -> scoring_pb2.CompareResponse:
    first, second = mean_of(request.first), mean_of(request.second)
    preference: types.Preference = "tie" if first == second else "first" if first > second else "second"
    comparison = types.DimensionComparison(
        "visual_quality", preference, score_of("visual_quality", first), score_of("visual_quality", second)
    )
    report = types.ImageReport("PNG", 1, 1)
    return wire.compare_to_proto(types.CompareResult((comparison,), report, report))


def answer_model(name: str, state: types.State) -> models_pb2.Model:
    if name not in ("", MODEL_NAME):
        raise errors.NotFound(f"no model {name!r}; known are ['{MODEL_NAME}']", field="name")
    return wire.model_to_proto(model(state))


async def answer(call: str, request: Any, behaviour: Behaviour) -> Message:
    if behaviour.delay:
        await asyncio.sleep(behaviour.delay)
    if call == "Scoring/Score":
        return answer_score(request)
    if call == "Scoring/ScoreBatch":
        return answer_batch(request, behaviour)
    if call == "Scoring/Rank":
        return answer_rank(request)
    if call == "Scoring/Compare":
        return answer_compare(request)
    if call == "Models/List":
        return models_pb2.ListModelsResponse(models=[wire.model_to_proto(model(behaviour.state))])
    if call == "Models/Unload":
        answer_model(request.name, behaviour.state)
        behaviour.state = "available"
        return models_pb2.UnloadModelResponse()
    if call == "Models/Load":
        behaviour.state = "ready"
    return answer_model(request.name, behaviour.state)


class _Grpc(scoring_pb2_grpc.ScoringServicer, models_pb2_grpc.ModelsServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        for call in ("Score", "ScoreBatch", "Rank", "Compare"):
            setattr(self, call, self._unary(f"Scoring/{call}"))
        for call in ("List", "Get", "Load", "Unload"):
            setattr(self, call, self._unary(f"Models/{call}"))

    def _unary(self, call: str) -> Any:
        async def handle(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            behaviour = self._behaviour
            try:
                behaviour.enter(call, request, context.time_remaining(), _text(context.invocation_metadata()))
                return await answer(call, request, behaviour)
            except errors.CritiqError as error:
                await self._abort(context, error)
                raise

        return handle

    async def ScoreStream(  # noqa: N802
        self, items: AsyncIterator[scoring_pb2.ScoreItem], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[scoring_pb2.ScoreItemResult]:
        behaviour = self._behaviour
        try:
            behaviour.enter("Scoring/ScoreStream", None, context.time_remaining(), _text(context.invocation_metadata()))
        except errors.CritiqError as error:
            await self._abort(context, error)
        breaks_after = behaviour.break_stream_after.pop(0) if behaviour.break_stream_after else None
        answered = 0
        async for item in items:
            behaviour.items.append(item.request.image.encoded)
            if answered == breaks_after:
                await self._abort(context, errors.Unavailable("broken on purpose"))
            if behaviour.delay:
                await asyncio.sleep(behaviour.delay)
            yield answer_item(item, behaviour)
            answered += 1

    async def _abort(self, context: grpc.aio.ServicerContext[Any, Any], error: errors.CritiqError) -> None:
        if self._behaviour.hint_in_headers:
            hint = str(round((error.retry_after or 0) * 1000))
            await context.abort(error.grpc_status, error.message, (("grpc-retry-pushback-ms", hint),))
        sent = wire.error_to_proto(error).SerializeToString()
        await context.abort(error.grpc_status, error.message, (("critiq-error-bin", sent),))


def _text(metadata: Any) -> dict[str, str]:
    return {key: value for key, value in metadata or () if isinstance(value, str)}


def rest_app(behaviour: Behaviour) -> Starlette:
    def route(path: str, method: str, call: str, kind: type[Any]) -> Route:
        async def handle(request: Request) -> Response:
            return await _rest(request, call, kind, behaviour)

        return Route(path, handle, methods=[method])

    return Starlette(
        routes=[
            route("/v1/score", "POST", "Scoring/Score", scoring_pb2.ScoreRequest),
            route("/v1/score/batch", "POST", "Scoring/ScoreBatch", scoring_pb2.ScoreBatchRequest),
            route("/v1/rank", "POST", "Scoring/Rank", scoring_pb2.RankRequest),
            route("/v1/compare", "POST", "Scoring/Compare", scoring_pb2.CompareRequest),
            route("/v1/models", "GET", "Models/List", models_pb2.ListModelsRequest),
            route("/v1/models/{name}", "GET", "Models/Get", models_pb2.GetModelRequest),
            route("/v1/models/{name}/load", "POST", "Models/Load", models_pb2.LoadModelRequest),
            route("/v1/models/{name}/unload", "POST", "Models/Unload", models_pb2.UnloadModelRequest),
        ]
    )


async def _rest(request: Request, call: str, kind: type[Any], behaviour: Behaviour) -> Response:
    if behaviour.bare_status:
        return Response("<html>sorry</html>", behaviour.bare_status, {"content-type": "text/html", "retry-after": "1"})
    behaviour.under_way += 1
    behaviour.most_under_way = max(behaviour.most_under_way, behaviour.under_way)
    try:
        if call.startswith("Scoring/"):
            assert request.headers["content-type"] == PROTOBUF
            message = kind.FromString(await request.body())
        else:
            named = {"name": request.path_params.get("name"), "version": request.query_params.get("version")}
            message = kind(**{key: value for key, value in named.items() if value is not None})
        assert request.headers["accept"] == PROTOBUF
        milliseconds = request.headers.get("critiq-timeout-ms")
        timeout = int(milliseconds) / 1000 if milliseconds else None
        behaviour.enter(call, message, timeout, dict(request.headers))
        return Response((await answer(call, message, behaviour)).SerializeToString(), media_type=PROTOBUF)
    except errors.CritiqError as error:
        sent = wire.error_to_proto(error)
        headers = {}
        if behaviour.hint_in_headers and error.retry_after is not None:
            sent.ClearField("retry_after_ms")
            headers["retry-after"] = str(round(error.retry_after))
        return Response(sent.SerializeToString(), error.http_status, headers, media_type=PROTOBUF)
    finally:
        behaviour.under_way -= 1


@dataclass
class FakeServer:
    behaviour: Behaviour
    grpc_url: str
    http_url: str

    def url(self, transport: str) -> str:
        return self.grpc_url if transport == "grpc" else self.http_url


@contextlib.contextmanager
def running(
    behaviour: Behaviour, grpc_port: int = 0, certificate: tuple[Path, Path] | None = None
) -> Iterator[FakeServer]:
    """Serves both transports on free ports, from a thread with its own event loop. ``certificate``: (key, chain)."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def on_loop(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    grpc_server, grpc_url = on_loop(_start_grpc(behaviour, grpc_port, certificate))
    rest, rest_task, http_url = on_loop(_start_rest(behaviour, certificate))
    try:
        yield FakeServer(behaviour, grpc_url, http_url)
    finally:
        on_loop(_stop(grpc_server, rest, rest_task))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


async def _start_grpc(
    behaviour: Behaviour, port: int, certificate: tuple[Path, Path] | None
) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
    servicer = _Grpc(behaviour)
    scoring_pb2_grpc.add_ScoringServicer_to_server(servicer, server)
    models_pb2_grpc.add_ModelsServicer_to_server(servicer, server)
    if certificate is None:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        key, chain = (path.read_bytes() for path in certificate)
        bound = server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(key, chain)]))
    await server.start()
    return server, f"127.0.0.1:{bound}" if certificate is None else f"grpcs://127.0.0.1:{bound}"


async def _start_rest(
    behaviour: Behaviour, certificate: tuple[Path, Path] | None
) -> tuple[uvicorn.Server, asyncio.Task[None], str]:
    key, chain = certificate or (None, None)
    config = uvicorn.Config(
        rest_app(behaviour),
        host="127.0.0.1",
        port=0,
        log_level="warning",
        timeout_graceful_shutdown=1,
        ssl_keyfile=key,
        ssl_certfile=chain,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    return server, task, f"{'http' if certificate is None else 'https'}://127.0.0.1:{port}"


async def _stop(grpc_server: grpc.aio.Server, rest: uvicorn.Server, task: asyncio.Task[None]) -> None:
    await grpc_server.stop(0)
    rest.should_exit = True
    await task
