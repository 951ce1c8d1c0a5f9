"""A name that stands for several servers: gRPC clients take turns over them, and go on without one that is gone."""

from __future__ import annotations

from typing import Any

import pytest

import critiq
from tests.client import fake_server
from tests.client.conftest import Blocking
from tests.client.fake_server import Behaviour
from tests.fixtures.images import encoded, photo

PICTURE = encoded(photo(), "PNG")


@pytest.mark.parametrize("kind", [critiq.Client, Blocking])
def test_calls_are_spread_over_all_addresses(kind: Any) -> None:
    one, other = Behaviour(), Behaviour()
    with fake_server.running(one) as first:
        with fake_server.running(other) as second:
            client = kind(f"{first.grpc_url},{second.grpc_url}")
            while not (one.calls and other.calls):  # the second connection may take a moment longer
                client.score(PICTURE)
                assert len(one.calls + other.calls) < 1000
            before = len(one.calls), len(other.calls)
            for _ in range(20):
                client.score(PICTURE)
            assert (len(one.calls) - before[0], len(other.calls) - before[1]) == (10, 10)
        for _ in range(5):
            client.score(PICTURE)
        assert len(one.calls) == before[0] + 15
        client.close()
