"""The nodes for ComfyUI: loaded as ComfyUI does it, run against a live server. ComfyUI itself is not needed."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from critiq import Client
from tests.support.colours import write_colours
from tests.support.servers import ServerProcess, server_process

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[2] / "clients" / "comfyui"
POLICY = """
name: bright
version: "1"
default: accept
missing: review
rules:
  - {name: dark, when: {dimension: brightness, below: 0.2}, decision: reject, reason: dark}
  - {name: dim, when: {dimension: brightness, below: 0.5}, decision: review, reason: dim}
"""
SKIP, END = "skip the nodes behind", "end the run"


def load(folder: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The folder, dropped into custom_nodes under a name of the user's and loaded by its path."""
    folder = tmp_path_factory.mktemp("custom_nodes") / "my critiq-nodes"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    name = str(folder).replace(".", "_x_")  # so ComfyUI names it
    yield load(folder, name)
    for loaded in [entry for entry in sys.modules if entry.startswith(name)]:
        del sys.modules[loaded]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("comfy")
    write_colours(root / "bundles")
    (root / "bright.yaml").write_text(POLICY)
    arguments = ["--set", f"models.directories=[{str(root / 'bundles')!r}]", "--set", "models.default=colours"]
    arguments += ["--set", "models.load=['colours']", "--set", f"moderation.policies=[{str(root / 'bright.yaml')!r}]"]
    with server_process(arguments, root / "log") as process:
        yield process


def image(*colours: tuple[float, ...], height: int = 24, width: int = 16) -> Any:
    """An IMAGE: a picture of each colour."""
    return torch.stack([torch.tensor(colour).expand(height, width, len(colour)) for colour in colours]).contiguous()


BRIGHT, RED, BLUE, DARK = (0.9, 0.9, 0.9), (1.0, 0.3, 0.3), (0.1, 0.1, 1.0), (0.1, 0.0, 0.0)


def run(package: ModuleType, name: str, server: str, **given: Any) -> Any:
    """As ComfyUI runs a node: by its class, with the defaults of the widgets that are left alone."""
    node = package.NODE_CLASS_MAPPINGS[name]
    types = node.INPUT_TYPES()
    arguments = {}
    for field, (kind, *options) in {**types["required"], **types.get("optional", {})}.items():
        settings = options[0] if options else {}
        arguments[field] = given.get(field, settings.get("default", kind[0] if isinstance(kind, list) else None))
    answer = getattr(node(), node.FUNCTION)(**{**arguments, **given, "server": server})
    assert len(answer["result"]) == len(node.RETURN_TYPES)
    return answer["result"]


def test_every_node_says_what_its_function_takes(package: ModuleType) -> None:
    assert set(package.NODE_CLASS_MAPPINGS) == set(package.NODE_DISPLAY_NAME_MAPPINGS)
    for node in package.NODE_CLASS_MAPPINGS.values():
        types = node.INPUT_TYPES()
        takes = dict(inspect.signature(getattr(node, node.FUNCTION)).parameters)
        takes.pop("self")
        assert [*types["required"], *types["optional"]] == list(takes)
        for name, parameter in takes.items():
            assert (parameter.default is inspect.Parameter.empty) == (name in types["required"]), (node, name)
        for kind, *options in [*types["required"].values(), *types["optional"].values()]:
            assert kind in ("IMAGE", "STRING", "FLOAT", "INT") or isinstance(kind, list)
            assert not options or isinstance(options[0], dict)
        assert len(node.RETURN_NAMES) == len(node.RETURN_TYPES)
        assert len(getattr(node, "OUTPUT_IS_LIST", node.RETURN_TYPES)) == len(node.RETURN_TYPES)
        assert node.CATEGORY == "critiq"
        assert node.__doc__


def test_the_folder_is_in_the_form_of_the_registry() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == (FOLDER / "requirements.txt").read_text().split() == ["critiq"]
    assert set(project["tool"]["comfy"]) >= {"PublisherId", "DisplayName"}


@pytest.mark.parametrize("face", ["grpc", "rest"])
def test_score(package: ModuleType, server: ServerProcess, face: str) -> None:
    images = image(BRIGHT, DARK)
    same, scores, percentiles, report = run(package, "CritiqScore", getattr(server, face), images=images)
    assert same is images
    assert scores == pytest.approx([0.9, 0.0341], abs=0.005)
    assert percentiles == pytest.approx([90, 3.4], abs=0.5)
    assert [line[:2] for line in report.splitlines()] == ["0:", "1:"]
    _, red, *_ = run(package, "CritiqScore", getattr(server, face), images=image(RED, BLUE), dimension="red")
    assert red == pytest.approx([1.0, 0.1], abs=0.005)


def test_rank(package: ModuleType, server: ServerProcess) -> None:
    images = image(DARK, RED, BRIGHT, BLUE)
    best, rejected, scores, report = run(package, "CritiqRank", server.grpc, images=images, top_k=2)
    assert torch.equal(best, images[[2, 1]])
    assert torch.equal(rejected, images[[0, 3]])
    assert scores == pytest.approx([0.9, 0.533], abs=0.005)
    assert report.startswith("rank 1: picture 2, brightness 0.9")
    best, *_ = run(package, "CritiqRank", server.grpc, images=image(RED, RED, BLUE), top_k=2, diversity=0.6)
    assert torch.equal(best, image(RED, BLUE))
    best, rejected, *_ = run(
        package, "CritiqRank", server.grpc, images=images, top_k=0, at_least="red:raw=0.5, raw=0.1"
    )
    assert torch.equal(best, images[[2, 1]])
    assert torch.equal(rejected, images[[0, 3]])


