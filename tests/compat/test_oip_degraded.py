"""Scores that a fallback head gave, on a scale of its own: never among the others without leave, and always marked."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tritonclient.utils import InferenceServerException

from critiq_server.app import App
from tests.compat.oip_clients import call, files
from tests.support.lmm_bundles import write_with_an_lmm
from tests.support.requests import flat
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    root = tmp_path_factory.mktemp("bundles")
    write_with_an_lmm(root)
    async with running(make_settings(root, lmm={"on_miss": "stored"})) as app:
        yield app


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_they_are_refused_by_default(app: App, kind: str) -> None:
    with pytest.raises(InferenceServerException, match=r"image\[0\]: 'wordiness' .* accept_degraded") as caught:
        await call(app, kind, "infer", "tiny", [files(kind, flat(51))])
    assert caught.value.status() in ("409", "StatusCode.FAILED_PRECONDITION")


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_they_are_given_and_marked_where_they_are_accepted(app: App, kind: str) -> None:
    pictures = files(kind, flat(51), flat(102))
    result = await call(app, kind, "infer", "tiny", [pictures], parameters={"accept_degraded": True})
    assert result.as_numpy("wordiness") == pytest.approx([0.2, 0.4])
    marked, plain = result.get_output("wordiness"), result.get_output("brightness")
    if kind == "http":
        assert (marked["parameters"]["degraded"], "degraded" in plain["parameters"]) == ("0,1", False)
    else:
        assert (marked.parameters["degraded"].string_param, len(plain.parameters)) == ("0,1", 0)


async def test_a_scale_that_the_fallback_has_not(app: App) -> None:
    parameters = {"accept_degraded": True, "scale": "percentile"}
    with pytest.raises(InferenceServerException, match="no percentile value of 'wordiness' here; use the scale raw"):
        await call(app, "grpc", "infer", "tiny", [files("grpc", flat(51))], parameters=parameters)


async def test_the_stage_that_asks(app: App) -> None:
    metadata = await call(app, "http", "get_model_metadata", "tiny/asked")
    assert metadata["outputs"] == [{"name": "feature", "datatype": "FP32", "shape": [-1, 1]}]
    with pytest.raises(InferenceServerException, match=r"image\[0\]: the store lacks the features 'asked' \(look\)"):
        await call(app, "http", "infer", "tiny/asked", [files("http", flat(51))])
