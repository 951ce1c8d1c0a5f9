"""``critiq.rewards`` against a real server: pictures in the forms that trainers hold, mixes, failures, signatures."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import critiq
from critiq.rewards import (
    GroupwiseReward,
    Mix,
    PointwiseReward,
    Term,
    factory,
    multi_score,
    normalised_within,
    trl_reward,
)
from critiq.rewards.pictures import Batch
from critiq.rewards.terms import as_terms
from tests.end_to_end.test_imports import modules_after
from tests.support.threaded import Running

LEVELS = (51, 102, 255)
BRIGHT = pytest.approx([level / 255 for level in LEVELS], abs=1e-4)
PROMPTS = ("a cat", "a", "dog")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    found = Running(tmp_path_factory.mktemp("bundles"))
    yield found
    found.stop()


@pytest.fixture
def url(server: Running) -> str:
    return server.url()


def uint8(levels: tuple[int, ...] = LEVELS) -> Any:
    """``[count, height, width, 3]``, as ddpo-pytorch holds pictures."""
    return np.stack([np.full((32, 24, 3), level, np.uint8) for level in levels])


def floats(levels: tuple[int, ...] = LEVELS) -> Any:
    """``[count, 3, height, width]`` in 0..1, as flow_grpo does."""
    return uint8(levels).transpose(0, 3, 1, 2).astype(np.float32) / 255


@pytest.mark.parametrize("transport", ["grpc", "http"])
@pytest.mark.parametrize(
    "images",
    [
        uint8(),
        floats(),
        floats().astype(np.float16),
        floats().transpose(0, 2, 3, 1),
        uint8().transpose(0, 3, 1, 2),
        uint8()[..., :1],
        list(uint8()),
        [Image.fromarray(entry) for entry in uint8()],
        [floats()[0], uint8()[1], Image.fromarray(uint8()[2])],
    ],
    ids=["uint8 NHWC", "float NCHW", "half", "float NHWC", "uint8 NCHW", "grey", "list", "PIL", "mixed"],
)
def test_pictures_as_trainers_hold_them(server: Running, transport: str, images: Any) -> None:
    rewards = Mix("brightness", url=server.url(transport)).score(images)
    assert rewards.total == BRIGHT
    assert rewards.errors == [None] * 3


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "uint8"])
def test_torch_tensors(url: str, kind: str) -> None:
    torch = pytest.importorskip("torch")
    images = torch.from_numpy(uint8() if kind == "uint8" else floats()).to(getattr(torch, kind)).requires_grad_(False)
    # bfloat16 has eight bits: 102/255 is a little off.
    assert Mix("brightness", url=url).score(images).total == pytest.approx([0.2, 0.4, 1.0], abs=3e-3)


def test_pixels_travel_unchanged(url: str) -> None:
    """Noise is what a lossy file would change first."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    exact = [float(entry[::1].mean()) / 255 for entry in noise]
    from_bytes = Mix("brightness", url=url).score(noise).total
    from_floats = Mix("brightness", url=url).score((noise.transpose(0, 3, 1, 2) / 255).astype(np.float32)).total
    assert from_bytes == from_floats
    assert from_bytes == pytest.approx(exact, abs=2e-3)  # the model sees an 8x8 thumbnail


def test_alpha_is_laid_on_white(url: str) -> None:
    clear = np.zeros((1, 32, 24, 4), np.uint8)
    for images in (clear, (clear / 255).astype(np.float32).transpose(0, 3, 1, 2)):
        assert Mix("brightness", url=url).score(images).total == pytest.approx([1.0])


@given(st.integers(0, 255), st.sampled_from([np.float16, np.float32, np.float64]))
def test_every_level_survives_the_way_through_floats(level: int, dtype: Any) -> None:
    picture = np.full((1, 3, 16, 16), level / 255, dtype)
    assert (Batch(picture)[0] == level).all()


