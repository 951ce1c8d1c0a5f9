"""A server's own certificate: when it is read again, what cannot be used, what is warned of."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from critiq_server.security.settings import TlsSettings
from critiq_server.security.tls import Certificates
from tests.support.certificates import Authority


def test_a_pair_that_cannot_be_used_is_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.server()
    certificates = Certificates(TlsSettings(**files.settings()))
    first = certificates.pair
    other = authority.issue("other", "localhost")

    def look(said: str) -> None:
        with capture_logs() as logs:
            certificates.look()
            assert not [entry for entry in logs if entry["log_level"] == "error"], "one look may fall between two files"
            certificates.look()
            certificates.look()
        assert [said in entry["why"] for entry in logs if entry["log_level"] == "error"] == [True], logs
        assert certificates.pair is first

    files.certificate.write_bytes(other.certificate.read_bytes())
    look("is not that of the certificate")
    files.certificate.write_text("nonsense")
    look("no certificate and key in PEM")
    files.key.unlink()
    look("cannot read")
    locked = ["openssl", "genpkey", "-algorithm", "RSA", "-aes-128-cbc", "-pass", "pass:word", "-out", str(files.key)]
    subprocess.run(locked, check=True, capture_output=True)
    look("has a passphrase")
    authority.server()
    certificates.look()
    assert certificates.pair is not first


def test_a_mounted_secret_is_exchanged_by_turning_a_link(tmp_path: Path) -> None:
    """As Kubernetes does: ``..data`` is a link to a folder; the files are links through it."""
    volume = tmp_path / "volume"
    volume.mkdir()
    for version in ("one", "two"):
        made = Authority(tmp_path / version).server("tls")
        assert made.certificate.parent == tmp_path / version
    (volume / "..data").symlink_to(tmp_path / "one")
    for name in ("tls.pem", "tls.key"):
        (volume / name).symlink_to(Path("..data") / name)
    certificates = Certificates(TlsSettings(certificate=volume / "tls.pem", key=volume / "tls.key"))
    first = certificates.pair.chain
    (volume / "..new").symlink_to(tmp_path / "two")
    (volume / "..new").replace(volume / "..data")
    certificates.look()
    assert first != certificates.pair.chain == (tmp_path / "two/tls.pem").read_bytes()


def test_the_end_is_known_and_warned_of(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    now = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    for days, warnings in ((15, []), (13, ["expires soon"]), (-1, ["has expired"])):
        ends = now + timedelta(days=days, minutes=5)
        told: list[float] = []
        with capture_logs() as logs:
            certificates = Certificates(
                TlsSettings(**authority.server(not_after=ends).settings()),
                lambda pair, told=told: told.append(pair.ends),
            )
            certificates.look()  # said once a day
        assert told == [ends.replace(tzinfo=UTC).timestamp()]
        assert [entry["event"].partition("certificate ")[2] for entry in logs] == warnings


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_key_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    files = Authority(tmp_path).server()
    for mode, warned in ((0o600, False), (0o640, True), (0o604, True)):
        files.key.chmod(mode)
        with capture_logs() as logs:
            Certificates(TlsSettings(**files.settings()))
        assert any("private key" in entry["event"] for entry in logs) == warned, f"{mode:o}"


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_mounted_key_may_be_read_by_the_servers_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Authority(tmp_path).server()
    monkeypatch.setattr(os, "geteuid", lambda: files.key.stat().st_uid + 10001)
    for mode, warned in ((0o440, False), (0o444, True)):
        files.key.chmod(mode)
        with capture_logs() as logs:
            Certificates(TlsSettings(**files.settings()))
        assert any("private key" in entry["event"] for entry in logs) == warned, f"{mode:o}"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"certificate": "a"}, "certificate needs security.tls.key"),
        ({"key": "a"}, "key needs security.tls.certificate"),
        ({"client_ca": "a"}, "client_ca needs"),
        ({"certificate": "a", "key": "b", "require_client_certificate": True}, "needs security.tls.client_ca"),
        ({"min_version": "1.1"}, "'1.2' or '1.3'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TlsSettings(**values)
    assert TlsSettings.model_validate({"min_version": 1.3}).min_version == "1.3"  # what YAML makes of it
