"""Bodies of the protocol's REST form, written out by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

LENGTH = "Inference-Header-Content-Length"


def packed(*elements: bytes) -> bytes:
    """Elements of a BYTES tensor in binary form."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def binary(name: str, data: bytes, shape: Sequence[int], datatype: str = "BYTES", **changes: Any) -> dict[str, Any]:
    entry = {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": len(data)}}
    return entry | changes


def body(inputs: Sequence[dict[str, Any]], *blobs: bytes, **fields: Any) -> dict[str, Any]:
    """Keyword arguments of a POST: the JSON and behind it the binary data."""
    head = json.dumps({"inputs": list(inputs), **fields}).encode()
    return {"content": head + b"".join(blobs), "headers": {LENGTH: str(len(head))}}


def pictures(*files: bytes, prompts: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
    """A whole request in binary form."""
    blobs = [packed(*files)]
    inputs = [binary("image", blobs[0], [len(files)])]
    if prompts:
        blobs.append(packed(*(prompt.encode() for prompt in prompts)))
        inputs.append(binary("prompt", blobs[1], [len(prompts)]))
    return body(inputs, *blobs, **fields)