def test_filter(package: ModuleType, server: ServerProcess) -> None:
    images = image(DARK, RED, BRIGHT)
    for scale, at_least in (("calibrated", 0.5), ("percentile", 50.0), ("raw", 0.5)):
        passed, failed, report = run(
            package, "CritiqFilter", server.grpc, images=images, scale=scale, at_least=at_least
        )
        assert torch.equal(passed, images[[1, 2]])  # in the order that they came in
        assert torch.equal(failed, images[[0]])
        assert f"{scale} " in report


def test_moderate(package: ModuleType, server: ServerProcess) -> None:
    images = image(DARK, BRIGHT, BLUE)
    accepted, review, rejected, report = run(package, "CritiqModerate", server.grpc, images=images)
    assert [torch.equal(one, images[[at]]) for one, at in ((accepted, 1), (review, 2), (rejected, 0))] == [True] * 3
    assert [line.split(";")[0] for line in report.splitlines()] == ["0: reject", "1: accept", "2: review"]


def test_when_nothing_passes(package: ModuleType, server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    images = image(DARK, DARK)
    given = {"images": images, "at_least": 0.9}
    passed, failed, _ = run(package, "CritiqFilter", server.grpc, **given)
    assert passed.shape == (0, 24, 16, 3)  # a ComfyUI without blockers
    assert torch.equal(failed, images)
    with pytest.raises(RuntimeError, match="no picture passed"):
        run(package, "CritiqFilter", server.grpc, **given, when_none=END)

    class Blocker:
        def __init__(self, message: str | None) -> None:
            self.message = message

    class Interrupted(Exception):
        pass

    for name, values in (
        ("comfy_execution", {}),
        ("comfy_execution.graph_utils", {"ExecutionBlocker": Blocker}),
        ("comfy", {}),
        ("comfy.model_management", {"InterruptProcessingException": Interrupted}),
    ):
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    passed, failed, _ = run(package, "CritiqFilter", server.grpc, **given, when_none=SKIP)
    assert isinstance(passed, Blocker)
    assert torch.equal(failed, images)
    best, rejected, scores, _ = run(package, "CritiqRank", server.grpc, images=images, at_least="raw=0.9")
    assert isinstance(best, Blocker)
    assert isinstance(scores[0], Blocker)
    assert torch.equal(rejected, images)
    for name, more in (("CritiqFilter", given), ("CritiqRank", {"images": images, "at_least": "raw=0.9"})):
        with pytest.raises(Interrupted, match="no picture passed"):
            run(package, name, server.grpc, **more, when_none=END)
    with pytest.raises(Interrupted):
        run(package, "CritiqModerate", server.grpc, images=images, when_none=END)


def test_pictures_that_samplers_make(package: ModuleType, server: ServerProcess) -> None:
    """Alpha, grey, half precision, NaN, values beyond 0..1: scored as ComfyUI would save them."""
    nan = image(BRIGHT)
    nan[0, 0, 0] = float("nan")
    for images, brightness in (
        (image((0.5, 0.5, 0.5, 0.1)), 0.5),
        (image((0.25,)), 0.25),
        (image((0.5, 0.5, 0.5)).half(), 0.5),
        (image((0.5, 0.5, 0.5)).bfloat16(), 0.5),
        (image((1.4, 1.4, 1.4)), 1.0),
        (image((-0.4, -0.4, -0.4)), 0.0),
        (nan, 0.9),
    ):
        _, scores, _, _ = run(package, "CritiqScore", server.grpc, images=images)
        assert scores == pytest.approx([brightness], abs=0.03)


def test_many_large_pictures_fit_into_a_call(
    package: ModuleType, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image(DARK, RED, BRIGHT)
    nodes = sys.modules[f"{package.__name__}.images"]
    raw, *_ = run(package, "CritiqRank", server.grpc, images=images, top_k=0)
    monkeypatch.setattr(nodes, "MOST_BYTES", 100)
    assert all(isinstance(picture, bytes) for picture in nodes.pictures_of(images))
    assert torch.equal(run(package, "CritiqRank", server.grpc, images=images, top_k=0)[0], raw)
    assert len(nodes.pictures_of(image((0.25,)))) == 1


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("CritiqScore", {"dimension": "beauty"}, "no dimension 'beauty' .* there are brightness, red"),
        ("CritiqScore", {"model": "nope"}, "nope"),
        ("CritiqRank", {"dimension": "beauty"}, "it has brightness, red"),
        ("CritiqRank", {"at_least": "red>3"}, "'red>3' is no threshold; write"),
        ("CritiqFilter", {"at_least": 7.0}, r"thresholds\[0\].at_least: 7 is outside 0..1"),
        ("CritiqModerate", {"policy": "none"}, "there are bright"),
    ],
)
def test_errors_say_what_to_do(
    package: ModuleType, server: ServerProcess, name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(package, name, server.grpc, images=image(BRIGHT), **given)


def test_no_server_and_no_picture(package: ModuleType, server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sys.modules[f"{package.__name__}.server"]
    monkeypatch.setitem(made._clients, "localhost:1", Client("localhost:1", timeout=2, retries=0))
    with pytest.raises(RuntimeError, match="no critiq server answers at 'localhost:1': start one with `critiq serve`"):
        run(package, "CritiqScore", "localhost:1", images=image(BRIGHT))
    for nothing in (image(BRIGHT)[:0], image(BRIGHT)[0], None):
        with pytest.raises(ValueError, match="an IMAGE"):
            run(package, "CritiqScore", server.grpc, images=nothing)


def test_without_the_client_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "critiq", None)
    with pytest.raises(ImportError, match="python -m pip install critiq"):
        load(FOLDER, "nodes_without_the_client")
