"""One client for several servers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import critiq
from critiq._endpoint import parse
from critiq_server.app import App
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running

GREY = np.full((20, 20, 3), 51, np.uint8)


def answered(app: App) -> int:
    """Calls that a server has answered."""
    return round(app.metrics.registry.get_sample_value("critiq_items_total", {"model": "tiny", "code": "OK"}) or 0)


async def test_calls_take_turns_and_pass_by_a_server_that_is_gone(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with running(make_settings(tmp_path)) as first:
        async with running(make_settings(tmp_path)) as second:
            url = f"127.0.0.1:{first.grpc_port},127.0.0.1:{second.grpc_port}"
            client = critiq.AsyncClient(f"grpc://{url}")
            assert client.url == f"ipv4:{url}"
            for _ in range(20):
                await client.score(GREY)
            if 0 in (answered(first), answered(second)):  # the second connection was later than twenty calls
                for _ in range(20):
                    await client.score(GREY)
            counts = Counter(first=answered(first), second=answered(second))
            assert min(counts.values()) >= 5, counts
        for _ in range(10):
            await client.score(GREY)
        assert answered(first) == counts["first"] + 10
        await client.close()


def test_addresses_of_both_kinds() -> None:
    assert parse("10.0.0.1,10.0.0.2:9", None, None, "").target == "ipv4:10.0.0.1:8001,10.0.0.2:9"
    six = parse("grpcs://[::1]:7,[2001:db8::2]", None, None, "")
    assert (six.target, six.secure) == ("ipv6:[::1]:7,[2001:db8::2]:8001", True)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("here:1,there:2", "IP address"),
        ("10.0.0.1:1,", "IP address"),
        ("10.0.0.1:x,10.0.0.2:1", "IP address"),
        ("10.0.0.1:1,[::1]:2", "mixes"),
    ],
)
def test_what_are_no_addresses_is_said(url: str, said: str) -> None:
    with pytest.raises(critiq.InvalidArgument, match=said) as refused:
        critiq.Client(url)
    assert refused.value.field == "url"
