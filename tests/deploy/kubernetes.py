"""What Kubernetes and its extensions would say to an object, offline."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

OLDEST = "1.30"
"""What Chart.yaml asks for."""

Object = dict[str, Any]


def read(text: str) -> list[Object]:
    """The objects of a file of YAML documents."""
    return [document for document in yaml.safe_load_all(text) if document]


def validate(document: Object, version: str = kubernetes_validate.latest_version()) -> None:
    """Strictly, by Kubernetes' schemas of ``version``; what extensions define, by ``crds.yaml``.

    Raises:
        AssertionError: the object is refused; the message says where.
    """
    name = f"{document['apiVersion']}/{document['kind']}"
    try:
        if name in _extensions():
            jsonschema.validate(document, _extensions()["definitions"]["object"])
            jsonschema.validate(document["spec"], _extensions()[name])
        else:
            kubernetes_validate.validate(document, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        where = "/".join(map(str, getattr(error, "path", ())))
        raise AssertionError(f"{name} {document['metadata']['name']} at {where}: {error.message}") from error


def pod_specs(documents: list[Object]) -> Iterator[Object]:
    """The pod of every object that makes or is one."""
    for document in documents:
        if document["kind"] == "Pod":
            yield document["spec"]
        elif document["kind"] in ("Deployment", "StatefulSet"):
            yield document["spec"]["template"]["spec"]


def as_pod(spec: Object) -> Object:
    """A pod around a specification that stands elsewhere, to be validated."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}


@cache
def _extensions() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "crds.yaml").read_text())
    return found