def test_importing_it_is_light() -> None:
    modules = modules_after("import critiq.rewards")
    assert not modules & {"torch", "onnxruntime", "critiq_server", "fastapi", "flow_factory"}


def test_a_mix_shows_every_component(url: str) -> None:
    terms = [
        Term("brightness", 0.5),
        Term("wordiness", 2.0, scale="raw"),
        Term("brightness", 1.0, "other", name="twin"),
    ]
    rewards = Mix(terms, url=url).score(uint8(), PROMPTS)
    assert rewards.components["brightness"] == BRIGHT
    assert rewards.components["wordiness"] == pytest.approx([0.2 * 4, 0.4 * 3, 1.0 * 3], abs=1e-4)
    assert rewards.components["twin"] == pytest.approx([(1.2) / 2, 1.4 / 2, 1.0], abs=1e-3)
    expected = [0.5 * one + 2 * two + three for one, two, three in zip(*rewards.components.values(), strict=True)]
    assert rewards.total == pytest.approx(expected)


def test_the_spellings_of_terms() -> None:
    assert as_terms("a:0.5, m/b") == (Term("a", 0.5), Term("b", 1.0, "m"))
    assert as_terms({"a": 2}) == (Term("a", 2),)
    assert [term.label for term in as_terms("a,m/a")] == ["a", "m/a"]
    for wrong in ("a,a", "", "a:", "a:x", {"a": math.nan}, [], "m/"):
        with pytest.raises(critiq.InvalidArgument):
            as_terms(wrong)
    with pytest.raises(critiq.InvalidArgument, match="known are"):
        Term("a", scale="stars")  # type: ignore[arg-type]


def test_each_prompt_is_encoded_once(server: Running, url: str) -> None:
    labels = {"model": "tiny", "stage": "text_encoder"}

    def encoded() -> float:
        return server.app.metrics.registry.get_sample_value("critiq_batch_size_sum", labels) or 0.0

    before = encoded()
    prompts = [prompt for prompt in ("red", "green", "house red") for _ in range(16)]
    Mix("wordiness", url=url).score(uint8(tuple(range(48))), prompts)
    assert encoded() - before == 3


def broken() -> Any:
    images = floats()
    images[1, 0, 0, 0] = np.nan
    return images


def test_a_failed_picture_is_raised_with_its_place(url: str) -> None:
    with pytest.raises(critiq.InvalidArgument, match=r"images\[1\].image: it holds NaN"):
        Mix("brightness", url=url).score(broken())


def test_a_failed_picture_is_nan_if_asked_for(url: str) -> None:
    mix = Mix({"brightness": 1.0, "wordiness": 1.0}, url=url, on_error="nan")
    rewards = mix.score([uint8()[0], np.zeros((4, 4, 3), np.uint8), uint8()[2]], PROMPTS)
    assert [math.isnan(value) for value in rewards.total] == [False, True, False]
    assert [math.isnan(value) for value in rewards.components["wordiness"]] == [False, True, False]
    assert [error is None for error in rewards.errors] == [True, False, True]
    assert isinstance(rewards.errors[1], critiq.InvalidArgument)
    assert "images[1]" in str(rewards.errors[1])
    assert "at least 16" in str(rewards.errors[1])


@pytest.mark.parametrize(
    ("terms", "error", "words"),
    [
        ("beauty", critiq.NotFound, "no dimension 'beauty'"),
        ("unknown/brightness", critiq.NotFound, "unknown"),
        ("wordiness", critiq.InvalidArgument, "needs the prompt"),
    ],
)
def test_what_is_wrong_with_all_is_raised_even_so(url: str, terms: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Mix(terms, url=url, on_error="nan").score(uint8())


def test_a_server_that_is_not_there_is_raised() -> None:
    with pytest.raises(critiq.Unavailable):
        Mix("brightness", url="localhost:1", retries=0, on_error="nan").score(uint8())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (uint8()[0], "four axes"),
        (np.zeros((2, 5, 5, 5), np.uint8), "channels"),
        (np.full((1, 3, 16, 16), 200.0), "send 0..255 as uint8"),
        (np.full((1, 3, 16, 16), -1.0), "clamp"),
        (np.zeros((1, 16, 16, 3), np.int64), "int64"),
        ("text", "str"),
        (None, "NoneType"),
        ([np.zeros(3)], "three axes"),
    ],
)
def test_what_is_no_batch(url: str, images: Any, words: str) -> None:
    with pytest.raises(critiq.InvalidArgument, match=words):
        Mix("brightness", url=url).score(images)


