"""Makes the pictures of the page in docs/images again: a server of its own, some traffic, real Chromium.

    .venv/bin/python tools/screenshots.py [--only NAME] [--out DIRECTORY]

Needs the extra `test`, chromium, and photographs without restrictions in ../shared/data/kodak.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from typing import Literal

import httpx
from PIL import Image, ImageFilter
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "kodak" / "images"
PROMPT = "a red wooden door with a bolt"
LARGEST = 400_000
"""Bytes of one picture in the repository."""

POLICY = """\
name: gallery
version: "1"
description: Pictures that go on the front page.
rules:
  - name: too-poor
    when: {dimension: visual_quality, below: 0.3}
    decision: reject
    message: The picture looks poor.
  - name: not-outstanding
    when: {dimension: aesthetic, below: 0.7}
    decision: review
    message: Not among the finest; somebody should look.
"""
SETTINGS = """\
server: {{rest_port: 0, grpc_port: 0, metrics_port: 0}}
moderation: {{policies: ["{policy}"]}}
drift: {{baseline_requests: 100, least_count: 20, check_seconds: 2, slot_seconds: {slot}}}
"""
SLOT_SECONDS = 20


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server with the built-in model and a policy; its address."""
    (folder / "gallery.yaml").write_text(POLICY)
    config = folder / "critiq.yaml"
    config.write_text(SETTINGS.format(policy=folder / "gallery.yaml", slot=SLOT_SECONDS))
    log = folder / "log"
    command = [sys.executable, "-m", "critiq.cli", "serve", "--config", str(config)]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        until = time.monotonic() + 60
        while not (found := re.search(r"rest=(\S+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield found[1]
    finally:
        process.terminate()
        process.wait()


def send(url: str, pictures: list[Path], count: int, seed: int, *, blur: float, stop: Event | None = None) -> None:
    """Scores ``count`` crops of the pictures, one after the other."""
    rng = random.Random(seed)  # noqa: S311 - nothing secret
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for _ in range(count):
            if stop is not None and stop.is_set():
                return
            picture = Image.open(rng.choice(pictures)).convert("RGB")
            side = rng.randint(240, 400)
            left, top = rng.randint(0, picture.width - side), rng.randint(0, picture.height - side)
            picture = picture.crop((left, top, left + side, top + side)).filter(ImageFilter.GaussianBlur(blur))
            file = BytesIO()
            picture.save(file, "JPEG", quality=90)
            prompt = rng.choice(["a door", "a parrot on a branch", "boats in a harbour at low tide"])
            http.post("/v1/score", files={"image": file.getvalue()}, data={"prompt": prompt}).raise_for_status()


def one(page: Page) -> None:
    page.fill("#prompt", PROMPT)
    page.set_input_files("#files", PHOTOGRAPHS / "kodak__2.jpg")
    page.wait_for_selector(".decision")


def narrow(page: Page) -> None:
    one(page)


def heat(page: Page) -> None:
    page.set_input_files("#files", PHOTOGRAPHS / "kodak__15.jpg")
    page.wait_for_selector(".score dl")
    page.click("#heat-switch")
    page.wait_for_selector(".legend")


def several(page: Page) -> None:
    page.fill("#prompt", PROMPT)
    page.set_input_files("#files", [PHOTOGRAPHS / f"kodak__{number}.jpg" for number in (23, 2, 15, 8, 3, 10)])
    page.wait_for_selector("#results[aria-busy=false] #sheet .number")
    page.locator("#sheet tbody button").first.wait_for()


def live(page: Page) -> None:
    page.evaluate("location.hash = 'live'")
    page.wait_for_timeout(45_000)


def drift(page: Page) -> None:
    page.evaluate("location.hash = 'drift'")
    page.wait_for_selector(".drift")


Shot = tuple[str, Callable[[Page], None] | None, int, int, Literal["light", "dark"]]
SHOTS: list[Shot] = [
    ("start", None, 1280, 780, "light"),
    ("one", one, 1280, 1440, "light"),
    ("heat-dark", heat, 1280, 960, "dark"),
    ("several", several, 1280, 900, "light"),
    ("narrow", narrow, 360, 800, "light"),
    ("live-dark", live, 1280, 1160, "dark"),
    ("drift", drift, 1280, 900, "light"),
]


def save(picture: bytes, path: Path) -> None:
    """As PNG: of at most 256 colours, which a screen of text and a photograph can do with, if it is too large else."""
    image = Image.open(BytesIO(picture)).convert("RGB")
    image.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        palette = image.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2)
        image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    size = path.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{path} has {size} bytes, the limit is {LARGEST}; show less")
    print(f"{path.name}  {size // 1000} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[shot[0] for shot in SHOTS], help="one picture instead of all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="where to put them")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is not installed; on Debian: apt-get install chromium fonts-dejavu-core")
    pictures = sorted(PHOTOGRAPHS.glob("*.jpg"))
    if not pictures:
        raise SystemExit(f"there are no photographs in {PHOTOGRAPHS}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder)) as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, act, width, height, scheme in SHOTS:
            if arguments.only not in (None, name):
                continue
            stop = Event()
            callers = [
                Thread(target=send, args=(url, pictures, 10_000, seed), kwargs={"blur": 0, "stop": stop}, daemon=True)
                for seed in range(3 if act is live else 0)
            ]
            for caller in callers:
                caller.start()
            if act is drift:
                send(url, pictures, 120, 1, blur=0)
                time.sleep(SLOT_SECONDS)  # so that a window holds nothing but what comes now
                send(url, pictures, 150, 2, blur=1.5)
                time.sleep(5)
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(url)
            page.wait_for_selector("#judges h4", state="attached")
            if act is not None:
                act(page)
            page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            if act is narrow:
                page.locator(".scores").evaluate("node => node.scrollIntoView()")
            save(page.screenshot(), arguments.out / f"page-{name}.png")
            page.close()
            stop.set()
            for caller in callers:
                caller.join()
        browser.close()


if __name__ == "__main__":
    main()
