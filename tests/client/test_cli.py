"""The command line against the fake server."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import critiq
from critiq.cli import main
from critiq.cli.ledger import Ledger
from tests.client.fake_server import Behaviour, FakeServer

COMMAND = [sys.executable, "-m", "critiq.cli"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four grey pictures, one below another directory; and a file that is no picture."""
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    for name, shade in (("a.png", 10), ("b.png", 20), ("c.PNG", 30), ("deep/d.png", 40)):
        Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(pictures / name)
    (pictures / "notes.md").write_text("no picture")
    return pictures


class Cli:
    """Runs commands in this process, which is a second faster than in one of their own."""

    def __init__(self, url: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.chdir(directory)
        monkeypatch.setenv("CRITIQ_URL", url)
        monkeypatch.setenv("COLUMNS", "200")

    def __call__(self, *arguments: object, code: int = 0, stdin: bytes = b"") -> Output:
        self._monkeypatch.setattr(sys, "argv", ["critiq", *map(str, arguments)])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code, (ended.value.code, out.getvalue(), err.getvalue())
        return Output(out.getvalue(), err.getvalue())

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """The same in a process of its own, in this process's directory and environment."""
        return subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=PIPE, stderr=PIPE, text=True)


class Output(NamedTuple):
    stdout: str
    stderr: str


@pytest.fixture
def cli(server: FakeServer, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(server.url(transport), tmp_path, monkeypatch)


@pytest.fixture
def grpc_cli(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(server.grpc_url, tmp_path, monkeypatch)


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return list(pyarrow.parquet.read_table(path).to_pylist())


def test_one_picture(cli: Cli, folder: Path) -> None:
    shown = cli("score", folder / "a.png", "--prompt", "two words").stdout
    assert "visual_quality" in shown
    assert "alignment" in shown
    assert "of shades of grey" in shown


def test_one_picture_as_json(cli: Cli, folder: Path) -> None:
    row = json.loads(cli("score", folder / "a.png", "--json", "--dimension", "visual_quality").stdout)
    expected = float(np.frombuffer((folder / "a.png").read_bytes(), np.uint8).mean() / 255)
    assert list(row["scores"]) == ["visual_quality"]
    assert row["scores"]["visual_quality"]["raw"] == pytest.approx(expected)
    assert row["file"] == str(folder / "a.png")


def test_standard_input(cli: Cli, folder: Path) -> None:
    row = json.loads(cli("score", "-", "--json", stdin=(folder / "a.png").read_bytes()).stdout)
    assert row["scores"] == json.loads(cli("score", folder / "a.png", "--json").stdout)["scores"]


def test_directory(cli: Cli, folder: Path) -> None:
    shown = cli("score", folder.name).stdout
    order = [shown.index(f"pictures/{name}") for name in ("a.png", "b.png", "c.PNG", "deep/d.png")]
    assert order == sorted(order)
    assert "notes" not in shown


def test_directory_as_json_lines(cli: Cli, folder: Path) -> None:
    lines = cli("score", folder, "--json").stdout.splitlines()
    assert len(lines) == 4
    assert all("visual_quality" in json.loads(line)["scores"] for line in lines)


def test_some_fail(cli: Cli, folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"bad")
    (folder / "empty.png").touch()
    shown = cli("score", folder, code=1).stdout
    assert "no picture" in shown
    assert "is empty" in shown
    lines = [json.loads(line) for line in cli("score", folder, "--json", code=1).stdout.splitlines()]
    failed = {Path(line["file"]).name: line["error"]["code"] for line in lines if line.get("error")}
    assert failed == {"bad.png": "INVALID_ARGUMENT", "empty.png": "INVALID_ARGUMENT"}


def test_fail_fast(grpc_cli: Cli, folder: Path, behaviour: Behaviour) -> None:
    (folder / "a.png").write_bytes(b"bad")
    run = grpc_cli("score", folder, "--fail-fast", "--concurrency", 1, code=1)
    assert "a.png: " in run.stderr
    assert len(behaviour.items) <= 2


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_output(cli: Cli, folder: Path, tmp_path: Path, suffix: str, behaviour: Behaviour) -> None:
    (folder / "bad.png").write_bytes(b"bad")
    output = tmp_path / f"scores{suffix}"
    cli("score", folder, "--output", output, "--prompt", 'with "quotes",\ncommas and é', code=1)
    rows = {Path(row["file"]).name: row for row in rows_of(output)}
    assert list(rows) == ["a.png", "b.png", "bad.png", "c.PNG", "d.png"]
    expected = float(np.frombuffer((folder / "a.png").read_bytes(), np.uint8).mean() / 255)
    assert float(rows["a.png"]["visual_quality_raw"]) == pytest.approx(expected)
    assert rows["a.png"]["prompt"] == 'with "quotes",\ncommas and é'
    assert rows["a.png"]["model"] == "mean"
    assert not rows["a.png"].get("error")
    assert rows["bad.png"]["error"].startswith("INVALID_ARGUMENT")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "scores"))] == [output.name]

    # Again: only the failure is tried once more, and now it works.
    Image.fromarray(np.full((8, 8, 3), 50, np.uint8)).save(folder / "bad.png")
    behaviour.items.clear()
    behaviour.calls.clear()
    again = cli("score", folder, "--output", output, "--prompt", 'with "quotes",\ncommas and é')
    assert "4 of 5 are scored already" in again.stderr
    assert len(behaviour.items) + behaviour.calls.count("Scoring/Score") == 1
    renewed = {Path(row["file"]).name: row for row in rows_of(output)}
    assert renewed["a.png"] == rows["a.png"]
    assert not any(row.get("error") for row in renewed.values())


