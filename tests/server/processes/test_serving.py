"""Several processes behind one port, as `critiq serve --workers` starts them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client.parser import text_string_to_metric_families

import critiq
from critiq.aliases import ShadowReport
from critiq.errors import CritiqError
from critiq.types import Processes
from tests.support import requests
from tests.support.bundles import write_bundle, write_simulated
from tests.support.receiver import receiving
from tests.support.servers import ServerProcess, server_process
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="several processes need Linux or macOS")]


@dataclass
class Pair(ServerProcess):
    """``socket``: where they answer gRPC, too."""

    socket: Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models")
    return tmp_path


@contextmanager
def serving(root: Path, *more: str) -> Iterator[ServerProcess]:
    flags = ["--workers=2", "--models", str(root / "models"), "--default", "tiny", "--load", "tiny"]
    with server_process([*flags, *more], root / "log") as server:
        yield server


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two processes; whatever a test does to them, they are two again after it."""
    root = tmp_path_factory.mktemp("pair")
    write_bundle(root / "models")
    write_bundle(root / "models", "other")
    for version, bias in (("1", 0.0), ("2", 0.2)):
        write_bundle(root / "models", "judged", version=version, bias=bias)
    socket = Path(tempfile.mkdtemp()) / "grpc.sock"  # a short path: sockets' names are limited
    flags = ["models.allow_changes=true", f"server.grpc_socket={socket}"]
    with serving(root, *(part for flag in flags for part in ("--set", flag))) as server:
        yield Pair(**vars(server), socket=socket)
        assert server.terminate() == 0


def children(server: ServerProcess) -> list[psutil.Process]:
    def is_alive(child: psutil.Process) -> bool:
        try:
            return bool(child.status() != "zombie")
        except psutil.NoSuchProcess:  # it went while we looked
            return False

    return [child for child in psutil.Process(server.process.pid).children() if is_alive(child)]


