"""REST bodies, in any of the accepted forms, to the service's values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from critiq.errors import InvalidArgument
from critiq.types import Threshold
from critiq.v1 import scoring_pb2
from critiq_server.api import schemas, translate
from critiq_server.engine.demand import Priority
from critiq_server.images.source import EncodedImage, ImageSource, RemoteImage
from critiq_server.queries import Item, Query, Target
from critiq_server.scoring.ranking import Selection
from critiq_server.wording import quoted

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
MULTIPART = "multipart/form-data"
FILES = ("application/octet-stream", "image/")

B = TypeVar("B", bound=BaseModel)


def content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def score_query(request: Request) -> Query:
    """JSON, multipart, protobuf, or the file itself with the rest in the URL's query."""
    kind = content_type(request)
    if kind.startswith(FILES):
        fields = _query_fields(request, _KNOWN)
        return Query(EncodedImage(await request.body()), fields.get("prompt", ""), _target(fields), _priority(fields))
    _check_no_query(request)
    if kind == PROTOBUF:
        return translate.query(translate.parse(scoring_pb2.ScoreRequest, await request.body()))
    if kind == JSON:
        return (await _json(request, schemas.ScoreJson)).query()
    form = await _form(request, kind)
    image = await _picture(form)
    fields = _fields(form)
    return Query(image, fields.get("prompt", ""), _target(fields), _priority(fields))


async def moderate_query(request: Request) -> tuple[Query, str, str]:
    """As :func:`score_query`, with the policy's name and version in place of the target; empty: the default."""
    kind = content_type(request)
    known = {"prompt", "policy", "policy_version", "priority"}
    if kind.startswith(FILES):
        fields = _query_fields(request, known)
        query = Query(EncodedImage(await request.body()), fields.get("prompt", ""), priority=_priority(fields))
        return query, fields.get("policy", ""), fields.get("policy_version", "")
    _check_no_query(request)
    if kind == PROTOBUF:
        return translate.moderate_query(translate.parse(scoring_pb2.ModerateRequest, await request.body()))
    if kind == JSON:
        body = await _json(request, schemas.ModerateJson)
        return body.query(), body.policy, body.policy_version
    form = await _form(request, kind)
    fields = _fields(form, known | {"url"})
    query = Query(await _picture(form), fields.get("prompt", ""), priority=_priority(fields))
    return query, fields.get("policy", ""), fields.get("policy_version", "")


async def batch_items(request: Request) -> list[Item]:
    kind = content_type(request)
    _check_no_query(request)
    if kind == PROTOBUF:
        message = translate.parse(scoring_pb2.ScoreBatchRequest, await request.body())
        return [translate.item(entry, str(position)) for position, entry in enumerate(message.items)]
    if kind == JSON:
        body = await _json(request, schemas.BatchJson)
        return [entry.item(position) for position, entry in enumerate(body.items)]
    form = await _form(request, kind)
    images = await _pictures(form, "image", "url")
    prompts = [str(value) for value in form.getlist("prompt")]
    if len(prompts) == 1:
        prompts *= len(images)
    if prompts and len(prompts) != len(images):
        raise InvalidArgument(
            f"the form has {len(images)} pictures and {len(prompts)} prompts; send one for all, one each, or none",
            field="prompt",
        )
    fields = _fields(form)
    queries = zip(images, prompts or [""] * len(images), strict=True)
    return [
        Item(str(position), Query(image, prompt, _target(fields), _priority(fields)))
        for position, (image, prompt) in enumerate(queries)
    ]


async def rank_arguments(request: Request) -> dict[str, Any]:
    """Keyword arguments of ``Service.rank``."""
    kind = content_type(request)
    _check_no_query(request)
    if kind == PROTOBUF:
        message = translate.parse(scoring_pb2.RankRequest, await request.body())
        return {
            "images": [translate.image_or_error(image) for image in message.images],
            "prompt": message.prompt,
            "target": translate.target(message.target),
            "priority": translate.priority(message.priority),
            "selection": translate.selection(message),
        }
    if kind == JSON:
        body = await _json(request, schemas.RankJson)
        images: list[Any] = []
        for image in body.images:
            try:
                images.append(image.source())
            except InvalidArgument as error:
                images.append(error)
        return {
            "images": images,
            "prompt": body.prompt,
            "target": body.target(),
            "priority": body.level(),
            "selection": body.selection(),
        }
    form = await _form(request, kind)
    fields = _fields(form, _KNOWN | {"url", "top_k", "at_least", "diversity", "embedding"})
    at_least = [entry for entry in fields.get("at_least", "").split(",") if entry.strip()]
    return {
        "images": await _pictures(form, "image", "url"),
        "prompt": fields.get("prompt", ""),
        "target": _target(fields),
        "priority": _priority(fields),
        "selection": Selection(
            whole_number(fields.get("top_k", "0"), "top_k"),
            tuple(Threshold.parse(entry) for entry in at_least),
            _fraction(fields.get("diversity", "0"), "diversity"),
            fields.get("embedding", ""),
        ),
    }


async def compare_pair(request: Request) -> tuple[Query, Query]:
    kind = content_type(request)
    _check_no_query(request)
    if kind == PROTOBUF:
        return translate.pair(translate.parse(scoring_pb2.CompareRequest, await request.body()))
    if kind == JSON:
        body = await _json(request, schemas.CompareJson)
        sources = [body.first.source(), body.second.source()]
        first, second = (Query(source, body.prompt, body.target(), body.level()) for source in sources)
        return first, second
    form = await _form(request, kind)
    fields = _fields(form)
    pictures = []
    for name in ("first", "second"):
        files = await _pictures(form, name, f"{name}_url")
        if len(files) != 1:
            raise InvalidArgument(
                f"the form has {len(files)} pictures called {name!r} or '{name}_url', one is needed", field=name
            )
        pictures.append(Query(files[0], fields.get("prompt", ""), _target(fields), _priority(fields)))
    return pictures[0], pictures[1]


