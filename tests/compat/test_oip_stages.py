"""Outputs of single stages that are no plain columns of floats."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import pytest_asyncio
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException

from critiq_server.app import App
from critiq_server.bundles.manifest import Manifest
from tests.compat.oip_clients import call, files, prompts, wanted
from tests.support.bundles import edit_manifest, write_bundle
from tests.support.requests import flat
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


def write_with_counts(root: Path) -> None:
    """The bundle ``tiny``, whose text encoder gives the mask itself and whole numbers."""
    directory = write_bundle(root)
    nodes = [
        helper.make_node("ReduceSum", ["mask", "axes"], ["count"], keepdims=0),
        helper.make_node("Cast", ["mask"], ["halves"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["mask"], ["flags"], to=TensorProto.BOOL),
    ]
    inputs = [helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "length"])]
    outputs = [
        helper.make_tensor_value_info("count", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("halves", TensorProto.FLOAT16, ["batch", "length"]),
        helper.make_tensor_value_info("flags", TensorProto.BOOL, ["batch", "length"]),
    ]
    axes = [numpy_helper.from_array(np.array([1], np.int64), "axes")]
    graph = helper.make_graph(nodes, "text", inputs, outputs, axes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(directory / "text.onnx"))
    (directory / "golden.npz").unlink()
    manifest = Manifest.model_validate_json((directory / "manifest.json").read_text())
    stages = [stage.model_dump() for stage in manifest.stages]
    stages[1]["outputs"] = ["count", "halves", "flags"]
    digests = {name: digest for name, digest in manifest.files.items() if name != "golden.npz"}
    digests["text.onnx"] = hashlib.sha256((directory / "text.onnx").read_bytes()).hexdigest()
    edit_manifest(directory, stages=stages, files=digests)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    root = tmp_path_factory.mktemp("bundles")
    write_with_counts(root)
    async with running(make_settings(root)) as app:
        yield app


async def test_datatypes_and_shapes_are_the_graphs(app: App) -> None:
    metadata = await call(app, "http", "get_model_metadata", "tiny/text_encoder")
    assert [(entry["name"], entry["datatype"], entry["shape"]) for entry in metadata["outputs"]] == [
        ("count", "INT64", [-1]),
        ("halves", "FP16", [-1, -1]),
        ("flags", "BOOL", [-1, -1]),
    ]
    for kind in ("http", "grpc"):
        result = await call(app, kind, "infer", "tiny/text_encoder", [prompts(kind, "a dog", "a")])
        assert result.as_numpy("count").tolist() == [4, 3]
        assert result.as_numpy("count").dtype == np.int64


async def test_items_of_different_shapes_make_no_tensor(app: App) -> None:
    texts = prompts("grpc", "a dog", "a", "a red cat a red dog")
    with pytest.raises(InferenceServerException, match=r"'halves' has the shape \[4\] for item 0 and \[8\] for item 2"):
        await call(app, "grpc", "infer", "tiny/text_encoder", [texts], outputs=wanted("grpc", "halves"))
    result = await call(app, "grpc", "infer", "tiny/text_encoder", [texts], outputs=wanted("grpc", "count"))
    assert result.as_numpy("count").tolist() == [4, 3, 8]
    result = await call(app, "grpc", "infer", "tiny/text_encoder", [prompts("grpc", "a dog", "a")])
    assert result.as_numpy("halves").tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert result.as_numpy("flags").tolist() == [[True] * 4, [True, True, True, False]]


async def test_nan_needs_floats(app: App) -> None:
    texts = files("grpc", b"a dog", b"caf\xe9", name="prompt")
    fill = {"on_error": "nan"}
    for name, what in (("count", "int64"), ("flags", "bool")):
        outputs = wanted("grpc", name)
        with pytest.raises(InferenceServerException, match=f"'{name}' holds {what}, which has no NaN"):
            await call(app, "grpc", "infer", "tiny/text_encoder", [texts], outputs=outputs, parameters=fill)
    outputs = wanted("grpc", "halves")
    result = await call(app, "grpc", "infer", "tiny/text_encoder", [texts], outputs=outputs, parameters=fill)
    np.testing.assert_array_equal(result.as_numpy("halves"), np.float16([[1] * 4, [np.nan] * 4]))


async def test_if_all_items_failed_there_is_no_shape_to_fill(app: App) -> None:
    outputs = wanted("grpc", "brightness")
    with pytest.raises(InferenceServerException, match=r"image\[0\]"):
        await call(
            app,
            "grpc",
            "infer",
            "tiny/image_encoder",
            [files("grpc", b"broken", b"")],
            outputs=outputs,
            parameters={"on_error": "nan"},
        )
    one = await call(app, "grpc", "infer", "tiny/image_encoder", [files("grpc", flat(51))], outputs=outputs)
    assert one.as_numpy("brightness") == pytest.approx([0.2])


async def test_a_stage_and_a_score_share_what_was_computed(app: App) -> None:
    before = _computed(app)
    picture = flat(123)
    await call(app, "http", "infer", "tiny/image_encoder", [files("http", picture)])
    assert _computed(app) == before + 1
    await call(app, "http", "infer", "tiny", [files("http", picture)])
    await call(app, "grpc", "infer", "tiny/image_encoder", [files("grpc", picture)])
    assert _computed(app) == before + 1


def _computed(app: App) -> float:
    labels = {"model": "tiny", "stage": "image_encoder"}
    return app.metrics.registry.get_sample_value("critiq_batch_size_sum", labels) or 0.0