def test_output_of_another_question_is_asked_anew(grpc_cli: Cli, folder: Path, behaviour: Behaviour) -> None:
    grpc_cli("score", folder, "--output", "s.csv")
    grpc_cli("score", folder, "--output", "s.csv", "--prompt", "now with one")
    assert len(behaviour.items) == 8
    grpc_cli("score", folder, "--output", "s.csv", "--prompt", "now with one", "--dimension", "alignment")
    assert len(behaviour.items) == 8


def test_output_keeps_rows_about_other_files(grpc_cli: Cli, folder: Path, tmp_path: Path) -> None:
    grpc_cli("score", folder / "deep", "--output", "s.jsonl")
    grpc_cli("score", folder / "b.png", folder / "a.png", "--output", "s.jsonl")
    assert [Path(row["file"]).name for row in rows_of(tmp_path / "s.jsonl")] == ["d.png", "b.png", "a.png"]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_killed_run_is_taken_up_again(
    cli: Cli, behaviour: Behaviour, tmp_path: Path, folder: Path, stop: signal.Signals
) -> None:
    for index in range(40):
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(folder / f"more{index:02}.png")
    command = ("score", folder, "--output", "s.csv", "--concurrency", 2)
    behaviour.delay = 0.2  # four seconds in all: long enough to be killed on a busy machine
    process = cli.start(*command)
    journal = tmp_path / "s.csv.part.jsonl"
    wait_until(lambda: journal.exists() and journal.read_text().count("\n") >= 5)
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=120)
    assert not (tmp_path / "s.csv").exists()
    if stop is signal.SIGINT:
        assert process.returncode == 130
        assert "of 44 done and kept; to go on, run again: critiq score" in stderr
        assert "Traceback" not in stderr
    with journal.open("a") as file:
        file.write('{"file": "torn li')  # what a crash in the middle of a write leaves

    kept = journal.read_text().count("\n")
    behaviour.delay = 0.0
    behaviour.items.clear()
    behaviour.calls.clear()
    assert f"{kept} of 44 are scored already" in cli(*command).stderr
    assert len(behaviour.items) + behaviour.calls.count("Scoring/Score") == 44 - kept
    rows = rows_of(tmp_path / "s.csv")
    assert len(rows) == 44
    assert all(row["visual_quality_raw"] for row in rows)
    assert not journal.exists()


