"""A candidate scores what was answered once more: its figures, and that nobody who waits is held up by it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import critiq
from critiq.aliases import AliasTarget
from critiq.errors import FailedPrecondition, NotFound
from critiq_server.app import App
from critiq_server.images.source import RawImage
from critiq_server.queries import Item, Query, Target
from critiq_server.settings import Settings
from tests.support.bundles import write_bundle, write_simulated
from tests.support.gates import held
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

POLICY = """
name: bright
version: "1"
rules: [{name: dark, when: {dimension: brightness, below: 0.5}, decision: reject}]
"""


def shadowed(root: Path, *, share: float = 100, **sections: Any) -> Settings:
    """``tiny:1`` serves, ``tiny:2``, which is brighter, is its shadow."""
    for version, bias in (("1", 0.0), ("2", 0.2)):
        write_bundle(root / "bundles", version=version, bias=bias)
    models = {
        "allow_changes": True,
        "aliases": {"default": {"targets": ["tiny:1"], "shadow": f"tiny:2={share:g}"}},
        "load": ("tiny:1",),
    }
    shadow = {"shadow": sections.pop("shadow", {})}
    return make_settings(root / "bundles", models={**models, **shadow}, **sections)


def grey(level: int) -> Query:
    return Query(RawImage(bytes([level]) * 768, (16, 16, 3)), target=Target(dimensions=("brightness",)))


def shadow(app: App) -> Any:
    return app.service.routing._agreement("default").report()


async def test_agreement_of_what_callers_asked_for_over_both_faces_and_as_metrics(tmp_path: Path) -> None:
    (tmp_path / "bright.yaml").write_text(POLICY)
    settings = shadowed(
        tmp_path,
        shadow={"thresholds": {"brightness": 0.1}},
        moderation={"policies": [tmp_path / "bright.yaml"]},
        security={},
    )
    levels = range(0, 250, 10)
    async with running(settings) as app, critiq.AsyncClient(f"localhost:{app.grpc_port}") as client:
        for level in levels:
            answered = await client.score(flat(level), "a red cat")
            assert answered["brightness"].model_version == "1"
        await until(lambda: shadow(app).scored == len(levels))
        report = await client.shadow_report("default")
        assert report == shadow(app)
        async with critiq.AsyncClient(f"http://localhost:{app.rest_port}") as rest:
            assert await rest.shadow_report("default") == report
        async with httpx.AsyncClient() as http:
            json = (await http.get(f"http://localhost:{app.rest_port}/v1/models/default/shadow")).json()
            metrics = (await http.get(f"http://localhost:{app.metrics_port}/metrics")).text
        (pair,) = report.pairs
        brightness, wordiness = pair.dimensions
        # Calibrated is raw / (1 + bias): (x + 0.2) / 1.2 against x.
        expected = sum((level / 255 + 0.2) / 1.2 - level / 255 for level in levels) / len(levels)
        assert brightness.mean_shift == pytest.approx(expected, abs=1e-4)
        assert brightness.srcc == wordiness.srcc == pytest.approx(1.0)
        flips = {entry.rule: (entry.count, entry.flips) for entry in pair.decisions}
        between = sum(level / 255 < 0.5 <= (level / 255 + 0.2) / 1.2 for level in levels)
        assert flips["policy bright 1"] == (len(levels), between)
        assert flips["brightness >= 0.1"] == (len(levels), 3), "0, 10 and 20 of 255"
        assert json["pairs"][0]["dimensions"][0]["count"] == len(levels)
        labels = 'alias="default",candidate="tiny:2",dimension="brightness",served="tiny:1"'
        assert f"critiq_shadow_srcc{{{labels}}} 1.0" in metrics
        assert 'critiq_shadow_total{alias="default",outcome="scored"} 25.0' in metrics
        assert 'critiq_routed_total{alias="default",model="tiny",version="1"} 25.0' in metrics
        assert 'critiq_score_count{dimension="brightness",model="tiny",version="2"}' not in metrics, "nobody got those"
        assert 'critiq_items_total{code="OK",model="default"} 25.0' in metrics
        await app.service.routing.promote("default")
        with pytest.raises(FailedPrecondition, match="has no shadow"):
            await client.shadow_report("default")
        with pytest.raises(NotFound, match="no alias 'canary'"):
            await client.shadow_report("canary")
        assert (await client.score(flat(0)))["brightness"].model_version == "2"


async def test_a_change_begins_anew_and_a_share_is_a_share(tmp_path: Path) -> None:
    async with running(shadowed(tmp_path, share=30)) as app:
        for number in range(400):
            await app.service.score(grey(number % 250))
        await until(lambda: not app._assembly._shadows._working)
        offered = shadow(app).scored + shadow(app).dropped
        assert 60 < offered < 180, "30 % of 400, six standard deviations either way"
        await app.service.routing.set("default", [(AliasTarget("tiny", "1"), True)], AliasTarget("tiny", "2", 100))
        assert shadow(app).scored == 0
        assert shadow(app).pairs == ()
        with pytest.raises(FailedPrecondition, match="it is the shadow of the alias 'default'"):
            await app.service.models.unload("tiny", "2")


async def test_under_overload_shadows_compute_nothing_and_take_no_room(tmp_path: Path) -> None:
    """Counted, not timed: while as many pictures as there is room for are under way, the candidate gets no batch."""
    settings = shadowed(
        tmp_path,
        limits={"in_flight": 8, "batch_items": 8},
        engine={"store_mb": 0},
        shadow={"queue": 4, "wait_seconds": 0.3},
    )
    async with running(settings) as app:
        with held(app, "image_encoder", "default") as served, app.service.registry.lease("tiny", "2") as candidate:
            runs = []
            runtime: Any = candidate.model.stages["image_encoder"].runtime
            run = runtime.run

            def counted(inputs: Any) -> Any:
                runs.append(len(next(iter(inputs.values()))))
                return run(inputs)

            runtime.run = counted
            # Eight answers are offered to the shadow while eight more pictures take all room.
            first = [asyncio.ensure_future(app.service.score(grey(level))) for level in range(4)]
            second = [asyncio.ensure_future(app.service.score(grey(level))) for level in range(100, 104)]
            await until(lambda: app.service.admission.items == 8)
            for round_ in range(6):
                waiting = [task for task in (*first, *second) if not task.done()]
                served.let_go()
                await until(lambda waiting=waiting: any(task.done() for task in waiting))  # type: ignore[misc]
                done = 8 - app.service.admission.items
                second += [
                    asyncio.ensure_future(app.service.score(grey(110 + 8 * round_ + new))) for new in range(done)
                ]
                await until(lambda: app.service.admission.items == 8)
            assert runs == [], "all room is taken: no shadow was computed"
            await until(lambda: shadow(app).dropped > 0)
            assert shadow(app).scored == 0
            served.release()
            await asyncio.gather(*first, *second)
            answered = len(first) + len(second)
            await app.service.score(grey(250))
            await until(lambda: not app._assembly._shadows._working)
            found = shadow(app)
            assert found.failed == 0
            assert found.scored + found.dropped == answered + 1, "every picture is accounted for"
            assert sum(runs) == found.scored
            assert found.scored > 0, "with room to spare it goes on"


async def test_a_shadow_that_stands_still_holds_up_nobody(tmp_path: Path) -> None:
    async with running(shadowed(tmp_path, limits={"in_flight": 8, "batch_items": 8}, shadow={"queue": 3})) as app:
        with held_version(app, "2"):
            for level in range(20):
                await app.service.score(grey(level))
            assert app.service.admission.items == 0, "shadows take no room of callers"
            items = [Item(str(level), grey(50 + level)) for level in range(8)]
            results = await app.service.score_batch(items)
            assert all(result.error is None for result in results), "all room is there for callers"
            assert shadow(app).dropped >= 20 + 8 - 3 - 1


@contextmanager
def held_version(app: App, version: str) -> Iterator[None]:
    """Holds one version's device, which the alias does not lead to."""
    gate = threading.Event()
    with app.service.registry.lease("tiny", version) as served:
        runtime: Any = served.model.stages["image_encoder"].runtime
        run = runtime.run

        def waiting(inputs: Any) -> Any:
            gate.wait(120)
            return run(inputs)

        runtime.run = waiting
        try:
            yield
        finally:
            gate.set()


async def test_a_candidate_that_fails_is_counted_and_told_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_simulated(tmp_path / "bundles", batch_ms=0.1)
    async with running(shadowed(tmp_path)) as app:
        target = [(AliasTarget("tiny", "1"), True)]
        await app.service.routing.set("default", target, AliasTarget("simulated", "1", 100))
        for level in range(5):
            await app.service.score(grey(level))
        await until(lambda: shadow(app).failed == 5)
        assert "none of the dimensions" in shadow(app).last_failure
        assert capsys.readouterr().out.count("a shadow does not score") == 1


async def test_what_comes_in_the_moment_that_a_worker_ends_is_not_left(tmp_path: Path) -> None:
    async with running(shadowed(tmp_path)) as app:
        shadows = app.service.routing._shadows
        assert shadows is not None
        await app.service.score(grey(1))
        (worker,) = shadows._working
        worker.remove_done_callback(shadows._working.discard)  # as if it had ended just now
        await until(worker.done)
        await app.service.score(grey(2))
        await until(lambda: shadow(app).scored == 2)
