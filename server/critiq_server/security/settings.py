"""Who may call the server, and how what they send is kept from others' eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ConnectionLimits(_Section):
    """What bounds connections and slow clients (docs/security.md)."""

    connections: int = Field(
        4096, gt=0, description="Connections open at once on each HTTP port; beyond it 503. Idle ones count."
    )
    connections_per_address: int = Field(
        0, ge=0, description="The same for each address, beyond it 429. 0: no limit, as a proxy's is one address."
    )
    header_seconds: float = Field(
        10.0,
        gt=0,
        description="How long a TLS handshake or a request's headers may take over HTTP and gRPC's handshake.",
    )
    body_seconds: float = Field(
        30.0,
        gt=0,
        description="How long a body over HTTP may be behind the pace of bytes_per_second; the same for a client that "
        "takes its answer.",
    )
    bytes_per_second: int = Field(10_000, gt=0, description="See body_seconds.")
    keep_alive_seconds: float = Field(
        60.0, gt=0, description="How long an HTTP connection may be idle between requests."
    )


class TlsSettings(_Section):
    """TLS on every port: REST, gRPC, metrics and the compat listeners. Off without a certificate."""

    certificate: Path | None = Field(
        None, description="PEM file: the server's certificate, then those between it and its authority. Empty: no TLS."
    )
    key: Path | None = Field(None, description="PEM file of its private key, without a passphrase.")
    client_ca: Path | None = Field(
        None, description="PEM file of the authorities whose client certificates are taken. Empty: none is asked for."
    )
    require_client_certificate: bool = Field(
        False,
        description="Whether a caller without one is turned away in the handshake, on every port. If not, HTTP takes "
        "one where it is offered, and gRPC, whose library cannot do so, asks for none.",
    )
    min_version: Literal["1.2", "1.3"] = Field(
        "1.2", description="Oldest TLS that HTTP takes. gRPC takes 1.2 and 1.3 whatever is set here."
    )
    reload_seconds: float = Field(
        10.0, gt=0, description="How often it is looked whether the files have changed; connections go on."
    )

    @field_validator("min_version", mode="before")
    @classmethod
    def _yaml_reads_a_number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, float) else value

    @model_validator(mode="after")
    def _parts_belong_together(self) -> TlsSettings:
        if (self.certificate is None) != (self.key is None):
            given, lacking = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise ValueError(f"security.tls.{given} needs security.tls.{lacking} beside it")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError(
                "security.tls.client_ca needs security.tls.certificate and key: without TLS nobody is asked"
            )
        if self.require_client_certificate and self.client_ca is None:
            raise ValueError("security.tls.require_client_certificate needs security.tls.client_ca, which says whose")
        return self


Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class JwtSettings(_Section):
    """Bearer tokens that an identity provider signs. Off without ``jwks``."""

    jwks: str = Field(
        "", description="The provider's public keys (a JSON Web Key Set): an https URL, or a file. Empty: no tokens."
    )
    jwks_ca_file: Path | None = Field(None, description="PEM certificates to trust for that URL, not the system's.")
    issuer: str = Field("", description="What a token's `iss` must be.")
    audience: tuple[str, ...] = Field((), description="A token's `aud` must have one of these.")
    algorithms: tuple[Algorithm, ...] = Field(
        ("RS256", "PS256", "ES256", "ES384", "EdDSA"), min_length=1, description="Signatures that are taken."
    )
    scope_claim: str = Field(
        "scope", min_length=1, description="The claim that lists scopes, with spaces between or as a list."
    )
    scope_prefix: str = Field("", description="What a scope's name begins with there: `critiq:` for `critiq:score`.")
    name_claim: str = Field("sub", min_length=1, description="The claim that names the caller.")
    leeway_seconds: float = Field(30.0, ge=0, le=600, description="How far the provider's clock may be from ours.")
    refresh_seconds: float = Field(300.0, gt=0, description="How often the keys are fetched or read again.")
    requests_per_second: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Calls a second of each caller that a token names."
    )
    concurrency: int | None = Field(None, gt=0, description="Its calls under way at once.")
    requests_per_day: int | None = Field(None, gt=0, description="Its calls a day (UTC).")

    @model_validator(mode="after")
    def _says_whose_tokens(self) -> JwtSettings:
        if not self.jwks:
            return self
        if not self.issuer or not self.audience:
            raise ValueError("security.jwt.jwks needs security.jwt.issuer and security.jwt.audience beside it")
        if "://" in self.jwks and not self.jwks.startswith("https://"):
            raise ValueError(f"security.jwt.jwks: {self.jwks!r} is no https URL; who changes the keys makes the tokens")
        return self


class SecuritySettings(_Section):
    """Keys of callers, and TLS (docs/security.md). Without a file of keys everybody who reaches the server may call."""

    keys_file: Path | None = Field(
        None, description="YAML file of the keys' hashes, written by `critiq keys new`. Empty: no keys are asked for."
    )
    reload_seconds: float = Field(
        2.0, gt=0, description="How often it is looked whether that file has changed; a change takes effect at once."
    )
    limits_directory: Path | None = Field(
        None,
        description="Directory on a local disk in which it is counted what callers have spent of their limits, for all "
        "processes that are given it, and for those that come after them. Empty: each server counts in memory; the "
        "processes of server.workers have a directory of their own, which ends with them.",
    )
    open_documents: bool = Field(
        True, description="Whether the page's files and the API's description are there for callers without a key."
    )
    jwt: JwtSettings = Field(default_factory=JwtSettings, description="Tokens of an identity provider.")
    tls: TlsSettings = Field(default_factory=TlsSettings, description="Encryption, and certificates of callers.")
