"""Every method, over both transports and in both shells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import critiq
from tests.client.fake_server import Behaviour, answer_score, model


def shade(value: int) -> Any:
    return np.full((4, 5, 3), value, np.uint8)


def test_score(connect: Any, behaviour: Behaviour) -> None:
    result = connect().score(shade(51), "a prompt", dimensions=["alignment", "visual_quality"], priority="bulk")
    assert [score.dimension for score in result] == ["alignment", "visual_quality"]
    assert result["visual_quality"].raw == pytest.approx(0.2)
    assert result.image == critiq.ImageReport("RAW", width=5, height=4)
    assert result.prompt == critiq.PromptReport(2, 77, False)
    [request] = behaviour.requests
    assert request.priority == 2  # type: ignore[attr-defined]
    assert list(request.target.dimensions) == ["alignment", "visual_quality"]  # type: ignore[attr-defined]


def test_score_batch_keeps_order_and_isolates_bad_items(connect: Any, behaviour: Behaviour) -> None:
    items = [shade(51), (shade(102), "text"), b"bad", "/no/such/file.png", critiq.Item(shade(153), id="mine")]
    results = connect().score_batch(items)
    assert [result.id for result in results] == ["0", "1", "2", "3", "mine"]
    assert results[0].unwrap()["visual_quality"].raw == pytest.approx(0.2)
    assert {score.dimension for score in results[1].unwrap()} == {"visual_quality", "alignment"}
    assert isinstance(results[2].error, critiq.InvalidArgument)
    with pytest.raises(critiq.InvalidArgument, match=r"items\[3\]\.image: cannot read '/no/such/file\.png'"):
        results[3].unwrap()
    assert results[4].unwrap()["visual_quality"].raw == pytest.approx(0.6)
    assert behaviour.calls == ["Scoring/ScoreBatch"]


def test_score_batch_is_cut_into_calls(connect: Any, behaviour: Behaviour) -> None:
    results = connect().score_batch([shade(value) for value in range(10)], batch_size=4)
    assert [result.unwrap()["visual_quality"].raw for result in results] == pytest.approx(np.arange(10) / 255)
    assert [len(request.items) for request in behaviour.requests] == [4, 4, 2]  # type: ignore[attr-defined]


def test_score_batch_is_cut_by_bytes(connect: Any, behaviour: Behaviour) -> None:
    pictures = np.zeros((3, 2300, 2400, 3), np.uint8)  # 16.6 MB each
    assert len(connect().score_batch(pictures)) == 3
    assert [len(request.items) for request in behaviour.requests] == [2, 1]  # type: ignore[attr-defined]


def test_nothing_to_score(connect: Any, behaviour: Behaviour) -> None:
    client = connect()
    assert client.score_batch([]) == []
    assert list(client.score_stream([])) == []
    assert not [call for call in behaviour.calls if call != "Scoring/ScoreStream"]


def test_score_stream(connect: Any) -> None:
    items = [(shade(value), f"prompt {value}") for value in range(100)] + [b"bad", 17]
    results = {result.id: result for result in connect().score_stream(items, window=7)}
    assert set(results) == {str(index) for index in range(102)}
    for index in range(100):
        assert results[str(index)].unwrap()["visual_quality"].raw == pytest.approx(index / 255)
    assert isinstance(results["100"].error, critiq.InvalidArgument)
    assert "int is no picture" in str(results["101"].error)


def test_rank(connect: Any) -> None:
    result = connect().rank([shade(10), shade(30), shade(20)], "a prompt", top_k=2)
    assert [(entry.rank, entry.index) for entry in result.ranking] == [(1, 1), (2, 2)]
    assert result.dimension == "visual_quality"


def test_rank_takes_one_array(connect: Any) -> None:
    result = connect().rank(np.stack([shade(10), shade(30)]))
    assert [entry.index for entry in result.ranking] == [1, 0]


def test_compare(connect: Any) -> None:
    [comparison] = connect().compare(shade(10), shade(9), "a prompt").comparisons
    assert comparison.preference == "first"
    assert comparison.second.raw == pytest.approx(9 / 255)


def test_models(connect: Any, behaviour: Behaviour) -> None:
    client = connect()
    assert client.models() == [model("ready")]
    assert client.model() == model("ready")
    assert client.model("mean", "1") == model("ready")
    with pytest.raises(critiq.NotFound, match="known are"):
        client.model("other one?")
    client.unload_model("mean")
    assert client.model("mean").state == "available"
    assert client.load_model("mean", "1").state == "ready"
    loads = [
        request for call, request in zip(behaviour.calls, behaviour.requests, strict=True) if call.endswith("/Load")
    ]
    assert [(load.name, load.version) for load in loads] == [("mean", "1")]  # type: ignore[attr-defined]


def test_errors_come_back_as_they_were(connect: Any) -> None:
    with pytest.raises(critiq.NotFound) as caught:
        connect().score(shade(1), model="other")
    assert caught.value.field == "target.model"
    assert caught.value.message == "no model 'other'; known are ['mean']"


def test_headers_are_sent(connect: Any, behaviour: Behaviour) -> None:
    connect(headers={"Authorization": "Bearer me"}).models()
    assert behaviour.headers[0]["authorization"] == "Bearer me"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"priority": "urgent"}, "priority"),
        ({"dimensions": "alignment"}, "dimensions"),
        ({"timeout": 0}, "timeout"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
    ],
)
def test_arguments_that_cannot_be_sent(
    connect: Any, behaviour: Behaviour, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(critiq.InvalidArgument) as caught:
        connect().score(shade(1), **arguments)
    assert caught.value.field == field
    assert not behaviour.calls


def test_too_large_for_any_call(connect: Any, behaviour: Behaviour) -> None:
    huge = np.zeros((2048, 2048, 3), np.uint8)
    client = connect()
    with pytest.raises(critiq.TooLarge):
        client.rank([huge] * 6)
    with pytest.raises(critiq.TooLarge):
        client.score(bytes(65 * 1024 * 1024))
    assert not behaviour.calls


def test_fake_server_tells_pictures_apart() -> None:
    one, other = (critiq.images.to_image(shade(value)) for value in (10, 20))
    scores = [answer_score(critiq.v1.scoring_pb2.ScoreRequest(image=image)).scores[0].raw for image in (one, other)]
    assert scores[0] < scores[1]