def timeout(request: Request) -> float | None:
    """Seconds from the header ``Critiq-Timeout-Ms``; ``None`` without it. Raises ``InvalidArgument``."""
    text = request.headers.get("critiq-timeout-ms")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise InvalidArgument(f"{text[:40]!r} is not a whole number of milliseconds above 0", field="Critiq-Timeout-Ms")
    return int(text) / 1000


async def _json(request: Request, kind: type[B]) -> B:
    return from_json(kind, await request.body())


def from_json(kind: type[B], data: bytes) -> B:
    """The value in ``data``; raises ``InvalidArgument`` that names the field that does not fit."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        field = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part) for part in problem["loc"]))
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InvalidArgument(f"{problem['msg']}{more}", field=field[:200]) from error


async def _form(request: Request, kind: str) -> FormData:
    if kind != MULTIPART:
        accepted = f"{JSON}, {MULTIPART}, {PROTOBUF}, or a single picture's own type (/v1/score)"
        raise InvalidArgument(
            f"cannot read a body of type {quoted(kind or '(none)')}; accepted: {accepted}", field="Content-Type"
        )
    # Starlette takes text that is not UTF-8 for Latin-1, in silence. Latin-1 keeps the bytes, so they are judged below.
    headers = Headers({"content-type": request.headers["content-type"] + "; charset=latin-1"})
    # The body's size is limited already, and the prompt's has a limit of its own with a clearer message.
    parser = MultiPartParser(headers, request.stream(), max_files=10_000, max_fields=10_000, max_part_size=2**40)
    parser.spool_max_size = 2**40  # pictures are in memory in a moment anyway, and are not to be found on disks
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidArgument(f"the form cannot be read: {error.message}", field="body") from error
    return FormData(
        [(name, _utf8(value, name) if isinstance(value, str) else value) for name, value in form.multi_items()]
    )


def _utf8(text: str, field: str) -> str:
    try:
        return text.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"the form's {field[:60]!r} is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})",
            field=field[:60],
        ) from error


async def _picture(form: FormData) -> ImageSource | RemoteImage:
    images = await _pictures(form, "image", "url")
    if len(images) != 1:
        raise InvalidArgument(
            f"the form has {len(images)} files called 'image' or texts called 'url', one is due; see /v1/score/batch",
            field="image",
        )
    return images[0]


async def _pictures(form: FormData, name: str, url_name: str) -> list[ImageSource | RemoteImage]:
    """The files called ``name`` and the URLs called ``url_name``, in the order of the form."""
    pictures: list[ImageSource | RemoteImage] = []
    for part, value in form.multi_items():
        if part not in (name, url_name):
            continue
        if isinstance(value, str) == (part == name):
            raise InvalidArgument(f"the form's {part!r} must be a {'file' if part == name else 'text'}", field=part)
        pictures.append(EncodedImage(await value.read()) if isinstance(value, UploadFile) else RemoteImage(value))
    return pictures


def _query_fields(request: Request, known: Set[str]) -> dict[str, str]:
    """What stands in the URL beside a picture file."""
    try:
        text = request.scope["query_string"].decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=1000)
    except ValueError as error:
        raise InvalidArgument(
            f"the URL's query is not percent-encoded UTF-8 text: {error}", field="URL query"
        ) from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        fields[name] = f"{fields[name]},{value}" if name in fields else value
    _check_fields(fields, "the URL's query", known)
    return fields


def _check_no_query(request: Request) -> None:
    """A prompt in the URL of a body that has fields of its own would be ignored: better to say so."""
    if request.url.query:
        raise InvalidArgument(
            "put the fields into the body; the URL's query is read only beside a picture file", field="URL query"
        )


def _fields(form: FormData, known: Set[str] | None = None) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name in form:
        values = [value for value in form.getlist(name) if isinstance(value, str)]
        if values:
            fields[name] = ",".join(values)
    _check_fields(fields, "the form", _KNOWN | _URLS if known is None else known)
    return fields


_KNOWN = {"prompt", "model", "version", "dimensions", "priority"}
_URLS = {"url", "first_url", "second_url"}


def _check_fields(fields: Mapping[str, str], where: str, known: Set[str]) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise InvalidArgument(f"{where} has the unknown field {unknown[0][:60]!r}; known: {', '.join(sorted(known))}")


def _target(fields: Mapping[str, str]) -> Target:
    dimensions = tuple(name.strip() for name in fields.get("dimensions", "").split(",") if name.strip())
    return Target(fields.get("model", ""), fields.get("version", ""), dimensions)


def _priority(fields: Mapping[str, str]) -> Priority:
    text = fields.get("priority", "interactive")
    if text not in ("interactive", "bulk"):
        raise InvalidArgument(f"{text[:40]!r} is no priority; use interactive or bulk", field="priority")
    return Priority[text.upper()]


def _fraction(text: str, field: str) -> float:
    if not re.fullmatch(r"[0-9]{0,3}(\.[0-9]{0,20})?", text) or not text.strip("."):
        raise InvalidArgument(f"{text[:40]!r} is no number of 0 to 1", field=field)
    return float(text)


def whole_number(text: str, field: str) -> int:
    """The number of at most nine digits that ``text`` is; raises ``InvalidArgument``."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidArgument(f"{text[:40]!r} is not a whole number", field=field)
    return int(text)