@pytest.mark.parametrize("prompts", ["a cat", ["a"], ["a", "b", 3]])
def test_prompts_that_do_not_fit(url: str, prompts: Any) -> None:
    with pytest.raises(critiq.InvalidArgument, match="prompts"):
        Mix("brightness", url=url).score(uint8(), prompts)


def test_an_empty_batch_asks_nobody() -> None:
    rewards = Mix("brightness", url="localhost:1").score([])
    assert (rewards.total, rewards.components) == ([], {"brightness": []})


@pytest.mark.parametrize("setting", [{"on_error": "ignore"}, {"normalise": "all"}])
def test_settings_are_checked(setting: dict[str, Any]) -> None:
    with pytest.raises(critiq.InvalidArgument, match="known are"):
        Mix("brightness", **setting)


def test_normalisation_within_a_prompt(url: str) -> None:
    levels = (10, 20, 30, 100, 100, 250)
    prompts = ["a", "a", "a", "b", "b", "c"]
    total = Mix("brightness", url=url, normalise="total").score(uint8(levels), prompts).total
    step = np.std([10 / 255, 20 / 255, 30 / 255])
    assert total == pytest.approx([-10 / 255 / (step + 1e-4), 0, 10 / 255 / (step + 1e-4), 0, 0, 0], abs=2e-3)
    each = Mix({"brightness": 1, "other/brightness": 1}, url=url, normalise="components").score(uint8(levels), prompts)
    assert each.total == pytest.approx([2 * value for value in total], abs=2e-2)
    assert each.components["brightness"] == pytest.approx([level / 255 for level in levels], abs=1e-4)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-10, 10) | st.just(math.nan)), max_size=20))
def test_normalised_groups_have_mean_zero_and_deviation_one_at_most(pairs: list[tuple[str, float]]) -> None:
    groups = [group for group, _ in pairs]
    found = normalised_within(groups, [value for _, value in pairs])
    assert [math.isnan(value) for value in found] == [math.isnan(value) for _, value in pairs]
    for name in set(groups):
        values = [value for group, value in zip(groups, found, strict=True) if group == name and not math.isnan(value)]
        if values:
            assert np.mean(values) == pytest.approx(0, abs=1e-6)
            assert np.std(values) <= 1 + 1e-9


async def test_for_asyncio(url: str) -> None:
    assert (await Mix("brightness", url=url).score_async(uint8())).total == BRIGHT


def test_it_goes_to_workers_by_pickle(url: str) -> None:
    mix = Mix("brightness", url=url)
    assert mix.score(uint8()).total == BRIGHT
    assert pickle.loads(pickle.dumps(mix)).score(uint8()).total == BRIGHT  # noqa: S301
    mix.close()
    assert mix.score(uint8()).total == BRIGHT


