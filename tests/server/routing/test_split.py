"""Shares of an alias: exact over many keys, sticky for each, and monotone when they change."""

from __future__ import annotations

from collections import Counter
from contextvars import copy_context

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import critiq
from critiq.aliases import AliasTarget
from critiq_server.app import App
from critiq_server.routing.keys import choose, key_of, routing_key
from critiq_server.security.limits import caller
from tests.support.requests import flat

KEYS = [f"user-{number}".encode() for number in range(20_000)]
shares = st.floats(0.5, 99.5)


def split(*percents: float) -> list[AliasTarget]:
    return [AliasTarget("model", str(number), percent) for number, percent in enumerate(percents, start=1)]


@pytest.mark.parametrize("percents", [(99, 1), (90, 10), (50, 50), (60, 30, 10), (97, 1, 1, 1)])
def test_shares_are_what_they_say(percents: tuple[float, ...]) -> None:
    found = Counter(choose(split(*percents), key).version for key in KEYS)
    for number, percent in enumerate(percents, start=1):
        expected = len(KEYS) * percent / 100
        # Five standard deviations of a binomial count; the keys are fixed, so this passes always or never.
        assert abs(found[str(number)] - expected) < 5 * (expected * (1 - percent / 100)) ** 0.5


@given(before=shares, after=shares, keys=st.lists(st.binary(max_size=40), min_size=1, max_size=50))
@settings(max_examples=200, deadline=None)
def test_a_growing_canary_only_takes_keys_from_the_old_version(before: float, after: float, keys: list[bytes]) -> None:
    low, high = sorted((before, after))
    for key in keys:
        first, second = choose(split(100 - low, low), key).version, choose(split(100 - high, high), key).version
        assert (first, second) in {("1", "1"), ("1", "2"), ("2", "2")}, "nobody goes back"


@given(
    weights=st.lists(st.floats(1, 50), min_size=3, max_size=6),
    factor=st.floats(1, 20),
    keys=st.lists(st.binary(max_size=40), min_size=1, max_size=30),
)
@settings(max_examples=100, deadline=None)
def test_of_several_targets_one_that_grows_against_the_others_only_gains(
    weights: list[float], factor: float, keys: list[bytes]
) -> None:
    def scaled(numbers: list[float]) -> list[AliasTarget]:
        return split(*(100 * number / sum(numbers) for number in numbers))

    for key in keys:
        before = choose(scaled(weights), key).version
        after = choose(scaled([*weights[:-1], weights[-1] * factor]), key).version
        assert after in (before, str(len(weights)))


@given(keys=st.lists(st.binary(max_size=40), min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_another_canary_gets_no_more_than_the_last_one_had(keys: list[bytes]) -> None:
    old, new = split(80, 20), [split(80, 20)[0], AliasTarget("model", "3", 20)]
    for key in keys:
        if choose(old, key).version == "1":
            continue
        assert choose(new, key).version in ("1", "3")
    assert choose(list(reversed(old)), keys[0]) == choose(old, keys[0]), "the order does not matter"


async def halved(app: App) -> None:
    await app.service.routing.set("default", [(AliasTarget("tiny", version, 50), True) for version in ("1", "2")])


def test_what_a_caller_sends_goes_before_its_api_key_and_that_before_the_picture() -> None:
    def found(sent: str, name: str | None, picture: bytes) -> bytes:
        def read() -> bytes:
            routing_key.set(sent)
            caller.set(name)
            return key_of([picture])

        return copy_context().run(read)

    assert found("user", "trainer", b"1") == found("user", None, b"2")
    assert found("", "trainer", b"1") == found("", "trainer", b"2") != found("", "other", b"1")
    assert found("", None, b"1") == found("", "", b"1") != found("", None, b"2")
    assert found("trainer", None, b"1") != found("", "trainer", b"1")


async def test_requests_go_by_key_else_by_api_key_else_by_picture(app: App) -> None:
    await halved(app)

    async def versions(url: str, levels: range, **headers: str) -> list[str]:
        async with critiq.AsyncClient(url, headers=headers) as client:
            return [(await client.score(flat(level)))["brightness"].model_version for level in levels]

    by_face = []
    for url in (f"localhost:{app.grpc_port}", f"http://localhost:{app.rest_port}"):
        by_picture = await versions(url, range(24))
        assert len(set(by_picture)) == 2, "some pictures here, some there"
        assert await versions(url, range(24)) == by_picture, "each meets its own version again"
        by_key = [
            set(await versions(url, range(6), **{"X-Critiq-Routing-Key": f"user-{number}"})) for number in range(12)
        ]
        assert all(len(found) == 1 for found in by_key), "a key meets one version, whatever the picture"
        assert len(set.union(*by_key)) == 2
        by_face.append((by_picture, by_key))
    assert by_face[0] == by_face[1], "on both faces the same one"


async def test_one_call_that_compares_pictures_meets_one_version(app: App) -> None:
    await halved(app)
    seen = set()
    async with critiq.AsyncClient(f"localhost:{app.grpc_port}") as client:
        for start in range(0, 160, 8):
            pictures = [flat(start + step) for step in range(8)]
            ranked = await client.rank(pictures)
            answered = {entry.score.model_version for entry in ranked.ranking if entry.score is not None}
            compared = (await client.compare(*pictures[:2])).comparisons[0]
            assert len(answered) == 1
            assert compared.first.model_version == compared.second.model_version
            seen |= answered
    assert seen == {"1", "2"}, "of many calls some go here, some there"


async def test_a_tensor_request_of_several_pictures_meets_one_version(app: App) -> None:
    await halved(app)
    seen = set()
    async with httpx.AsyncClient(base_url=f"http://localhost:{app.rest_port}") as http:
        for level in range(16):
            pixels = [level] * 768 + [level + 100] * 768
            tensor = {"name": "pixels", "datatype": "UINT8", "shape": [2, 16, 16, 3], "data": pixels}
            answer = (await http.post("/v2/models/default/infer", json={"inputs": [tensor]})).json()
            values = answer["outputs"][0]["data"]
            assert values[1] - values[0] == pytest.approx(100 / 255, abs=1e-5), "both have the version's own offset"
            seen.add(answer["model_version"])
    assert seen == {"1", "2"}
