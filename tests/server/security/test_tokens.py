"""Tokens of an identity provider: who is let in as whom, and all the ways in which a token can be wrong."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms
from pydantic import ValidationError
from structlog.testing import capture_logs

import critiq
from critiq.errors import TooBusy, Unauthenticated
from critiq_server.app import App, StartError
from critiq_server.security import tokens as tokens_module
from critiq_server.security.guard import Guard
from critiq_server.security.keys import SCOPES, append, new_key
from critiq_server.security.settings import JwtSettings, SecuritySettings
from critiq_server.security.tokens import Tokens, TokensError
from tests.server.security.table import RPC, called, endpoints, expected, rpcs
from tests.support.bundles import write_bundle
from tests.support.certificates import Authority
from tests.support.https import Asked, answer, website
from tests.support.requests import flat
from tests.support.servers import make_settings, running

ISSUER, AUDIENCE = "https://login.example.org", "critiq"
MAKERS: dict[str, Callable[[], Any]] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@dataclass
class Provider:
    """Signs tokens, and publishes its keys in a file."""

    file: Path
    keys: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def add(self, key_id: str, algorithm: str = "ES256") -> None:
        self.keys[key_id] = algorithm, MAKERS[algorithm]()
        self.publish()

    def published(self) -> bytes:
        entries = []
        for key_id, (algorithm, key) in self.keys.items():
            entry = get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)
            entries.append({**entry, "kid": key_id, "use": "sig"})  # type: ignore[dict-item]
        return json.dumps({"keys": entries}).encode()

    def publish(self) -> None:
        self.file.write_bytes(self.published())

    def token(self, key_id: str = "one", header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A claim of ``None`` is left out."""
        algorithm, key = self.keys[key_id]
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "robot", "exp": time.time() + 600, "scope": "score", **claims}
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key, algorithm, {"kid": key_id, **(header or {})})


@pytest.fixture
def provider(tmp_path: Path) -> Provider:
    made = Provider(tmp_path / "jwks.json")
    made.add("one")
    return made


def settings(provider: Provider, **more: Any) -> JwtSettings:
    return JwtSettings(**{"jwks": str(provider.file), "issuer": ISSUER, "audience": [AUDIENCE], **more})


async def opened(provider: Provider, **more: Any) -> Tokens:
    tokens = Tokens(settings(provider, **more))
    await tokens.open()
    return tokens


@pytest.mark.parametrize("algorithm", MAKERS)
async def test_a_token_names_its_caller(provider: Provider, algorithm: str) -> None:
    provider.add("two", algorithm)
    tokens = await opened(provider, requests_per_day=5)
    caller = await tokens.caller(provider.token("two", scope="openid metrics score"))
    assert (caller.name, caller.scopes, caller.requests_per_day) == ("jwt:robot", ("score", "metrics"), 5)


async def test_claims_are_where_the_settings_say(provider: Provider) -> None:
    tokens = await opened(provider, scope_claim="permissions", scope_prefix="critiq:", name_claim="client_id")
    said = {"permissions": ["critiq:models", "score", 3], "client_id": "trainer"}
    caller = await tokens.caller(provider.token(**said))
    assert (caller.name, caller.scopes) == ("jwt:trainer", ("models",))
    assert not (await tokens.caller(provider.token(permissions={"critiq:score": 1}, client_id="x"))).scopes


def forged(header: dict[str, Any], secret: bytes = b"") -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "robot", "exp": time.time() + 600, "scope": "score models"}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signed = b".".join(parts)
    signature = hmac.new(secret, signed, hashlib.sha256).digest() if secret else b""
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


