"""What the OpenAPI document says about bodies other than JSON: forms, messages, and picture files with a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

PROTOBUF = "application/x-protobuf"

_TEXT: Schema = {"type": "string"}
_FILE: Schema = {"type": "string", "format": "binary"}
_FILES: Schema = {"type": "array", "items": _FILE}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_PRIORITY: Schema = {"type": "string", "enum": ["interactive", "bulk"]}
_TARGET: Mapping[str, Schema] = {
    "model": _TEXT,
    "version": _TEXT,
    "dimensions": {"type": "string", "description": "Names, with commas between them."},
    "priority": _PRIORITY,
}
_POLICY: Mapping[str, Schema] = {"policy": _TEXT, "policy_version": _TEXT, "priority": _PRIORITY}
_ONE: Mapping[str, Schema] = {"image": _FILE, "url": _TEXT, "prompt": _TEXT}
_MANY: Mapping[str, Schema] = {"image": _FILES, "url": _TEXTS}
_RANKING: Mapping[str, Schema] = {
    "prompt": _TEXT,
    "top_k": {"type": "integer", "minimum": 0},
    "at_least": {"type": "array", "items": {"type": "string", "description": "DIMENSION:SCALE=NUMBER"}},
    "diversity": {"type": "number", "minimum": 0, "maximum": 1},
    "embedding": _TEXT,
}
_PICTURES: Mapping[str, Schema] = {"first": _FILE, "second": _FILE, "first_url": _TEXT, "second_url": _TEXT}

MESSAGE: Schema = {PROTOBUF: {"schema": {**_FILE, "description": "A message, where one was asked for."}}}
"""Content of answers and errors beside JSON."""

FORMS: Mapping[str, Mapping[str, Schema]] = {
    "ScoreJson": {**_ONE, **_TARGET},
    "ModerateJson": {**_ONE, **_POLICY},
    "BatchJson": {**_MANY, "prompt": {**_TEXTS, "description": "One for all pictures, one each, or none."}, **_TARGET},
    "RankJson": {**_MANY, **_RANKING, **_TARGET},
    "CompareJson": {**_PICTURES, "prompt": _TEXT, **_TARGET},
}
"""The fields of a multipart form, by the name of the JSON body that says the same."""

_MESSAGES = {
    "ScoreJson": "ScoreRequest",
    "ModerateJson": "ModerateRequest",
    "BatchJson": "ScoreBatchRequest",
    "RankJson": "RankRequest",
    "CompareJson": "CompareRequest",
}


def other_bodies(name: str, *, files: bool) -> Schema:
    """The content of a request body beside JSON; ``name`` is that of the JSON body."""
    if name not in FORMS:
        return {}
    content: Schema = {
        "multipart/form-data": {"schema": {"type": "object", "properties": dict(FORMS[name])}},
        PROTOBUF: {"schema": {**_FILE, "description": f"A message critiq.v1.{_MESSAGES[name]}."}},
    }
    if files:
        content["image/*"] = {"schema": {**_FILE, "description": "The picture's file; the rest stands in the query."}}
    return content


def query_of(name: str) -> list[Schema]:
    """The parameters that stand in the URL's query beside a picture file."""
    where = {"in": "query", "required": False, "description": "Only beside a picture file."}
    return [
        {"name": field, **where, "schema": schema}
        for field, schema in FORMS[name].items()
        if field not in ("image", "url")
    ]
