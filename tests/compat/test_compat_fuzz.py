"""Whatever is sent to the faces of trainers' clients, the answer is one that their clients understand: never 500."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.compat.trainers import jpeg
from tests.support.threaded import Running

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
IMAGES = st.sampled_from([jpeg(), jpeg()[:90], b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(30)])
ENCODED = IMAGES.map(lambda data: base64.b64encode(data).decode()) | st.text(max_size=9)


def either(*values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is due, or anything else."""
    return st.one_of(*values, JSON)


PICKLED = st.fixed_dictionaries(
    {},
    optional={
        "images": either(st.lists(IMAGES | JSON, max_size=3)),
        "prompts": either(st.lists(st.text(max_size=9), max_size=3)),
        "metadata": JSON,
        "queries": JSON,
    },
).map(pickle.dumps)
FLOW_FACTORY = st.fixed_dictionaries(
    {},
    optional={
        "prompt": either(st.lists(st.text(max_size=9), max_size=3)),
        "image": either(st.lists(ENCODED | JSON, max_size=3)),
        "video": JSON,
    },
).map(json.dumps)
UNIRL = st.fixed_dictionaries(
    {
        "requests": either(
            st.lists(
                st.fixed_dictionaries(
                    {
                        "history": either(
                            st.lists(
                                st.fixed_dictionaries({"text": either(), "image_b64": either(ENCODED)}), max_size=2
                            )
                        ),
                        "required_rewards": either(
                            st.lists(st.sampled_from(["brightness", "wordiness", "x"]), max_size=3)
                        ),
                    },
                    optional={"request_id": JSON, "policy_version": JSON},
                ),
                max_size=3,
            )
        )
    }
).map(json.dumps)
COSMOS = st.tuples(
    st.fixed_dictionaries(
        {},
        optional={
            "prompts": either(st.lists(st.text(max_size=9), max_size=2)),
            "reward_fn": either(st.just({"brightness": 1.0})),
            "media_type": either(st.just("image")),
        },
    ).map(json.dumps),
    st.binary(max_size=40).map(lambda tail: b"\x93NUMPY\x01\x00" + tail) | st.binary(max_size=40),
).map(lambda parts: parts[0].encode() + b"\n" + parts[1])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    faces = {name: {"enabled": True} for name in ("pickle", "flow_factory", "unirl", "cosmos")}
    server = Running(tmp_path_factory.mktemp("bundles"), compat=faces)
    with httpx.Client(base_url=server.url("http") + "/compat", trust_env=False, timeout=120) as found:
        yield found
    server.stop()


@pytest.mark.parametrize(
    ("path", "bodies"),
    [
        ("/pickle/brightness", PICKLED | st.binary(max_size=60)),
        ("/flow_factory/wordiness/compute", FLOW_FACTORY | st.binary(max_size=60)),
        ("/unirl/score", UNIRL | st.binary(max_size=60)),
        ("/cosmos/api/reward/enqueue", COSMOS | st.binary(max_size=60)),
        ("/cosmos/api/reward/pull", st.binary(max_size=60)),
        ("/cosmos/api/reward/ping", st.binary(max_size=60)),
    ],
    ids=["pickle", "flow_factory", "unirl", "cosmos enqueue", "cosmos pull", "cosmos ping"],
)
def test_no_body_breaks_a_face(client: httpx.Client, path: str, bodies: st.SearchStrategy[Any]) -> None:
    @given(bodies)
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    def ask(body: bytes | str) -> None:
        response = client.post(path, content=body)
        assert response.status_code in (200, 400, 404, 422), response.content
        if path.startswith("/pickle"):
            answer = pickle.loads(response.content)  # noqa: S301 - our own server
            assert set(answer) == ({"error"} if response.status_code != 200 else {"outputs", "scores", "rewards"})
            text = answer.get("error", "")
        else:
            answer = response.json()
            assert isinstance(answer, dict)
            text = json.dumps(answer)
        assert "(fault" not in text, "a fault of the server"

    ask()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_are_refused(client: httpx.Client, method: str) -> None:
    for path in ("/pickle/brightness", "/unirl/score", "/flow_factory/wordiness/compute", "/cosmos/api/reward/pull"):
        assert client.request(method, path).status_code == 405