async def test_wrong_tokens_are_refused_each_with_its_reason(provider: Provider) -> None:
    tokens = await opened(provider, leeway_seconds=5)
    stranger = Provider(provider.file.with_name("stranger.json"))
    stranger.add("one")
    stranger.add("other")
    stranger.add("rsa", "RS256")
    public = provider.keys["one"][1].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    now = time.time()
    good = provider.token()
    head, body, signature = good.split(".")
    spoilt = base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "==").replace(b"robot", b"admin")).decode()
    cases = {
        provider.token(exp=now - 10): "has expired",
        provider.token(nbf=now + 60): "not valid yet",
        provider.token(aud="another"): "not for this server, which is critiq",
        provider.token(aud=None): "no claim 'aud'",
        provider.token(exp=None): "no claim 'exp'",
        provider.token(iss="https://evil.example"): "not from https://login",
        provider.token(iss=None): "no claim 'iss'",
        provider.token(sub=None): "names no caller",
        provider.token(sub="a\nb"): "names no caller",
        provider.token(sub="a" * 201): "names no caller",
        provider.token(exp="soon"): "cannot be read",
        provider.token(exp=10**400): "cannot be read",
        stranger.token("one"): "signature is wrong",
        stranger.token("other"): "key that its issuer does not list",
        stranger.token("rsa", {"kid": "one"}): "another kind than the key",
        f"{head}.{spoilt.rstrip('=')}.{signature}": "signature is wrong",
        forged({"alg": "none", "kid": "one"}): "a way that is not taken",
        forged({"alg": "None", "kid": "one"}): "a way that is not taken",
        forged({"alg": "HS256", "kid": "one"}, pem): "a way that is not taken",  # signed with the public key
        forged({"alg": "ES256", "kid": ["one"]}): "neither a key",
        forged({"alg": "ES256", "kid": "../../../dev/null"}): "does not list",
        forged({"alg": "ES256", "kid": "' or 1=1"}): "does not list",
        forged({"alg": "ES256", "kid": "x", "jku": "https://evil.example"}): "does not list",
        provider.token(filling="a" * 9000): "the limit is 8192",
        "nonsense": "neither a key of this server nor a token",
        "a.b.c": "neither a key of this server nor a token",
    }
    for token, said in cases.items():
        with pytest.raises(Unauthenticated, match=re.escape(said)) as caught:
            await tokens.caller(token)
        assert token not in str(caught.value)
    assert (await tokens.caller(provider.token(exp=now - 2))).name == "jwt:robot", "within the leeway"
    assert (await tokens.caller(good)).name == "jwt:robot"


async def test_a_token_is_checked_once_until_it_ends(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = await opened(provider, leeway_seconds=0)
    checked = []
    check = tokens._check
    monkeypatch.setattr(tokens, "_check", lambda *given: checked.append(1) or check(*given))
    token = provider.token(exp=time.time() + 1.5)
    for _ in range(3):
        await tokens.caller(token)
    assert len(checked) == 1
    assert token not in repr(tokens._known)
    await asyncio.sleep(1.6)
    with pytest.raises(Unauthenticated, match="expired"):
        await tokens.caller(token)
    monkeypatch.setattr(tokens_module, "_KEPT", 5)
    for number in range(9):
        await tokens.caller(provider.token(sub=f"robot-{number}"))
    assert len(tokens._known) == 5


async def test_a_new_key_is_found_and_one_that_is_gone_ends_its_tokens(provider: Provider) -> None:
    tokens = await opened(provider)
    old = provider.token()
    await tokens.caller(old)
    provider.add("two")
    new = provider.token("two")
    with pytest.raises(Unauthenticated, match="does not list"):  # looked for a moment ago
        await tokens.caller(new)
    tokens._fetched_at = float("-inf")
    await tokens.caller(new)
    provider.file.write_text("{}")
    tokens._fetched_at = float("-inf")
    with capture_logs() as logs, pytest.raises(Unauthenticated, match="does not list"):
        await tokens.caller(provider.token("two", {"kid": "three"}))
    assert any("those from before stay" in entry["event"] for entry in logs)
    await tokens.caller(old)
    del provider.keys["one"]
    provider.publish()
    await tokens._refresh()
    with pytest.raises(Unauthenticated, match="does not list"):
        await tokens.caller(old)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense", "no JSON Web Key Set"),
        ("[]", "no JSON Web Key Set"),
        ('{"keys": {}}', "no JSON Web Key Set"),
        ('{"keys": []}', "no public key"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "one"}, 3, {"kty": "RSA"}]}', "no public key"),
        (None, "cannot be read"),
    ],
)
async def test_key_sets_that_cannot_be_used(provider: Provider, content: str | None, said: str) -> None:
    if content is None:
        provider.file.unlink()
    else:
        provider.file.write_text(content)
    with pytest.raises(TokensError, match=said):
        await opened(provider)
    security = {"jwt": settings(provider).model_dump()}
    with pytest.raises(StartError, match=said):
        await App(make_settings(provider.file.parent, security=security)).start()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"jwks": "keys.json"}, "needs security.jwt.issuer"),
        ({"jwks": "http://a/b", "issuer": "a", "audience": ["b"]}, "is no https URL"),
        ({"algorithms": ["HS256"]}, "Input should be 'RS256'"),
        ({"algorithms": ["none"]}, "Input should be 'RS256'"),
    ],
)
def test_settings_that_are_unsafe_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        JwtSettings(**values)