FORK = """
import os, sys
import numpy as np
from critiq.rewards import Mix
mix = Mix("brightness", url=sys.argv[1], timeout=120)
pictures = np.full((2, 32, 32, 3), 51, np.uint8)
mix.score(pictures)
child = os.fork()
os.write(1, f"{mix.score(pictures).total}\\n".encode())  # one write a line: two processes share the pipe
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_it_survives_a_fork(server: Running, transport: str) -> None:
    command = [sys.executable, "-c", FORK, server.url(transport)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["[0.2, 0.2]"] * 2


def test_flow_grpo_and_ddpo(url: str) -> None:
    make = factory({"brightness": 0.5, "wordiness": 1}, url=url, on_error="nan")
    for reward in (make("cuda"), make()):
        scores, info = reward(uint8(), PROMPTS, [{}] * 3, only_strict=True)
        assert {type(score) for score in scores} == {float}
        assert set(info) == {"brightness", "wordiness", "errors"}
    _, info = make()(broken(), PROMPTS, None)
    assert [bool(text) for text in info["errors"]] == [False, True, False]


def test_flow_grpos_multi_score(url: str) -> None:
    reward = multi_score("cuda", {"brightness": 0.5, "other/brightness": 2.0}, url=url)
    details, _ = reward(floats(), PROMPTS, [{}] * 3, ref_images=None, only_strict=True)
    assert set(details) == {"brightness", "other/brightness", "avg"}
    expected = [0.5 * a + 2 * b for a, b in zip(details["brightness"], details["other/brightness"], strict=True)]
    assert details["avg"] == pytest.approx(expected)


def test_trl(url: str) -> None:
    rewards, metadata = trl_reward("brightness", url=url)(floats(), PROMPTS, ({},) * 3)
    assert rewards == BRIGHT
    assert metadata["brightness"] == BRIGHT


def test_trl_asynchronously(url: str) -> None:
    reward = trl_reward("brightness", asynchronous=True, url=url)
    pairs = [reward(floats(), PROMPTS, ({},) * 3) for _ in range(6)]
    for rewards, metadata in pairs:
        assert isinstance(rewards, Future)
        assert rewards.result(30) == BRIGHT
        assert metadata.result(30)["errors"] == [""] * 3
    rewards, metadata = reward(broken(), PROMPTS, ())
    for part in (rewards, metadata):
        with pytest.raises(critiq.InvalidArgument):
            part.result(30)


def config(url: str, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(server_url=url, terms="brightness", batch_size=16, **more)


def test_flow_factory_pointwise(url: str) -> None:
    model = PointwiseReward(config(url, timeout=60.0, retry_attempts=3), SimpleNamespace(device="cpu")).to("cuda")
    images = [Image.fromarray(entry) for entry in uint8()]
    output = model(prompt=list(PROMPTS), image=images, condition_images=[[]] * 3, metadata="{}")
    assert output.rewards.dtype == np.float32
    assert output.rewards.tolist() == BRIGHT
    assert output.extra_info["brightness"] == BRIGHT
    assert (model.device, model.required_fields) == ("cuda", ("prompt", "image"))
    with pytest.raises(critiq.InvalidArgument, match="videos"):
        model(prompt=["a"], video=[[]])
    with pytest.raises(critiq.InvalidArgument, match="what to score"):
        PointwiseReward(SimpleNamespace(), None)


def test_flow_factory_groupwise(url: str) -> None:
    output = GroupwiseReward(config(url), None)(prompt=["a"] * 3, image=list(floats()))
    assert output.rewards.tolist() == pytest.approx(normalised_within([0] * 3, [0.2, 0.4, 1.0]), abs=1e-3)
    assert output.extra_info["brightness"] == BRIGHT


def test_flow_factory_takes_them_for_its_own(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processor sorts models by ``isinstance``, and would leave out what is of neither class."""
    from abc import ABC

    module: Any = ModuleType("flow_factory.rewards.abc")
    module.PointwiseRewardModel = type("PointwiseRewardModel", (ABC,), {})
    module.GroupwiseRewardModel = type("GroupwiseRewardModel", (ABC,), {})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point, group = PointwiseReward(config(url), None), GroupwiseReward(config(url), None)
    assert isinstance(point, module.PointwiseRewardModel)
    assert not isinstance(point, module.GroupwiseRewardModel)
    assert isinstance(group, module.GroupwiseRewardModel)
    assert not isinstance(group, module.PointwiseRewardModel)
