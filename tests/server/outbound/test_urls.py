"""How URLs of callers are read, and which hosts and addresses may be connected to."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from critiq.errors import CritiqError, InvalidArgument, PermissionDenied
from critiq_server.outbound.connect import is_public
from critiq_server.outbound.urls import Address, UrlRules, matches, parse

RULES = UrlRules(hosts=("pictures.example", "*.cdn.example"))


def allowed(url: str) -> Address:
    return RULES.check(url, "image.url", "urls")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://pictures.example/a.png", Address("https", "pictures.example", 443, "/a.png")),
        ("HTTPS://Pictures.Example:443", Address("https", "pictures.example", 443, "/")),
        ("https://a.b.cdn.example?x=%2F&y#part", Address("https", "a.b.cdn.example", 443, "/?x=%2F&y")),
    ],
)
def test_allowed(url: str, address: Address) -> None:
    assert allowed(url) == address


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("http://pictures.example/a.png", PermissionDenied, "only https"),
        ("https://cdn.example/a.png", PermissionDenied, "'cdn.example' is not one"),
        ("https://evilcdn.example/a.png", PermissionDenied, "'evilcdn.example' is not one"),
        ("https://pictures.example.evil.net/", PermissionDenied, "urls.hosts"),
        ("https://pictures.example:8443/", PermissionDenied, "port 8443"),
        ("https://pictures.example:99999/", InvalidArgument, "99999 is no port"),
        ("https://pictures.example:/", InvalidArgument, "no DNS name"),
        ("https://user@pictures.example/", InvalidArgument, "user name"),
        ("https://evil.net@pictures.example:443@x/", InvalidArgument, "user name"),
        ("https://pictures.example\\@evil.net/", InvalidArgument, "backslash"),
        ("https://pictures.example /", InvalidArgument, "white space"),
        ("https://pictures.example\n/", InvalidArgument, "white space"),
        ("https://pictures.example./", InvalidArgument, "no DNS name"),
        ("https://bücher.cdn.example/", InvalidArgument, "xn--"),
        ("https://%70ictures.example/", InvalidArgument, "no DNS name"),
        ("https:pictures.example", InvalidArgument, "begin with https://"),
        ("https:///a.png", InvalidArgument, "no DNS name"),
        ("//pictures.example/", InvalidArgument, "begin with https://"),
        ("file:///etc/passwd", InvalidArgument, "begin with https://"),
        ("gopher://pictures.example/", InvalidArgument, "begin with https://"),
        ("data:image/png;base64,AAAA", InvalidArgument, "begin with https://"),
        ("", InvalidArgument, "empty"),
        ("https://pictures.example/" + "a" * 5000, InvalidArgument, "5025 characters"),
    ],
)
def test_refused(url: str, error: type[CritiqError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        allowed(url)
    assert caught.value.field == "image.url"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "017700000001",
        "127.1",
        "127.0.0.1.",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "[fe80::1%25eth0]",
        "169.254.169.254",
        "pictures.example.0x7f",
        "1.2.3.08",
    ],
)
def test_addresses_in_any_notation_are_no_names(host: str) -> None:
    with pytest.raises(InvalidArgument, match=r"IP address|no DNS name"):
        UrlRules(hosts=("*.example",)).check(f"https://{host}/", "image.url", "urls")


@given(st.from_regex(r"https://[\x21-\x7e]{0,30}", fullmatch=True) | st.text(max_size=40))
@example("https://pictures.example:443:80/")
@example("https://a@pictures.example/")
@example("https://pictures.example;evil.net/")
def test_other_readers_see_the_same_host(url: str) -> None:
    """What is let through means the same to urllib and to httpx; all else is refused in our words."""
    try:
        address = parse(url, "image.url")
    except CritiqError:
        return
    assert urlsplit(url).hostname == address.host
    assert httpx.URL(url).host == address.host
    assert (httpx.URL(url).port or 443) == address.port
    assert "@" not in url.split("/")[2]


@given(st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True))
def test_a_pattern_lets_only_names_below_it_through(host: str) -> None:
    if matches(host, ("*.cdn.example",)):
        assert host.endswith(".cdn.example")
    assert not matches(f"{host}.evil.net", ("*.cdn.example", "pictures.example"))


@pytest.mark.parametrize("host", ["*", "*.", "a*.example", "10.0.0.1", "https://a.example", "a.example:443", ""])
def test_hosts_in_the_settings_are_names(host: str) -> None:
    with pytest.raises(ValidationError, match=r"write cdn\.example\.com"):
        UrlRules(hosts=(host,))


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::808:808"])
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff0e::1",
        "2001:db8::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "2002:a00:1::1",
        "64:ff9b::a9fe:a9fe",
        "192.0.0.192",
        "::ffff:192.0.0.192",
        "192.88.99.1",
        "fec0::1",
        "3fff::1",
        "",
        "no address",
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)
