"""The REST face. It translates; it decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from google.protobuf.message import Message
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from critiq import types, wire
from critiq.errors import BY_HTTP_STATUS, Cancelled, CritiqError, InvalidArgument
from critiq.v1 import models_pb2, scoring_pb2
from critiq_server.api import bodies, openai_moderations, page, schemas
from critiq_server.api.admin import add_admin
from critiq_server.api.aliases import RoutingKeyed, SetAliasJson, add_aliases, refuse_other_sites
from critiq_server.api.answers import REFERENCE, answer, dumps, operation, refusal
from critiq_server.api.compat import faces
from critiq_server.api.disconnects import unless_gone
from critiq_server.api.drift import Labelled, add_drift
from critiq_server.api.jobs import SubmitJson, add_jobs
from critiq_server.api.live import add_live
from critiq_server.api.moderation import add_moderation
from critiq_server.api.oip import rest as inference
from critiq_server.api.receiving import BodyLimit
from critiq_server.jobs.operations import Jobs
from critiq_server.models import Models
from critiq_server.moderation import Moderation
from critiq_server.queries import Item
from critiq_server.service import Service
from critiq_server.telemetry.faults import internal
from critiq_server.telemetry.profiling import EventLoopProfiler

DESCRIPTION = """Scores AI-generated images. Bodies are JSON, multipart forms, protobuf messages of the gRPC contract
(`application/x-protobuf`), or for `/v1/score` the picture file itself with the rest in the query. The header
`Critiq-Timeout-Ms` sets a deadline; `x-critiq-routing-key` keeps a caller with one version behind an alias. Errors are
`{"error": {code, message, field, retry_after_ms}}`."""


def rest_app(
    service: Service,
    is_ready: Callable[[], bool],
    moderation: Moderation,
    jobs: Jobs,
    profiler: EventLoopProfiler | None = None,
) -> FastAPI:
    """The ASGI application; without a ``profiler`` nobody may profile the server."""
    app = FastAPI(title="critiq", version="1", description=DESCRIPTION, redoc_url=None)
    app.add_middleware(BodyLimit, limits=service.settings.limits)
    app.add_middleware(RoutingKeyed)
    if service.drift.labels.allowed:
        app.add_middleware(Labelled, labels=service.drift.labels)
    _add_scoring(app, service)
    add_moderation(app, moderation)
    add_jobs(app, jobs)
    _add_models(app, service.models)
    add_aliases(app, service.routing)
    add_drift(app, service)
    add_admin(app, profiler)
    _add_health(app, is_ready)
    _add_errors(app)
    _describe_bodies(app)
    app.router.routes += faces.mounted(service)
    app.router.routes += openai_moderations.routes(moderation)
    app.router.routes += inference.routes(service, is_ready)
    if service.settings.page.enabled:
        add_live(app, service)
        app.router.routes += page.routes()
    return app


def _add_scoring(app: FastAPI, service: Service) -> None:
    @app.post("/v1/score", **operation(schemas.ScoreJson, types.ScoreResult, "Score one picture", files=True))
    async def score(request: Request) -> Response:
        query = await bodies.score_query(request)
        result = await unless_gone(request, service.score(query, bodies.timeout(request)))
        return answer(request, result, wire.result_to_proto)

    # The same without FastAPI's layers, which take a third of what a request costs; theirs stays for the documents.
    app.router.routes.insert(0, Route("/v1/score", score, methods=["POST"]))

    @app.post("/v1/score/batch", **operation(schemas.BatchJson, schemas.BatchResultJson, "Score many pictures"))
    async def score_batch(request: Request) -> Response:
        items = await bodies.batch_items(request)
        results = await unless_gone(request, service.score_batch(items, bodies.timeout(request)))

        def to_proto(answer: dict[str, list[types.ItemResult]]) -> Message:
            return scoring_pb2.ScoreBatchResponse(results=[wire.item_to_proto(entry) for entry in answer["results"]])

        return answer(request, {"results": results}, to_proto)

    lines = operation(schemas.BatchJson, None, "Score many, one JSON line each as soon as it is ready")
    lines["responses"][200]["content"] = {"application/x-ndjson": {"schema": {"$ref": _ref(schemas.ItemResultJson)}}}

    @app.post("/v1/score/stream", response_class=StreamingResponse, **lines)
    async def score_stream(request: Request) -> Response:
        items = await bodies.batch_items(request)
        answers = service.score_stream(_feed(items), bodies.timeout(request))
        return StreamingResponse(_lines(answers), media_type="application/x-ndjson")

    @app.post("/v1/rank", **operation(schemas.RankJson, schemas.RankResultJson, "Order pictures of one prompt"))
    async def rank(request: Request) -> Response:
        arguments = await bodies.rank_arguments(request)
        result = await unless_gone(request, service.rank(**arguments, timeout=bodies.timeout(request)))
        return answer(request, result, wire.rank_to_proto)

    @app.post("/v1/compare", **operation(schemas.CompareJson, types.CompareResult, "Compare two pictures"))
    async def compare(request: Request) -> Response:
        first, second = await bodies.compare_pair(request)
        result = await unless_gone(request, service.compare(first, second, bodies.timeout(request)))
        return answer(request, result, wire.compare_to_proto)

    @app.post(
        "/v1/prefetch",
        **operation(schemas.BatchJson, schemas.PrefetchResultJson, "Compute ahead what scoring will need"),
    )
    async def prefetch(request: Request) -> Response:
        return answer(request, service.prefetch(await bodies.batch_items(request)), wire.prefetch_to_proto)


def _add_models(app: FastAPI, models: Models) -> None:
    @app.get("/v1/models", **operation(None, schemas.ModelsJson, "Known models"))
    async def list_models(request: Request) -> Response:
        def to_proto(answer: dict[str, list[types.Model]]) -> Message:
            return models_pb2.ListModelsResponse(models=[wire.model_to_proto(model) for model in answer["models"]])

        return answer(request, {"models": models.list()}, to_proto)

    @app.get("/v1/models/{name}", **operation(None, types.Model, "One model"))
    async def get_model(request: Request, name: str, version: str = "") -> Response:
        return answer(request, models.get(name, version), wire.model_to_proto)

    @app.post("/v1/models/{name}/load", **operation(None, types.Model, "Load a model"))
    async def load_model(request: Request, name: str, version: str = "") -> Response:
        refuse_other_sites(request)
        return answer(request, await models.load(name, version), wire.model_to_proto)

    @app.post("/v1/models/{name}/unload", **operation(None, None, "Stop serving a model"))
    async def unload_model(request: Request, name: str, version: str = "") -> Response:
        refuse_other_sites(request)
        await models.unload(name, version)
        return answer(request, {}, lambda _: models_pb2.UnloadModelResponse())


def _add_health(app: FastAPI, is_ready: Callable[[], bool]) -> None:
    @app.get("/healthz", summary="Is the process alive?", tags=["health"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Does it serve the default model?", tags=["health"])
    async def readyz(response: Response) -> dict[str, str]:
        ready = is_ready()
        response.status_code = 200 if ready else 503
        return {"status": "ready" if ready else "not ready"}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(CritiqError)
    async def known(request: Request, error: CritiqError) -> Response:
        return refusal(request, error)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return refusal(request, Cancelled("the caller disconnected"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        kind = BY_HTTP_STATUS.get(error.status_code, InvalidArgument)
        response = refusal(request, kind(f"{error.detail} ({request.method} {request.url.path[:200]}; see /docs)"))
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return refusal(request, internal(request.url.path, error))


def _describe_bodies(app: FastAPI) -> None:
    """Adds the request bodies to the OpenAPI document: FastAPI knows only those that it reads itself."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        kinds = (schemas.ScoreJson, schemas.BatchJson, schemas.RankJson, schemas.CompareJson, schemas.ModerateJson)
        _, found = models_json_schema(
            [(kind, "validation") for kind in (*kinds, SubmitJson, SetAliasJson)], ref_template=REFERENCE
        )
        document["components"]["schemas"].update(found["$defs"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _ref(kind: type[Any]) -> str:
    return REFERENCE.format(model=kind.__name__)


async def _feed(items: list[Item]) -> AsyncIterator[Item]:
    for item in items:
        yield item


async def _lines(answers: AsyncIterator[types.ItemResult]) -> AsyncIterator[bytes]:
    try:
        async for answer in answers:
            yield dumps(answer) + b"\n"
    except CritiqError as error:
        yield dumps({"id": "", "result": None, "error": error}) + b"\n"
