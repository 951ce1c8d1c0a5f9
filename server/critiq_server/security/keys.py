"""Keys of callers: how they look, how they are kept, which one a call carries.

A key is ``critiq_<id>_<secret>``. The id finds the entry; of the whole key only the SHA-256 is kept. A slow password
hash would add nothing: the secret has 256 random bits, which nobody can try out however fast the hash is, and a fast
hash costs the serving path microseconds.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from critiq_server.strict_yaml import strict_load

Scope = Literal["score", "models", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

PREFIX = "critiq_"
"""What a key begins with, and no token."""
_FORM = re.compile(r"critiq_([0-9a-f]{16})_[0-9a-f]{64}")
_LARGEST_FILE = 16 * 2**20
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]


class Caller(BaseModel):
    """Who calls, what it may ask for and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Whose call it is; the audit log shows it, and jobs belong to it.")
    scopes: tuple[Scope, ...] = Field(description="What it opens.")
    requests_per_second: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Calls a second over time; as many, at least one, at once."
    )
    concurrency: int | None = Field(None, gt=0, description="Calls under way at once.")
    requests_per_day: int | None = Field(None, gt=0, description="Calls a day; the day begins at midnight, UTC.")

    @property
    def handle(self) -> str:
        """What its calls are counted under."""
        return self.name


class Key(Caller):
    """What the file says about one key, or about one client certificate."""

    name: Name = Field(description="Whose it is; several keys may share a name while one replaces another.")
    id: Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$")] | None = Field(
        None, description="The key's middle part."
    )
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="Of the whole key, in hex."
    )
    certificate: Annotated[str, StringConstraints(pattern=r"^[!-~]([ -~]{0,510}[!-~])?$")] | None = Field(
        None, description="In place of both: an alternative name of a client certificate, or its common name."
    )
    scopes: tuple[Scope, ...] = Field(min_length=1, description="What it opens.")

    @model_validator(mode="after")
    def _is_a_key_or_a_certificate(self) -> Key:
        if (self.certificate is None) != (self.id is not None and self.sha256 is not None) or (
            self.certificate is not None and (self.id or self.sha256)
        ):
            raise ValueError("an entry has either id and sha256, or certificate")
        return self

    @property
    def handle(self) -> str:
        return self.id or f"certificate {self.certificate}"


class KeysError(Exception):
    """The file of keys cannot be used; the message says why and what to do, and shows nothing of its hashes."""


_KEYS = TypeAdapter(tuple[Key, ...])


class Ring:
    """The keys of a file, and the client certificates that stand for one."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._keys: Mapping[str, Key] = {key.handle: key for key in keys}
        self._certificates = {key.certificate: key for key in keys if key.certificate is not None}

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys.values())

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def has_certificates(self) -> bool:
        return bool(self._certificates)

    def find(self, text: str) -> Key | None:
        """The entry of this key; ``None`` if there is none, or the text has not a key's form."""
        parts = _FORM.fullmatch(text)
        if parts is None:
            return None
        key = self._keys.get(parts[1])
        # Ids are no secret: a caller may learn from the time taken that one exists, but nothing about the rest.
        return key if key is not None and hmac.compare_digest(key.sha256 or "", _digest(text)) else None

    def find_certificate(self, names: Sequence[str]) -> Key | None:
        """The entry of a client certificate, whose authority TLS has checked, by one of its names."""
        return next((self._certificates[name] for name in names if name in self._certificates), None)


def read_keys(path: Path) -> Ring:
    """Reads a file of keys; an empty one has none.

    Raises:
        KeysError: the file cannot be read, or something in it is wrong.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise KeysError(f"{path} is larger than {_LARGEST_FILE:,} bytes; is it a file of keys?")
        return _parse(path, path.read_bytes())
    except OSError as error:
        raise KeysError(f"the file of keys cannot be read ({error}); `critiq keys new` makes one") from error


def _parse(path: Path, data: bytes) -> Ring:
    try:
        content = strict_load(data.decode())
        keys = _KEYS.validate_python([] if content is None else content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise KeysError(f"{path}: {where}: {first['msg']}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise KeysError(f"{path}{line}: this is no YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise KeysError(f"{path}: this is no YAML text in UTF-8 ({type(error).__name__})") from None
    handles = [key.handle for key in keys]
    if len(set(handles)) < len(handles):
        twice = next(handle for handle in handles if handles.count(handle) > 1)
        what = twice if " " in twice else f"id {twice}"
        raise KeysError(f"{path} has the {what} twice; make another key in place of one of them, or delete one")
    return Ring(keys)


def new_key(
    name: str,
    scopes: Sequence[str],
    requests_per_second: float | None = None,
    concurrency: int | None = None,
    requests_per_day: int | None = None,
) -> tuple[str, Key]:
    """A random key, and the entry by which it is known.

    Raises:
        KeysError: a name, scope or limit that cannot be.
    """
    key_id = secrets.token_hex(8)
    text = f"critiq_{key_id}_{secrets.token_hex(32)}"
    proof = {"id": key_id, "sha256": _digest(text)}
    return text, _entry(name, scopes, proof, requests_per_second, concurrency, requests_per_day)


def new_certificate(
    name: str,
    certificate: str,
    scopes: Sequence[str],
    requests_per_second: float | None = None,
    concurrency: int | None = None,
    requests_per_day: int | None = None,
) -> Key:
    """An entry for a client certificate with that name in it.

    Raises:
        KeysError: a name, scope or limit that cannot be.
    """
    return _entry(name, scopes, {"certificate": certificate}, requests_per_second, concurrency, requests_per_day)


def _entry(
    name: str,
    scopes: Sequence[str],
    proof: Mapping[str, str],
    requests_per_second: float | None,
    concurrency: int | None,
    requests_per_day: int | None,
) -> Key:
    limits = {
        "requests_per_second": requests_per_second,
        "concurrency": concurrency,
        "requests_per_day": requests_per_day,
    }
    try:
        return Key.model_validate({"name": name, **proof, "scopes": tuple(dict.fromkeys(scopes)), **limits})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise KeysError(f"{first['loc'][0]}: {first['input']!r}: {first['msg']}") from None


def append(path: Path, key: Key) -> None:
    """Adds an entry at the end of the file, which it makes if there is none, readable by its owner only.

    What is there stays as it is, comments too.

    Raises:
        KeysError: the file holds something else, or cannot be written.
    """
    values = key.model_dump(mode="json", exclude_none=True)
    entry = yaml.safe_dump([values], sort_keys=False, default_flow_style=None, width=1000).encode()
    try:
        with open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b") as file:
            before = file.read()
            if before and not before.endswith(b"\n"):
                entry = b"\n" + entry
            _parse(path, before)
            _parse(path, before + entry)  # or we would spoil a file of another form, such as one in brackets
            file.write(entry)
    except OSError as error:
        raise KeysError(f"cannot write the file of keys ({error})") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
