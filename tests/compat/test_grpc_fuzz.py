"""Whatever stands in gRPC's binary fields (raw tensors, files, whole messages): an answer or a refusal, no fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from critiq.v1 import scoring_pb2
from tests.fixtures.images import encoded, photo
from tests.support import requests
from tests.support.servers import ServerProcess

SECONDS = 60
PICTURES = [encoded(photo(40, 30), kind) for kind in ("PNG", "JPEG", "WEBP")]
ALLOWED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
}
bounded = settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

sides = st.sampled_from([0, 1, 3, 16, 17, 20, 24, 2**16, 2**31, 2**32 - 1])
shapes = st.one_of(st.lists(sides, max_size=5), st.tuples(*[st.sampled_from([1, 3, 16, 20])] * 3).map(list))
raws = st.builds(
    lambda data, shape, dtype, layout: scoring_pb2.RawImage(data=data, shape=shape, dtype=dtype, layout=layout),
    st.one_of(
        st.binary(max_size=64), st.sampled_from([bytes(16 * 16 * 3), bytes(16 * 20 * 3), b"\xff" * 16 * 20 * 12])
    ),
    shapes,
    st.integers(0, 5),
    st.integers(0, 5),
)
sources = st.one_of(
    raws.map(lambda raw: scoring_pb2.Image(raw=raw)),
    st.one_of(st.binary(max_size=64), st.sampled_from(PICTURES)).map(lambda data: scoring_pb2.Image(encoded=data)),
    st.text(max_size=30).map(lambda url: scoring_pb2.Image(url=url)),
    st.just(scoring_pb2.Image()),
)


@pytest.fixture(scope="module")
def channel(fuzzed: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(fuzzed.grpc) as opened:
        yield opened


def call(channel: grpc.Channel, method: str, data: bytes, answer: Any) -> Any:
    """The answer; ``None`` for a refusal in our words."""
    sent = channel.unary_unary(f"/critiq.v1.Scoring/{method}").future(data, timeout=SECONDS)
    error = sent.exception()
    if error is None:
        return answer.FromString(sent.result())
    assert sent.code() in ALLOWED, (sent.code(), sent.details())
    told = scoring_pb2.Error.FromString(dict(sent.trailing_metadata())["critiq-error-bin"])
    assert told.message
    assert told.code
    return None


@bounded
@given(source=sources, prompt=st.text(max_size=20))
@example(source=requests.image(requests.raw(photo(20, 16))), prompt="a cat")
def test_pictures(channel: grpc.Channel, source: Any, prompt: str) -> None:
    request = scoring_pb2.ScoreRequest(image=source, prompt=prompt.encode("utf-8", "ignore").decode())
    answer = call(channel, "Score", request.SerializeToString(), scoring_pb2.ScoreResponse)
    if answer is not None:
        assert 0 <= answer.scores[0].raw <= 1
        assert answer.image.width >= 16


@bounded
@given(st.lists(sources, max_size=4), st.integers(0, 2**32 - 1), st.floats(), st.text(max_size=8), st.floats())
def test_rankings(
    channel: grpc.Channel, images: list[Any], top_k: int, diversity: float, name: str, at_least: float
) -> None:
    name = name.encode("utf-8", "ignore").decode()
    request = scoring_pb2.RankRequest(images=images, top_k=top_k, diversity=diversity, embedding=name)
    request.thresholds.add(dimension=name if len(name) > 3 else "", scale=len(images), at_least=at_least)
    answer = call(channel, "Rank", request.SerializeToString(), scoring_pb2.RankResponse)
    if answer is not None:
        assert len(answer.ranking) <= len(images)


@bounded
@given(at=st.integers(0, 2000), length=st.integers(0, 10), instead=st.binary(max_size=10))
@pytest.mark.parametrize("method", ["Score", "ScoreBatch", "Rank", "Compare", "Prefetch", "Moderate"])
def test_messages(channel: grpc.Channel, method: str, at: int, length: int, instead: bytes) -> None:
    message, answer = {
        "Score": (requests.score(PICTURES[0], "a cat"), scoring_pb2.ScoreResponse),
        "ScoreBatch": (requests.batch([requests.score(PICTURES[0])] * 2), scoring_pb2.ScoreBatchResponse),
        "Rank": (requests.rank(PICTURES, "a cat", 1), scoring_pb2.RankResponse),
        "Compare": (requests.compare(PICTURES[0], PICTURES[1]), scoring_pb2.CompareResponse),
        "Prefetch": (requests.batch([requests.score(PICTURES[0])]), scoring_pb2.PrefetchResponse),
        "Moderate": (scoring_pb2.ModerateRequest(image=requests.image(PICTURES[0])), scoring_pb2.ModerateResponse),
    }[method]
    whole = message.SerializeToString()
    at %= len(whole)
    call(channel, method, whole[:at] + instead + whole[at + length :], answer)