def test_server_that_goes_away_in_the_middle(grpc_cli: Cli, folder: Path, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.break_stream_after = [2] + [0] * 20
    run = grpc_cli("score", folder, "--output", "s.csv", "--retries", 1, code=3)
    assert "2 of 4 done and kept" in run.stderr
    behaviour.break_stream_after = []
    grpc_cli("score", folder, "--output", "s.csv")
    assert len(rows_of(tmp_path / "s.csv")) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "file,prompt,other\npictures/a.png,first,1\nb.png,second,2\ndeep/d.png,fourth,3\n"),
        ("p.csv", '\ufefffile_name,caption\n{folder}/a.png,first\nb.png,second\nd.png,"fourth"\n'),
        ("p.jsonl", '{"file": "a.png", "prompt": "first"}\n\n{"path": "./b.png", "text": "second"}\n'
                    '{"image": "pictures/deep/d.png", "caption": "fourth"}\n'),
        ("p.txt", "a.png\tfirst\nb.png\tsecond\n\ndeep/d.png\tfourth\n"),
    ],
)  # fmt: skip
def test_prompts(grpc_cli: Cli, folder: Path, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content.replace("{folder}", str(folder)))
    run = grpc_cli("score", "pictures", "--prompts", name, "--output", "s.jsonl")
    prompts = {Path(row["file"]).name: row.get("prompt", "") for row in rows_of(tmp_path / "s.jsonl")}
    assert prompts == {"a.png": "first", "b.png": "second", "c.PNG": "", "d.png": "fourth"}
    assert "1 of 4 pictures have no prompt, for instance pictures/c.PNG" in run.stderr


def test_prompt_sidecars(grpc_cli: Cli, folder: Path) -> None:
    (folder / "a.txt").write_text("first\n")
    (folder / "b.png.txt").write_text("second")
    lines = [json.loads(line) for line in grpc_cli("score", folder, "--prompt-sidecars", "--json").stdout.splitlines()]
    assert {Path(line["file"]).name: line["prompt"] for line in lines} == {
        "a.png": "first",
        "b.png": "second",
        "c.PNG": "",
        "d.png": "",
    }


def test_rank(cli: Cli, folder: Path) -> None:
    lines = [json.loads(line) for line in cli("rank", folder, "--json", "--prompt", "x").stdout.splitlines()]
    raw = [line["score"]["raw"] for line in lines]
    assert [line["rank"] for line in lines] == [1, 2, 3, 4]
    assert raw == sorted(raw, reverse=True)
    assert len(cli("rank", folder, "--top-k", 1, "--json").stdout.splitlines()) == 1
    assert "rank" in cli("rank", folder / "a.png", folder / "b.png").stdout


def test_compare(cli: Cli, folder: Path) -> None:
    [comparison] = json.loads(cli("compare", folder / "a.png", folder / "a.png", "--json").stdout)["comparisons"]
    assert comparison["preference"] == "tie"
    assert "better" in cli("compare", folder / "a.png", folder / "b.png").stdout


