"""Keys: their form, their file, what they may ask for, and the command that makes them."""

from __future__ import annotations

import errno
import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from critiq.errors import TooBusy
from critiq_server.security import keys_cli
from critiq_server.security.guard import Guard
from critiq_server.security.keys import Key, KeysError, Ring, append, new_key, read_keys
from critiq_server.security.limits import Allowance, caller
from critiq_server.security.settings import SecuritySettings


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def allowance(clock: Clock, **limits: Any) -> Allowance:
    return Allowance(new_key("caller", ["score"], **limits)[1], None, clock, clock)


def test_a_key_is_found_and_nothing_else_is() -> None:
    text, key = new_key("trainer", ["score"])
    ring = Ring([key])
    assert ring.find(text) == key
    last = "0" if text[-1] != "0" else "1"
    for other in (text[:-1] + last, text[:-1], text + "0", text.upper(), "", " ", new_key("x", ["score"])[0], "é"):
        assert ring.find(other) is None, other


def test_the_file_has_the_hash_and_not_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.yaml"
    assert (
        keys_cli.main(["new", "trainer", "--scopes", "score, models", "--concurrency", "3", "--file", str(path)]) == 0
    )
    out, err = capsys.readouterr()
    text = out.strip()
    written = path.read_text()
    assert text.rpartition("_")[2] not in written
    assert text not in err
    assert hashlib.sha256(text.encode()).hexdigest() in written
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_keys(path).find(text)
    assert found is not None
    assert (found.name, found.scopes, found.concurrency) == ("trainer", ("score", "models"), 3)
    assert keys_cli.main(["list", "--file", str(path)]) == 0
    assert capsys.readouterr().out == f"trainer\t{found.id}\tscore,models\t3 at once\n"


def test_keys_are_added_and_what_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    first, entry = new_key("first", ["score"])
    path.write_text("# ours\n" + yaml.safe_dump([entry.model_dump(mode="json")]).rstrip("\n"))
    second, other = new_key("second", ["metrics"], 0.5, 1, 10)
    append(path, other)
    assert path.read_text().startswith("# ours\n")
    ring = read_keys(path)
    assert ring.find(first) == entry
    assert ring.find(second) == other


def test_a_file_of_another_form_is_not_spoilt(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    for content in ("[]\n", "some: thing\n", "- name: [\n"):
        path.write_text(content)
        with pytest.raises(KeysError, match=r"keys\.yaml"):
            append(path, new_key("second", ["score"])[1])
        assert path.read_text() == content


ENTRY = {"name": "a", "id": "0" * 16, "sha256": "0" * 64, "scopes": ["score"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: b", "valid tuple"),
        ("- : :\n  x: [", "no YAML"),
        (
            yaml.safe_dump([ENTRY | {"scopes": ["all"]}]),
            r"0\.scopes\.0: Input should be 'score', 'models', 'metrics' or 'admin'",
        ),
        (yaml.safe_dump([ENTRY | {"scopes": []}]), r"0\.scopes: .*at least 1"),
        (yaml.safe_dump([ENTRY | {"hash": "x"}]), r"0\.hash: Extra inputs"),
        (yaml.safe_dump([ENTRY | {"requests_per_second": -1}]), r"0\.requests_per_second: .*greater than 0"),
        (yaml.safe_dump([ENTRY, ENTRY]), "has the id 0000000000000000 twice"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(KeysError, match=said) as caught:
        read_keys(path)
    assert "0" * 64 not in str(caught.value)


def test_a_missing_file_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="critiq keys new"):
        read_keys(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["new", "a b"], "name: 'a b'"),
        (["new", "a", "--scopes", "score,root"], "scopes: 'root'"),
        (["new", "a", "--scopes", ","], "scopes: "),
        (["new", "a", "--concurrency", "0"], "concurrency: 0"),
        (["new"], "Missing argument"),
        (["list", "--file", "no/such.yaml"], "cannot be read"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert keys_cli.main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_rate_is_a_bucket_of_one_second() -> None:
    clock = Clock()
    left = allowance(clock, requests_per_second=4)
    for _ in range(4):
        left.spend()
    with pytest.raises(TooBusy) as caught:
        left.spend()
    assert caught.value.retry_after == pytest.approx(0.25)
    clock.now = 0.25
    left.spend()
    with pytest.raises(TooBusy):
        left.spend()
    clock.now = 100.0
    for _ in range(4):
        left.spend()
    with pytest.raises(TooBusy):
        left.spend()


def test_the_day_ends_at_midnight() -> None:
    clock = Clock(86_400 * 20_000 + 86_000)
    left = allowance(clock, requests_per_day=2)
    left.spend()
    left.spend()
    with pytest.raises(TooBusy, match="2 requests of this day") as caught:
        left.spend()
    assert caught.value.retry_after == 400
    clock.now += 400
    left.spend()


def test_calls_under_way_are_counted_whatever_they_end_in() -> None:
    left = allowance(Clock(), concurrency=1)
    with left.call():
        assert caller.get() == "caller"
        with pytest.raises(TooBusy, match="1 calls under way"):
            left.check_room()
    with pytest.raises(ZeroDivisionError), left.call():
        _ = 1 / 0
    left.check_room()


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    text, key = new_key("a", ["score"], requests_per_day=2)
    append(path, key)
    guard = Guard(SecuritySettings(keys_file=path), path)
    spent = guard.admit(text, {"score"}, "call")

    path.write_text("- broken")
    guard.look()
    assert guard.admit(text, {"score"}, "call") is spent
    path.unlink()
    guard.look()
    with pytest.raises(TooBusy):
        guard.admit(text, {"score"}, "call")

    write(path, key.model_copy(update={"requests_per_day": 3}))
    guard.look()
    guard.admit(text, {"score"}, "call")
    with pytest.raises(TooBusy, match="3 requests"):  # what was spent stays spent
        guard.admit(text, {"score"}, "call")
    write(path)
    guard.look()
    with pytest.raises(Exception, match="not known here"):
        guard.admit(text, {"score"}, "call")


def test_a_read_that_fails_once_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a key that was withdrawn would stay valid until the file changes once more."""
    path = tmp_path / "keys.yaml"
    (kept, first), (withdrawn, second) = new_key("kept", ["score"]), new_key("withdrawn", ["score"])
    write(path, first, second)
    guard = Guard(SecuritySettings(keys_file=path), path)
    write(path, first)
    with monkeypatch.context() as patch, capture_logs() as lines:
        patch.setattr(Path, "read_bytes", no_files_left)
        for _ in range(3):
            guard.look()
    assert [line["log_level"] for line in lines] == ["error"], "said once"
    guard.admit(withdrawn, {"score"}, "call")

    guard.look()
    guard.admit(kept, {"score"}, "call")
    with pytest.raises(Exception, match="not known here"):
        guard.admit(withdrawn, {"score"}, "call")


def test_a_change_of_rights_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    write(path, new_key("a", ["score"])[1])
    guard = Guard(SecuritySettings(keys_file=path), path)
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:  # file systems' clocks tick every few milliseconds
        path.chmod(0o640)
    with capture_logs() as lines:
        guard.look()
        guard.look()
    assert [line["event"] for line in lines] == ["keys read again"]


def no_files_left(path: Path) -> bytes:
    raise OSError(errno.EMFILE, "Too many open files")


def write(path: Path, *keys: Key) -> None:
    path.write_text(yaml.safe_dump([key.model_dump(mode="json") for key in keys]))


def test_what_comes_after_a_call_has_no_caller() -> None:
    with Allowance(new_key("robot", ["score"])[1]).call():
        assert caller.get() == "robot"
    assert caller.get() is None