async def test_keys_come_from_a_url_and_strangers_do_not_make_us_hammer_it(provider: Provider, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    files = authority.server()
    status = 200

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(status, provider.published()))
        await writer.drain()

    async with website(reply, (files.key, files.certificate)) as site:
        url = f"https://127.0.0.1:{site.port}/jwks"
        tokens = await opened(provider, jwks=url, jwks_ca_file=authority.ca)
        tokens._fetched_at = float("-inf")
        provider.add("two")
        results = await asyncio.gather(*(tokens.caller(provider.token("two", sub=f"{n}")) for n in range(20)))
        assert len(results) == 20
        assert len(site.asked) == 2, "one fetch for all who wait"
        for number in range(50):
            with pytest.raises(Unauthenticated):
                await tokens.caller(provider.token("two", {"kid": f"made-up-{number}"}))
        assert len(site.asked) == 2
        with pytest.raises(TokensError, match="cannot be fetched"):  # an authority that is not trusted
            await opened(provider, jwks=url)
        status = 500
        with pytest.raises(TokensError, match="answers with 500"):
            await opened(provider, jwks=url, jwks_ca_file=authority.ca)
        await tokens._refresh()
        await tokens.caller(provider.token("two"))


async def test_limits_are_each_callers(provider: Provider) -> None:
    guard = Guard(SecuritySettings(jwt=settings(provider, requests_per_day=2)), None)
    await guard.open()

    async def call(token: str) -> None:
        guard.admit(token, {"score"}, "call", (), await guard.bearer(token, "call"))

    for number in range(2):
        await call(provider.token(n=number))  # another token, the same caller
    with pytest.raises(TooBusy, match="2 requests of this day"):
        await call(provider.token(n=3))
    await call(provider.token(sub="another"))


@asynccontextmanager
async def serving(root: Path, provider: Provider) -> AsyncIterator[tuple[App, str]]:
    """With one key beside the tokens; whose it is has the tokens' name."""
    write_bundle(root / "bundles")
    text, key = new_key("robot", ["score"])
    append(root / "keys.yaml", key)
    security = {"keys_file": root / "keys.yaml", "jwt": settings(provider).model_dump()}
    sections: dict[str, Any] = {"security": security, "jobs": {"path": root / "jobs.db"}}
    async with running(make_settings(root / "bundles", models={"allow_changes": True}, **sections)) as app:
        yield app, text


async def test_tokens_and_keys_side_by_side(provider: Provider, tmp_path: Path) -> None:
    token = provider.token(scope="score models")
    with capture_logs() as logs:
        async with serving(tmp_path, provider) as (app, key):
            for url in (f"127.0.0.1:{app.grpc_port}", f"http://127.0.0.1:{app.rest_port}"):
                async with (
                    critiq.AsyncClient(url, api_key=token) as bearer,
                    critiq.AsyncClient(url, api_key=key) as other,
                ):
                    assert (await bearer.score(flat())).scores
                    assert [item.error async for item in bearer.score_stream([flat(), flat(9)])] == [None, None]
                    await bearer.load_model("tiny")
                    job = await bearer.submit_job([flat()])
                    with pytest.raises(critiq.NotFound):
                        await other.job(job.id)
                    with pytest.raises(critiq.PermissionDenied):
                        await other.load_model("tiny")
                for wrong, said in (
                    (provider.token(exp=1), "has expired"),
                    ("nonsense", "neither a key"),
                    ("", "API key"),
                ):
                    async with critiq.AsyncClient(url, api_key=wrong, retries=0) as client:
                        with pytest.raises(critiq.Unauthenticated, match=said):
                            await client.score(flat())
    assert {entry["key"] for entry in logs if entry["event"] == "audit"} == {"jwt:robot"}
    assert token not in str(logs)


async def test_every_route_and_rpc_holds_for_tokens(provider: Provider, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, provider) as (app, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}") as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel,
    ):
        guarded: Any = app._rest.config.app
        found = set(endpoints(list(guarded._app.routes)))
        for scope in ("", *SCOPES, "expired"):
            token = provider.token(exp=1) if scope == "expired" else provider.token(scope=scope)
            refused = 401 if scope == "expired" else 403
            for path, method in sorted(found):
                scopes = expected(path, method).split()
                headers = {"Authorization": f"Bearer {token}"}
                answered = await http.request(method, re.sub(r"{[^}]*}", "nothing", path), headers=headers)
                ours = method == "HEAD" or "needs a key with the scope" in answered.text or refused == 401
                turned_away = answered.status_code == refused and ours
                assert turned_away == bool(scopes and scope not in scopes), f"{method} {path} {scope}: {answered}"
            codes = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}
            for service, method in rpcs():
                scopes = RPC[service][method.name].split()
                code, _ = await called(channel, service, method, token)
                place = f"{service}/{method.name} {scope}: {code}"
                assert (code is codes[refused]) == bool(scopes and scope not in scopes), place