def test_models(cli: Cli) -> None:
    assert "mean (default)" in cli("models").stdout
    assert json.loads(cli("models", "list", "--json").stdout)["name"] == "mean"
    assert "How bright it is." in cli("models", "get").stdout
    assert "unloaded mean" in cli("models", "unload", "mean").stdout
    assert json.loads(cli("models", "get", "mean", "--json").stdout)["state"] == "available"
    assert json.loads(cli("models", "load", "mean", "--version", "1", "--json").stdout)["state"] == "ready"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score"], "Missing argument"),
        (["score", "nothing.png"], "no such file or directory: nothing.png"),
        (["score", "empty"], "no pictures (.avif"),
        (["score", "pictures", "--prompt", "x", "--prompt-sidecars"], "exclude each other"),
        (["score", "pictures", "--prompts", "none.csv"], "no such file: none.csv"),
        (["score", "pictures", "--prompts", "p.xls"], "prompts come as"),
        (["score", "pictures", "--prompts", "twice.txt"], "line 2: a second prompt for a.png"),
        (["score", "pictures", "--prompts", "columns.csv"], "none of the columns file,"),
        (["score", "pictures", "--prompts", "latin.txt"], "cannot read latin.txt"),
        (["score", "pictures", "--output", "s.xls"], "must end in"),
        (["score", "pictures", "--output", "no/such/s.csv"], "no such directory"),
        (["score", "pictures", "--output", "foreign.csv"], "is not ours"),
        (["score", "pictures", "--concurrency", "0"], "concurrency"),
        (["score", "pictures/a.png", "--model", "other"], "known are"),
        (["score", "pictures/a.png", "--url", "ftp://x"], "url: 'ftp://x'"),
        (["score", "pictures/bad.png"], "image.encoded: no picture"),
        (["rank", "nothing.png"], "no such file"),
        (["compare", "pictures/a.png", "nothing.png"], "second: cannot read"),
        (["models", "load"], "needs a name"),
        (["models", "list", "mean"], "takes no name"),
        (["models", "frob"], "frob"),
        (["models", "get", "other"], "known are"),
    ],
)
def test_bad_input(grpc_cli: Cli, folder: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "p.xls").touch()
    (tmp_path / "twice.txt").write_text("a.png\tone\na.png\ttwo\n")
    (tmp_path / "columns.csv").write_text("name,prompt\na.png,x\n")
    (tmp_path / "latin.txt").write_bytes(b"a.png\tcaf\xe9\n")
    (tmp_path / "foreign.csv").write_text("id,value\n1,2\n")
    if "pictures/bad.png" in arguments:
        (folder / "bad.png").write_bytes(b"bad")
    assert words in " ".join(grpc_cli(*arguments, code=2).stderr.split())


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_unreachable(grpc_cli: Cli, folder: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = grpc_cli.start("score", folder / "a.png", "--retries", 0, "--url", f"{scheme}127.0.0.1:{port}")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("critiq: ")


def test_too_busy(cli: Cli, folder: Path, behaviour: Behaviour) -> None:
    behaviour.refuse = [critiq.TooBusy("full")]
    cli("models", "--retries", 0, code=3)


def test_too_late(cli: Cli, folder: Path, behaviour: Behaviour) -> None:
    behaviour.delay = 5.0
    cli("score", folder / "a.png", "--timeout", 0.2, code=4)


def test_serve_without_the_server(tmp_path: Path) -> None:
    code = "import sys; sys.modules['critiq_server'] = None; sys.argv[1:] = ['serve', '--port', '1']; "
    code += "from critiq.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert "pip install 'critiq[server]'" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_serve_hands_its_arguments_on() -> None:
    code = (
        "import sys, types; package = types.ModuleType('critiq_server'); package.__path__ = []; "
        "cli = types.ModuleType('critiq_server.cli'); cli.main = lambda arguments: print(arguments) or 7; "
        "sys.modules |= {'critiq_server': package, 'critiq_server.cli': cli}; "
        "sys.argv[1:] = ['serve', '--grpc-port', '9', '--help', 'x']; from critiq.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 7
    assert run.stdout.strip() == "['--grpc-port', '9', '--help', 'x']"


def test_help_tells_the_exit_codes(grpc_cli: Cli) -> None:
    for command in ([], ["score"], ["rank"], ["compare"], ["models"]):
        assert "130 interrupted" in " ".join(grpc_cli(*command, "--help").stdout.split())
    assert grpc_cli("--version").stdout.startswith("critiq ")


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"pip install 'critiq\[parquet\]'"):
        Ledger(tmp_path / "s.parquet")


def wait_until(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "that took too long"
        time.sleep(0.02)
