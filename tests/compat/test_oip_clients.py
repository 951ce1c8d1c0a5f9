"""The unmodified ``tritonclient``, all four of its clients, against a real server."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

from critiq_server.app import App
from critiq_server.images.source import EncodedImage
from critiq_server.queries import Query
from tests.compat.oip_clients import CLIENTS, address, call, files, pixels, prompts, wanted
from tests.fixtures.images import encoded, photo
from tests.support.bundles import write_bundle
from tests.support.requests import flat
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

every_client = pytest.mark.parametrize("kind", CLIENTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    write_bundle(root, version="2", bias=0.25)
    write_bundle(root, name="spare")
    models = {"allow_changes": True, "load": ("tiny:1", "tiny:2")}
    async with running(make_settings(root, models=models)) as app:
        yield app


@every_client
async def test_health(app: App, kind: str) -> None:
    assert await call(app, kind, "is_server_live") is True
    assert await call(app, kind, "is_server_ready") is True
    for model, version, ready in (
        ("tiny", "", True),
        ("tiny", "1", True),
        ("tiny", "3", False),
        ("tiny/image_encoder", "", True),
        ("tiny/image_encoder", "2", True),
        ("tiny/nothing", "", False),
        ("spare", "", False),
        ("spare/head", "", False),
        ("nothing", "", False),
    ):
        assert await call(app, kind, "is_model_ready", model, version) is ready, (model, version)


async def described(app: App, kind: str, method: str, *arguments: str) -> Any:
    """What a method that describes returns, as JSON; protobuf writes numbers of 64 bits as text."""
    options = {"as_json": True} if kind.startswith("grpc") else {}
    found = await call(app, kind, method, *arguments, **options)
    return found.get("config", found) if isinstance(found, dict) else found


def numbers(shape: Any) -> list[int]:
    return [int(length) for length in shape]


@every_client
async def test_metadata(app: App, kind: str) -> None:
    server = await described(app, kind, "get_server_metadata")
    assert server["name"] == "critiq"
    assert "binary_tensor_data" in server["extensions"]
    model = await described(app, kind, "get_model_metadata", "tiny")
    assert (model["name"], model["versions"]) == ("tiny", ["1", "2"])
    tensors = {entry["name"]: (entry["datatype"], numbers(entry["shape"])) for entry in model["inputs"]}
    assert tensors == {"image": ("BYTES", [-1]), "pixels": ("UINT8", [-1, -1, -1, 3]), "prompt": ("BYTES", [-1])}
    assert [(entry["name"], entry["datatype"], numbers(entry["shape"])) for entry in model["outputs"]] == [
        ("brightness", "FP32", [-1]),
        ("wordiness", "FP32", [-1]),
    ]
    stage = await described(app, kind, "get_model_metadata", "tiny/text_encoder", "1")
    assert (stage["name"], stage["versions"]) == ("tiny/text_encoder", ["1"])
    assert [entry["name"] for entry in stage["inputs"]] == ["prompt"]
    assert [(entry["name"], numbers(entry["shape"])) for entry in stage["outputs"]] == [("count", [-1])]


@every_client
async def test_configuration(app: App, kind: str) -> None:
    config = await described(app, kind, "get_model_config", "tiny")
    assert config["name"] == "tiny"
    assert config.get("max_batch_size", 0) == 0
    optional = {entry["name"]: entry.get("optional", False) for entry in config["input"]}
    assert optional == {"image": False, "pixels": True, "prompt": True}
    assert {entry["name"]: entry["data_type"] for entry in config["output"]} == {
        "brightness": "TYPE_FP32",
        "wordiness": "TYPE_FP32",
    }


@every_client
async def test_scores(app: App, kind: str) -> None:
    inputs = [files(kind, flat(51), flat(102)), prompts(kind, "a red cat", "a dog")]
    result = await call(app, kind, "infer", "tiny", inputs, model_version="1", request_id="job 7")
    assert result.as_numpy("brightness") == pytest.approx([0.2, 0.4])
    assert result.as_numpy("wordiness") == pytest.approx([0.2 * 5, 0.4 * 4])
    assert result.as_numpy("brightness").dtype == np.float32
    assert result.as_numpy("nothing") is None
    response = result.get_response()
    found = response if isinstance(response, dict) else {name.name: value for name, value in response.ListFields()}
    assert (found["model_name"], found["model_version"], found["id"]) == ("tiny", "1", "job 7")


@every_client
async def test_without_a_prompt_there_are_the_dimensions_that_need_none(app: App, kind: str) -> None:
    result = await call(app, kind, "infer", "tiny", [files(kind, flat(51))], model_version="1")
    assert result.as_numpy("brightness") == pytest.approx([0.2])
    assert result.as_numpy("wordiness") is None


@every_client
async def test_one_prompt_for_all(app: App, kind: str) -> None:
    inputs = [files(kind, flat(51), flat(102), flat(204)), prompts(kind, "a dog")]
    result = await call(app, kind, "infer", "tiny", inputs, model_version="1")
    assert result.as_numpy("wordiness") == pytest.approx([0.8, 1.6, 3.2])


@every_client
async def test_the_newest_version_answers_where_none_is_named(app: App, kind: str) -> None:
    result = await call(app, kind, "infer", "tiny", [files(kind, flat(51))])
    assert result.as_numpy("brightness") == pytest.approx([0.45])


@every_client
async def test_only_what_is_asked_for(app: App, kind: str) -> None:
    inputs = [files(kind, flat(51)), prompts(kind, "a dog")]
    outputs = wanted(kind, "wordiness")
    result = await call(app, kind, "infer", "tiny", inputs, model_version="1", outputs=outputs)
    assert result.as_numpy("wordiness") == pytest.approx([0.8])
    assert result.as_numpy("brightness") is None


@every_client
@pytest.mark.parametrize(("scale", "value"), [("raw", 0.4), ("calibrated", 0.4), ("percentile", 40.0)])
async def test_scales(app: App, kind: str, scale: str, value: float) -> None:
    result = await call(
        app, kind, "infer", "tiny", [files(kind, flat(102))], model_version="1", parameters={"scale": scale}
    )
    assert result.as_numpy("brightness") == pytest.approx([value])


@every_client
async def test_pixels_score_as_the_file_that_holds_them(app: App, kind: str) -> None:
    pictures = [photo(40, 30), photo(40, 30).rotate(180)]
    as_files = await call(app, kind, "infer", "tiny", [files(kind, *(encoded(p, "PNG") for p in pictures))])
    as_pixels = await call(app, kind, "infer", "tiny", [pixels(kind, np.stack([np.asarray(p) for p in pictures]))])
    assert as_pixels.as_numpy("brightness").tolist() == as_files.as_numpy("brightness").tolist()


@every_client
async def test_single_stages(app: App, kind: str) -> None:
    pictures = files(kind, flat(51), flat(102))
    bright = await call(app, kind, "infer", "tiny/image_encoder", [pictures], model_version="1")
    assert bright.as_numpy("brightness") == pytest.approx([0.2, 0.4])
    count = await call(app, kind, "infer", "tiny/text_encoder", [prompts(kind, "a dog", "a red cat")])
    assert count.as_numpy("count").tolist() == [4.0, 5.0]
    both = await call(app, kind, "infer", "tiny/head", [pictures, prompts(kind, "a dog")], model_version="1")
    assert both.as_numpy("wordiness") == pytest.approx([0.8, 1.6])


@every_client
@pytest.mark.parametrize("parts", [("model", "nothing"), ("image", b"broken"), ("output", "nothing")])
async def test_errors_are_the_clients_own(app: App, kind: str, parts: tuple[str, Any]) -> None:
    what, value = parts
    model = value if what == "model" else "tiny"
    inputs = [files(kind, flat(51), value if what == "image" else flat(52))]
    outputs = wanted(kind, value) if what == "output" else None
    with pytest.raises(InferenceServerException) as caught:
        await call(app, kind, "infer", model, inputs, outputs=outputs)
    expected = {
        "model": ("NOT_FOUND", "404", "there is no model 'nothing'"),
        "image": ("INVALID_ARGUMENT", "400", "image[1]: "),
        "output": ("NOT_FOUND", "404", "it has brightness, wordiness"),
    }[what]
    assert caught.value.status() == (f"StatusCode.{expected[0]}" if kind.startswith("grpc") else expected[1])
    assert expected[2] in caught.value.message()


@every_client
async def test_repository(app: App, kind: str) -> None:
    async def states() -> dict[tuple[str, str], str]:
        found = await described(app, kind, "get_model_repository_index")
        entries = found if isinstance(found, list) else found["models"]
        return {(entry["name"], entry["version"]): entry["state"] for entry in entries}

    assert (await states())["spare", "1"] == "UNAVAILABLE"
    await call(app, kind, "load_model", "spare")
    assert (await states())["spare", "1"] == "READY"
    assert await call(app, kind, "is_model_ready", "spare/head")
    await call(app, kind, "unload_model", "spare")
    assert (await states())["spare", "1"] == "UNAVAILABLE"
    with pytest.raises(InferenceServerException, match="default model"):
        await call(app, kind, "unload_model", "tiny")
    with pytest.raises(InferenceServerException, match="a bundle has its configuration"):
        await call(app, kind, "load_model", "spare", config='{"max_batch_size": 4}')


@pytest.mark.parametrize("kind", ["http", "http.aio"])
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compressed_requests(app: App, kind: str, algorithm: str) -> None:
    inputs = [files(kind, flat(51))]
    result = await call(
        app,
        kind,
        "infer",
        "tiny",
        inputs,
        request_compression_algorithm=algorithm,
        response_compression_algorithm="gzip",
    )
    assert result.as_numpy("brightness") == pytest.approx([0.45])


async def test_compressed_calls(app: App) -> None:
    result = await call(app, "grpc", "infer", "tiny", [files("grpc", flat(51))], compression_algorithm="gzip")
    assert result.as_numpy("brightness") == pytest.approx([0.45])


@pytest.mark.parametrize("kind", ["http", "http.aio"])
async def test_outputs_as_json(app: App, kind: str) -> None:
    outputs = wanted(kind, "brightness", binary_data=False) + wanted(kind, "wordiness", binary_data=True)
    inputs = [files(kind, flat(51)), prompts(kind, "a dog")]
    result = await call(app, kind, "infer", "tiny", inputs, model_version="1", outputs=outputs)
    assert "data" in result.get_output("brightness")
    assert "data" not in result.get_output("wordiness")
    assert result.as_numpy("brightness") == pytest.approx([0.2])
    assert result.as_numpy("wordiness") == pytest.approx([0.8])


async def test_prompts_as_json(app: App) -> None:
    text = tritonclient.http.InferInput("prompt", [1], "BYTES")
    text.set_data_from_numpy(np.array(["a 猫 dog"], object), binary_data=False)
    result = await call(app, "http", "infer", "tiny", [files("http", flat(51)), text], model_version="1")
    assert result.as_numpy("wordiness") == pytest.approx([1.0])


async def test_many_at_once_from_one_blocking_http_client(app: App) -> None:
    def ask() -> list[float]:
        with tritonclient.http.InferenceServerClient(address(app, "http"), concurrency=16) as client:
            pending = [client.async_infer("tiny", [files("http", flat(level))]) for level in range(32)]
            return [float(entry.get_result().as_numpy("brightness")[0]) for entry in pending]

    assert await asyncio.to_thread(ask) == pytest.approx([level / 255 + 0.25 for level in range(32)], abs=1e-6)


async def test_many_at_once_from_one_blocking_grpc_client(app: App) -> None:
    def ask() -> dict[str, float]:
        found: queue.Queue[Any] = queue.Queue()
        with tritonclient.grpc.InferenceServerClient(address(app, "grpc")) as client:
            for level in range(32):
                inputs = [files("grpc", flat(level))]
                client.async_infer("tiny", inputs, lambda result, error: found.put(result), request_id=str(level))
            results = [found.get(timeout=120) for _ in range(32)]
        return {result.get_response().id: float(result.as_numpy("brightness")[0]) for result in results}

    answers = await asyncio.to_thread(ask)
    assert answers == pytest.approx({str(level): level / 255 + 0.25 for level in range(32)}, abs=1e-6)


async def test_a_stream_of_the_blocking_client(app: App) -> None:
    def ask() -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        with tritonclient.grpc.InferenceServerClient(address(app, "grpc")) as client:
            client.start_stream(lambda result, error: found.append((result, error)))
            for level in (51, 102):
                client.async_stream_infer("tiny", [files("grpc", flat(level))], request_id=str(level))
            client.async_stream_infer("tiny", [files("grpc", b"broken")], request_id="broken")
            client.async_stream_infer("tiny", [files("grpc", flat(204))], request_id="204")
            client.stop_stream()
        return found

    answers = await asyncio.to_thread(ask)
    values = [
        (result.get_response().id, float(result.as_numpy("brightness")[0])) for result, error in answers if result
    ]
    assert [entry[0] for entry in values] == ["51", "102", "204"]
    assert [entry[1] for entry in values] == pytest.approx([0.45, 0.65, 1.05])
    assert [str(error) for result, error in answers if error] == [str(answers[2][1])]
    assert "image[0]: " in str(answers[2][1])


async def test_a_stream_of_the_asynchronous_client(app: App) -> None:
    async def asked() -> AsyncIterator[dict[str, Any]]:
        for level in (51, 102):
            yield {"model_name": "tiny", "inputs": [files("grpc", flat(level))]}

    async with tritonclient.grpc.aio.InferenceServerClient(address(app, "grpc")) as client:
        found = [result.as_numpy("brightness")[0] async for result, error in client.stream_infer(asked())]
    assert found == pytest.approx([0.45, 0.65])


async def test_a_deadline_of_the_client(app: App) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await call(app, "grpc", "infer", "tiny", [files("grpc", flat(77))], client_timeout=1e-6)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


async def test_the_built_in_model_and_its_embeddings() -> None:
    """The same scores as over critiq's own faces; and a picture and its like are alike as embeddings."""
    prompt = "a photograph of a mountain lake"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (192, 256, 3), np.uint8))
    pictures = [encoded(photo(256, 192), "PNG"), encoded(photo(256, 192), "JPEG"), encoded(noise, "PNG")]
    async with running(make_settings(default="critiq-builtin")) as app:
        direct = [await app.service.score(Query(EncodedImage(picture), prompt)) for picture in pictures]
        for kind in ("http", "grpc"):
            inputs = [files(kind, *pictures), prompts(kind, prompt)]
            scores = await call(app, kind, "infer", "critiq-builtin", inputs)
            for score in direct[0]:
                expected = np.float32([result[score.dimension].raw for result in direct])
                assert scores.as_numpy(score.dimension).tolist() == expected.tolist()
        stage = "critiq-builtin/alignment_encoder"
        embedded = await call(app, "http", "infer", stage, [files("http", *pictures)])
        metadata = await described(app, "http", "get_model_metadata", stage)
        for output in metadata["outputs"]:
            values = embedded.as_numpy(output["name"])
            assert output["datatype"] == "FP32"
            assert values.dtype == np.float32
            assert len(values) == 3
            assert len(values.shape) == len(output["shape"])
            assert all(said in (-1, length) for said, length in zip(output["shape"], values.shape, strict=True))
        png, jpeg, other = embedded.as_numpy("concept").reshape(3, -1)
        assert cosine(png, jpeg) > 0.9 > cosine(png, other)


def cosine(one: Any, two: Any) -> float:
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