def value(server: ServerProcess, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    text = httpx.get(server.metrics, timeout=120).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "did not come true"
        time.sleep(0.05)


def model_state(server: ServerProcess, name: str) -> str:
    """As any of the processes tells it."""
    return str(httpx.get(f"{server.rest}/v1/models/{name}").json()["state"])


def score(server: ServerProcess, level: int, **fields: str) -> int:
    """Over a connection of its own, so that any process may get it."""
    files = {"image": requests.flat(level)}
    return httpx.post(f"{server.rest}/v1/score", files=files, data=fields, timeout=120).status_code


def test_processes_share_ports_and_sum_their_metrics(pair: Pair) -> None:
    assert len(children(pair)) == 2
    for level in range(40):
        assert score(pair, level) == 200
    with critiq.Client(f"grpc://{pair.grpc}") as client:
        assert client.score(requests.flat(9)).scores[0].model == "tiny"
    assert value(pair, "critiq_requests_total", operation="score", code="OK") == 41
    assert value(pair, "critiq_processes") == 2
    assert value(pair, "critiq_model_ready", model="tiny") == 1


@pytest.mark.parametrize("flag", ["--rest-port", "--grpc-port"])
def test_a_port_that_is_taken_is_named(pair: Pair, root: Path, flag: str) -> None:
    url = pair.rest if flag == "--rest-port" else pair.grpc
    with pytest.raises(AssertionError, match=f"another {flag}"), serving(root, f"{flag}={url.rpartition(':')[2]}"):
        pass


def test_a_process_that_is_killed_under_load_costs_a_caller_who_retries_nothing(pair: Pair) -> None:
    outcomes: Counter[str] = Counter()

    async def caller(url: str, number: int) -> None:
        async with critiq.AsyncClient(url, retries=5) as client:
            for level in range(60):
                try:
                    await client.score(requests.flat((number * 60 + level) % 256))
                    outcomes["OK"] += 1
                except CritiqError as error:
                    outcomes[error.code] += 1

    async def load() -> None:
        victim = children(pair)[0]
        urls = [pair.rest, f"grpc://{pair.grpc}"] * 4
        callers = [asyncio.create_task(caller(url, number)) for number, url in enumerate(urls)]
        await until(lambda: outcomes["OK"] > 20)
        victim.send_signal(signal.SIGKILL)
        await asyncio.gather(*callers)

    before, restarts = value(pair, "critiq_requests_total"), value(pair, "critiq_process_restarts_total")
    asyncio.run(load())
    assert outcomes == {"OK": 480}
    wait_for(lambda: value(pair, "critiq_processes") == 2)
    assert value(pair, "critiq_process_restarts_total") == restarts + 1
    counted = value(pair, "critiq_requests_total")
    assert counted >= before
    assert score(pair, 1) == 200
    assert value(pair, "critiq_requests_total") == counted + 1


def test_loading_and_unloading_reach_all_and_one_that_comes_later(pair: Pair) -> None:
    def states(name: str) -> set[str]:
        return {model_state(pair, name) for _ in range(20)}

    assert states("other") == {"available"}
    with critiq.Client(pair.rest) as client:
        client.load_model("other")
        assert states("other") == {"ready"}
        restarts = value(pair, "critiq_process_restarts_total")
        children(pair)[0].kill()
        wait_for(lambda: value(pair, "critiq_process_restarts_total") == restarts + 1)
        wait_for(lambda: value(pair, "critiq_processes") == 2)
        assert states("other") == {"ready"}
    with critiq.Client(pair.rest) as client:
        client.unload_model("other")
        assert states("other") == {"available"}


def test_an_alias_is_the_same_in_all(pair: Pair) -> None:
    def knows() -> bool:
        """Over a connection of its own, so that any process may get it."""
        return score(pair, 7, model="live") == 200

    assert not knows()
    with critiq.Client(pair.rest) as client:
        client.set_alias("live", ["tiny:1"])
    wait_for(lambda: all(knows() for _ in range(12)), 120)


def drift_of(process: psutil.Process) -> int:
    """Values that one process has of the model that is judged, as the others are told."""
    member = json.loads(process.environ()["CRITIQ_PROCESS"])
    socket = httpx.HTTPTransport(uds=f"{member['directory']}/{member['name']}.sock")
    with httpx.Client(transport=socket, timeout=120) as http:
        series = http.post("http://process/ask/drift", json={"model": "judged"}).json()["series"]
    return next((entry["count"] for entry in series if "brightness" in entry["key"]), 0)


def test_reports_are_of_all_whoever_answers_hangs_or_dies(pair: Pair) -> None:
    def drift() -> tuple[int, dict[str, object]]:
        answer = httpx.get(f"{pair.rest}/v1/drift?model=judged", timeout=120)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        (count,) = (entry["count"] for entry in found["series"] if entry["name"] == "brightness")
        return count, found["processes"]

    all_of_them = {"answered": 2, "of": 2, "missing": []}
    with critiq.Client(pair.rest) as client:
        client.set_alias("judged-by-two", ["judged:1"], shadow="judged:2=100")
    asked = {"model": "judged-by-two"}
    sent, one_call_each = 0, httpx.Limits(max_keepalive_connections=0)
    with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=pair.rest, limits=one_call_each, timeout=120) as http:
        while sent < 40 or min(map(drift_of, children(pair))) < 8:
            files = [{"image": requests.flat(10 * level + sent // 8)} for level in range(8)]
            answers = list(pool.map(lambda image: http.post("/v1/score", files=image, data=asked), files))
            assert {answer.status_code for answer in answers} == {200}
            sent += 8
    assert [drift() for _ in range(4)] == [(sent, all_of_them)] * 4
    calls = httpx.get(f"{pair.rest}/v1/live", timeout=120).json()["calls"]
    assert [entry["count"] for entry in calls if entry["model"] == "judged-by-two"] == [sent]

    def shadow() -> ShadowReport:
        with critiq.Client(pair.rest) as client:
            return client.shadow_report("judged-by-two")

    wait_for(lambda: shadow().scored == sent)
    brightness = shadow().pairs[0].dimensions[0]
    assert (brightness.count, brightness.window, brightness.srcc) == (sent, sent, pytest.approx(1.0))

    stays, goes = sorted(children(pair), key=lambda child: child.pid)
    left, number = drift_of(stays), json.loads(goes.environ()["CRITIQ_PROCESS"])["number"]
    without = {"answered": 1, "of": 2, "missing": [number]}
    goes.suspend()
    assert drift() == (left, without)
    goes.resume()
    assert drift() == (sent, all_of_them)
    goes.kill()
    goes.wait(120)
    assert shadow().processes == Processes(1, 2, (number,))
    wait_for(lambda: drift() == (left, all_of_them))
    assert shadow().scored < sent, "what a process counted dies with it"


def test_a_hangup_replaces_the_processes_and_refuses_nobody(pair: Pair) -> None:
    before = {child.pid for child in children(pair)}
    restarts = value(pair, "critiq_process_restarts_total")
    outcomes: Counter[str] = Counter()
    pair.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(children(pair)) == 3)
    with critiq.Client(pair.rest) as client:
        client.load_model("other")  # while another process begins
    with critiq.Client(pair.rest) as rest, critiq.Client(f"grpc://{pair.grpc}") as over_grpc:
        limit = time.monotonic() + 60
        while {child.pid for child in children(pair)} & before:
            assert time.monotonic() < limit
            for client in (rest, over_grpc):
                found = client.score(requests.flat(sum(outcomes.values()) % 256))
                outcomes[found.scores[0].model] += 1
    assert set(outcomes) == {"tiny"}
    wait_for(lambda: value(pair, "critiq_processes") == 2)
    assert value(pair, "critiq_process_restarts_total") == restarts
    assert {model_state(pair, "other") for _ in range(12)} == {"ready"}
    with critiq.Client(f"unix:{pair.socket}") as client:
        assert client.score(requests.flat(3)).scores[0].model == "tiny"


def test_one_that_hangs_at_its_start_keeps_nobody_from_being_replaced(pair: Pair) -> None:
    before = children(pair)
    pair.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(children(pair)) == 3)
    hangs = next(child for child in children(pair) if child not in before)
    hangs.suspend()
    for child in before:
        child.kill()
    wait_for(lambda: value(pair, "critiq_processes") == 1)
    assert score(pair, 5) == 200
    hangs.resume()
    wait_for(lambda: value(pair, "critiq_processes") == 2)


async def test_jobs_are_done_once_whoever_took_them_and_whoever_dies(root: Path) -> None:
    write_simulated(root / "models", batch_ms=20, max_batch=1)
    async with receiving() as receiver:
        flags = [f"jobs.path={root / 'jobs'}", f"jobs.callbacks={json.dumps(receiver.settings())}"]
        sets = [flag for text in flags for flag in ("--set", text)]
        with serving(root, *sets, "--load", "simulated") as server:
            names = []
            for number in range(8):
                async with critiq.AsyncClient(server.rest, retries=8) as client:  # a connection each
                    job = await client.submit_job(
                        [requests.flat(number * 20 + item) for item in range(10)],
                        model="simulated",
                        callback=receiver.url,
                    )
                    names.append(job.id)
            works = next(child for child in children(server) if has_turn(child))
            works.kill()
            await asyncio.to_thread(wait_for, lambda: any(map(has_turn, children(server))))
            async with critiq.AsyncClient(server.rest, retries=8) as client:
                for name in names:
                    job = await client.wait_job(name, timeout=60)
                    assert (job.state, job.answered, job.failed) == ("done", 10, 0)
            await receiver.told(8)
            messages = Counter(message for message, _ in receiver.events)
            assert len(messages) == 8
            assert sum(messages.values()) <= 9, "only what was under way at the kill may come again"
            assert await asyncio.to_thread(server.terminate) == 0


def has_turn(process: psutil.Process) -> bool:
    try:
        return any(opened.path.endswith(".turn") for opened in process.open_files())
    except psutil.Error:
        return False


def test_stopping_answers_what_was_accepted_in_every_process(root: Path) -> None:
    write_simulated(root / "models", batch_ms=400, max_batch=4)
    with serving(root, "--load", "simulated") as server:

        async def load() -> Counter[int]:
            limits = httpx.Limits(max_keepalive_connections=0)
            async with httpx.AsyncClient(base_url=server.rest, timeout=60, limits=limits) as http:

                async def one(level: int) -> int:
                    files = {"image": requests.flat(level)}
                    return (await http.post("/v1/score", files=files, data={"model": "simulated"})).status_code

                callers = [asyncio.create_task(one(level)) for level in range(24)]
                await until(lambda: value(server, "critiq_in_flight") == 24)
                # A service manager tells every process, a terminal its foreground group, and the first one tells all.
                group = children(server)
                assert all(os.getpgid(child.pid) != os.getpgid(server.process.pid) for child in group)
                for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
                    for child in group:
                        child.send_signal(number)
                server.process.send_signal(signal.SIGTERM)
                return Counter(await asyncio.gather(*callers))

        assert asyncio.run(load()) == {200: 24}
        assert server.process.wait(120) == 0


def test_summed_metrics_ask_for_tokens_and_processes_end_with_the_one_that_started_them(root: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    entry = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    (root / "jwks.json").write_text(json.dumps({"keys": [{**entry, "kid": "one"}]}))
    asks = {"jwks": str(root / "jwks.json"), "issuer": "https://id.example.com", "audience": ["critiq"]}
    claims = {"iss": asks["issuer"], "aud": "critiq", "sub": "prometheus", "exp": time.time() + 600, "scope": "metrics"}
    token = jwt.encode(claims, key, "ES256", {"kid": "one"})
    with serving(root, "--set", f"security.jwt={json.dumps(asks)}") as server:
        assert httpx.get(server.metrics).status_code == 401
        assert httpx.get(server.metrics, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        left = children(server)
        server.process.kill()
        _, alive = psutil.wait_procs(left, timeout=120)
        assert not alive


def test_a_start_that_fails_says_why_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    before = psutil.Process().children()
    with (
        pytest.raises(AssertionError, match="missing' is not served") as failure,
        serving(root, "--default", "missing"),
    ):
        pass
    assert "ended with status 1" in str(failure.value)
    assert set(psutil.Process().children()) <= set(before)
