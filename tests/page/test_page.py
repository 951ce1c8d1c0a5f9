"""The page in a real browser, against the server with its own model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, FileChooser, Page, Route, expect

from tests.fixtures.images import animation, encoded, oriented, photo
from tests.page.accessibility import problems
from tests.page.conftest import HOSTILE, PROMPT, Watch, ask, choose, order, reach


def test_gauges_show_what_the_api_gives(page: Page, url: str, files: dict[str, Path]) -> None:
    choose(page, files["door.png"], prompt=PROMPT)
    answer = ask(url, "/v1/score", [files["door.png"]], prompt=PROMPT)
    assert len(answer["scores"]) == 4
    models = httpx.get(f"{url}/v1/models", trust_env=False).json()["models"]
    (model,) = (model for model in models if model["is_default"])
    about = {dimension["name"]: dimension for dimension in model["dimensions"]}
    for score in answer["scores"]:
        card = page.locator(f".score[data-dimension={score['dimension']}]")
        expect(card.locator("h3")).to_have_text(about[score["dimension"]]["title"])
        meter = card.get_by_role("meter")
        assert float(meter.get_attribute("aria-valuenow") or "nan") == score["calibrated"]
        assert card.locator(".gauge-value").inner_html() == f"{score['calibrated']:.2f}"
        expected = [f"{score['calibrated']:.4f}", f"{score['percentile']:.2f}", f"{score['raw']:.4f}".replace("-", "−")]
        assert card.locator("dd").all_inner_texts() == expected
        expect(card.locator(".standing")).to_contain_text(f"Better than {score['percentile']:.0f} %")
        expect(card.locator(".meaning")).to_have_text(about[score["dimension"]]["description"])
        described = card.locator(".curve svg").get_attribute("aria-label") or ""
        assert f"This picture: {score['raw']:.2f}".replace("-", "−") in described
        # The marker stands where the raw value falls between the ends of the reference set.
        quantiles = about[score["dimension"]]["reference_quantiles"]
        share = (score["raw"] - quantiles[0]) / (quantiles[-1] - quantiles[0])
        assert float(card.locator(".marker").get_attribute("x1") or "nan") == pytest.approx(3 + 94 * share, abs=1e-6)
        # The share of the set below it, by which the curve is drawn, is the percentile.
        under = page.evaluate(
            "([quantiles, raw]) => import('./page/reference.js').then(module => module.below(quantiles, raw))",
            [quantiles, score["raw"]],
        )
        assert 100 * under == pytest.approx(score["percentile"], abs=0.01)
    expect(page.locator(".facts")).to_contain_text("PNG, 768 × 512 pixels")
    expect(page.locator(".facts li")).to_have_text(["Resized to what the model sees."])
    expect(page.locator("#announce")).to_contain_text("Scored door.png: Visual quality")


def test_without_a_prompt_the_page_says_what_is_missing(page: Page, files: dict[str, Path]) -> None:
    choose(page, files["door.png"])
    expect(page.locator(".score dl")).to_have_count(3)
    expect(page.locator(".score.absent")).to_contain_text("Needs the prompt")
    page.fill("#prompt", PROMPT)
    page.click("#score")
    expect(page.locator(".score dl")).to_have_count(4)
    expect(page.locator(".score.absent")).to_have_count(0)


def test_what_was_done_to_a_picture_is_said_in_words(page: Page, tmp_path: Path) -> None:
    clear = photo(300, 240).convert("RGBA")
    clear.putalpha(90)
    pictures = {
        "clear.png": (encoded(clear, "PNG"), "Transparent parts were put on the background colour."),
        "turned.jpg": (oriented(photo(300, 240), 6), "Turned upright, as its orientation tag says."),
        "moving.webp": (
            animation("WEBP", [photo(300, 240, seed=1), photo(300, 240, seed=2)]),
            "Animated: only the first frame was judged.",
        ),
    }
    for name, (content, words) in pictures.items():
        (tmp_path / name).write_bytes(content)
        choose(page, tmp_path / name, prompt="a house " * 80)
        if page.locator("#sheet").count():
            page.locator("#sheet").get_by_role("button", name=name).click()
        expect(page.locator("#detail-title")).to_have_text(name)
        expect(page.locator(".facts li", has_text=words)).to_have_count(1)
        expect(page.locator(".facts")).to_contain_text("tokens; the model read the first 64.")


def test_the_verdict_is_the_policys(page: Page, url: str, files: dict[str, Path]) -> None:
    choose(page, files["door.png"])
    verdict = ask(url, "/v1/moderate", [files["door.png"]], policy="gallery")["verdict"]
    assert verdict["decision"] == "reject"
    expect(page.locator("#verdict .decision")).to_have_text("Reject")
    expect(page.locator("#verdict li strong")).to_have_text("Reject: Not <b>fine</b> enough.")
    value = f"{verdict['reasons'][0]['value']:.4f}"
    expect(page.locator("#verdict li")).to_contain_text(f"visual_quality, calibrated, {value} is below 0.9900")


def test_ranking_is_the_apis(page: Page, url: str, files: dict[str, Path]) -> None:
    pictures = [files[name] for name in ("poor.png", "small.png", "door.png", HOSTILE)]
    choose(page, *pictures, prompt=PROMPT)

    def ranked(**fields: str) -> list[str]:
        ranking = ask(url, "/v1/rank", pictures, prompt=PROMPT, **fields)["ranking"]
        return [pictures[entry["index"]].name for entry in ranking]

    assert order(page) == ranked()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Prompt alignment")
    orders = {tuple(order(page))}
    for title, name in (("Visual quality", "visual_quality"), ("Technical quality", "technical")):
        page.get_by_role("button", name=title, exact=True).click()
        expect(page.locator("th[aria-sort=descending]")).to_contain_text(title)
        assert order(page) == ranked(dimensions=name)
        tiles = page.locator(".strip .tile").all()
        assert [(tile.get_attribute("aria-label") or "").partition(": ")[0] for tile in tiles] == order(page)
        orders.add(tuple(order(page)))
    assert len(orders) > 1
    page.get_by_role("button", name="Technical quality", exact=True).click()
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("Technical quality")
    assert order(page) == ranked(dimensions="technical")[::-1]
    assert page.locator("#sheet td.rank").all_inner_texts() == ["4", "3", "2", "1"]


def test_equal_pictures_share_a_rank(page: Page, url: str, files: dict[str, Path], tmp_path: Path) -> None:
    twin = tmp_path / "twin.png"
    twin.write_bytes(files["poor.png"].read_bytes())
    pictures = [files["poor.png"], files["door.png"], twin]
    choose(page, *pictures)
    ranking = ask(url, "/v1/rank", pictures)["ranking"]
    assert sorted(entry["rank"] for entry in ranking) == [1, 2, 2]
    assert order(page) == [pictures[entry["index"]].name for entry in ranking]
    assert page.locator("#sheet td.rank").all_inner_texts() == [str(entry["rank"]) for entry in ranking]


def test_another_model_is_asked_at_once(page: Page, url: str, files: dict[str, Path]) -> None:
    choose(page, files["door.png"])
    expect(page.locator(".score dl")).to_have_count(3)
    page.select_option("#model", label="tiny 1")
    expect(page.locator(".score dl")).to_have_count(1)
    answer = ask(url, "/v1/score", [files["door.png"]], model="tiny")
    card = page.locator(".score[data-dimension=brightness]")
    assert card.locator("dd").first.inner_text() == f"{answer['scores'][0]['calibrated']:.4f}"
    expect(page.locator("#request pre")).to_contain_text("model=tiny")


def test_an_unreadable_file_has_its_error_and_harms_no_other(page: Page, files: dict[str, Path]) -> None:
    choose(page, files["notes.png"], files["door.png"])
    assert order(page) == ["door.png", "notes.png"]
    row = page.locator("#sheet tbody tr", has_text="notes.png")
    expect(row.locator(".bad-text")).to_contain_text("the bytes are no picture in a known format")
    expect(page.locator("#detail-title")).to_have_text("door.png")
    expect(page.locator("#announce")).to_contain_text("1 picture could not be scored")
    row.get_by_role("button").click()
    expect(page.locator("#detail")).to_contain_text("This picture was not scored. the bytes are no picture")
    page.get_by_role("button", name="Remove door.png").click()
    expect(page.locator("#sheet")).to_have_count(0)
    expect(page.locator("#detail-title")).to_have_text("notes.png")


def test_removing_a_picture_while_it_is_scored(page: Page, files: dict[str, Path]) -> None:
    held: list[Route] = []
    page.route("**/v1/score/batch", lambda route: held.append(route))  # noqa: PLW0108 - no built-in method will do
    page.set_input_files("#files", [files["door.png"], files["poor.png"]])
    expect(page.locator("#detail")).to_contain_text("Waiting for its scores")
    page.get_by_role("button", name="Remove door.png").click()
    expect(page.locator("#detail-title")).to_have_text("poor.png")
    for route in held:
        route.continue_()
    expect(page.locator(".score dl")).to_have_count(3)
    expect(page.locator("#detail-title")).to_have_text("poor.png")
    expect(page.locator("#announce")).to_contain_text("Scored poor.png")


def test_names_are_text_and_nothing_else(page: Page, files: dict[str, Path]) -> None:
    choose(page, files[HOSTILE], files["door.png"], prompt="<script>document.title = 'hacked'</script>")
    page.locator("#sheet").get_by_role("button", name=HOSTILE).click()
    expect(page.locator("#detail-title")).to_have_text(HOSTILE)
    assert page.locator("img[src='x']").count() == 0
    assert page.locator("main script").count() == 0
    assert page.title() == "critiq"


def test_the_heat_map_shows_every_tile(page: Page, files: dict[str, Path], watch: Watch) -> None:
    choose(page, files["door.png"])
    asked = len(watch.requests)
    page.click("#heat-switch")
    expect(page.locator(".legend")).to_be_visible(timeout=60_000)
    # 768 x 512 in tiles of 224 that overlap by half or more: 6 across, 4 down, 8 in a call.
    expect(page.locator(".heat-words")).to_contain_text("Each of 24 overlapping tiles of 224 × 224 pixels")
    assert watch.paths()[asked:].count("/v1/score/batch") == 3
    low, high = (float(text) for text in page.locator(".legend span").all_inner_texts()[:2])
    assert 0 <= low < high <= 1
    colours = page.locator("canvas.overlay").evaluate(
        """canvas => new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size"""
    )
    assert colours > 20
    words = page.locator(".heat-words p").first.inner_text()
    page.select_option("#heat-dimension", "technical")
    expect(page.locator(".heat-words p").first).to_contain_text("Technical quality: lowest")
    assert page.locator(".heat-words p").first.inner_text() != words
    page.click("#heat-switch")
    expect(page.locator("canvas.overlay")).to_be_hidden()


def test_a_picture_too_small_for_a_heat_map_says_so(page: Page, files: dict[str, Path]) -> None:
    choose(page, files["small.png"])
    expect(page.locator(".heat-why")).to_contain_text("needs 224 pixels on the shorter side and 336 on the longer")
    expect(page.locator("#heat-switch")).to_have_count(0)


def test_tiles_are_scored_as_pictures_of_their_own(page: Page, url: str, tmp_path: Path) -> None:
    """A picture of two tiles' width: the map's left end is the left tile's score, its right end the right one's."""
    left, right = photo(224, 224, seed=1), photo(224, 224, seed=5)
    both = Image.new("RGB", (448, 224))
    both.paste(left, (0, 0))
    both.paste(right, (224, 0))
    path = tmp_path / "both.png"
    both.save(path)
    for name, half in (("left", left), ("right", right)):
        half.save(tmp_path / f"{name}.png")
    scores = [
        ask(url, "/v1/score", [tmp_path / f"{name}.png"], dimensions="technical")["scores"][0]["calibrated"]
        for name in ("left", "right")
    ]
    choose(page, path)
    layout = page.evaluate("import('./page/heatmap.js').then(module => module.plan(448, 224))")
    assert layout == {"size": 224, "width": 448, "height": 224, "xs": [0, 112, 224], "ys": [0]}
    ends = page.evaluate(
        """async ([left, right]) => {
            const { localMap, plan } = await import("./page/heatmap.js");
            const tile = (x, value) => ({ x, y: 0, scores: new Map([["technical", { calibrated: value, raw: 0 }]]) });
            const map = localMap(plan(448, 224), [tile(0, left), tile(224, right)], "technical");
            return [map.values[0], map.values[map.columns - 1], map.lowest, map.highest];
        }""",
        scores,
    )
    assert ends[:2] == pytest.approx(scores)
    page.click("#heat-switch")
    expect(page.locator(".heat-words")).to_contain_text("Each of 3 overlapping tiles", timeout=30_000)


def test_red_is_worse_whatever_the_direction(page: Page) -> None:
    """Raw values of a dimension for which lower is better: the colours turn round, the values stay as they are."""
    left, right, flips = page.evaluate(
        """async () => {
            const { localMap, paint, plan } = await import("./page/heatmap.js");
            const score = (raw) => ({ calibrated: null, percentile: null, raw, direction: "lower_is_better" });
            const tile = (x, raw) => ({ x, y: 0, scores: new Map([["flaws", score(raw)]]) });
            const map = localMap(plan(448, 224), [tile(0, 90), tile(224, 10)], "flaws");
            const canvas = document.createElement("canvas");
            paint(canvas, map);
            const row = [...canvas.getContext("2d").getImageData(0, 0, map.columns, 1).data];
            return [row.slice(0, 4), row.slice(-4), map.lowerIsBetter];
        }"""
    )
    assert flips
    assert left == [178, 34, 68, 255]
    assert right == pytest.approx([22, 96, 128, 255], abs=1)


def test_everything_by_keyboard(page: Page, files: dict[str, Path]) -> None:
    # From the beginning: a listener that comes just before the key press may miss the chooser.
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))  # noqa: PLW0108 - no built-in method will do
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#tab-score")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-live")).to_be_focused()
    expect(page.locator("#view-live")).to_be_visible()
    page.keyboard.press("End")
    expect(page.locator("#view-drift")).to_be_visible()
    page.keyboard.press("Home")
    expect(page.locator("#view-score")).to_be_visible()
    reach(page, page.locator("#drop"))
    assert page.locator("#drop").evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    for _ in range(500):
        page.wait_for_timeout(20)
        if choosers:
            break
    choosers[0].set_files([files["door.png"], files["poor.png"]])
    expect(page.locator("#sheet .number")).to_have_count(6)
    reach(page, page.locator("#prompt"))
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#sheet .number")).to_have_count(8)
    sort = page.get_by_role("button", name="Aesthetic quality", exact=True)
    reach(page, sort)
    page.keyboard.press("Enter")
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Aesthetic quality")
    expect(page.get_by_role("button", name="Aesthetic quality", exact=True)).to_be_focused()
    row = page.locator("#sheet").get_by_role("button", name="door.png")
    reach(page, row)
    page.keyboard.press("Enter")
    expect(page.locator("#detail-title")).to_be_focused()
    expect(page.locator("#detail-title")).to_have_text("door.png")
    reach(page, page.locator("#heat-switch"))
    page.keyboard.press("Space")
    expect(page.locator(".legend")).to_be_visible(timeout=60_000)
    reach(page, page.get_by_role("button", name="Copy as curl").first)


def test_dropping_and_pasting(page: Page) -> None:
    give = """(kind) => {
        const transfer = new DataTransfer();
        const canvas = document.createElement("canvas");
        return new Promise((resolve) => canvas.toBlob((blob) => {
            transfer.items.add(new File([blob], `${kind}.png`, { type: "image/png" }));
            const event = kind === "paste"
                ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true, cancelable: true })
                : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
            resolve(!document.body.dispatchEvent(event));
        }));
    }"""
    for kind in ("drop", "paste"):
        assert page.evaluate(give, kind), "the browser would open the file itself"
    expect(page.locator("#chosen .name")).to_contain_text(["drop.png", "paste.png"])
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


@pytest.mark.parametrize("name", ["door.png", """it's; "one", <b>.jpg"""])
def test_the_curl_line_gives_the_same(page: Page, url: str, files: dict[str, Path], name: str) -> None:
    prompt = """it's "quoted"; $HOME `x` @file <b>"""
    choose(page, files[name], prompt=prompt)
    line = page.locator("#request pre").inner_text()
    command = ["bash", "-c", f"{line} --silent --noproxy '*'"]
    given = json.loads(
        subprocess.run(command, cwd=files[name].parent, capture_output=True, timeout=60, check=True).stdout
    )
    answer = ask(url, "/v1/score", [files[name]], prompt=prompt)
    for score in answer["scores"] + given["scores"]:
        del score["from_store"]
    assert len(given["scores"]) == 4
    assert given == answer


def test_the_clipboard_gets_the_line(page: Page, files: dict[str, Path]) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    choose(page, files["small.png"])
    expect(page.locator("pre")).to_have_count(2)  # the verdict's comes later, and stands first
    page.get_by_role("button", name="Copy as curl").first.click()
    expect(page.locator("#announce")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("pre").first.inner_text()


def test_the_live_view_counts_and_rests(page: Page, url: str, files: dict[str, Path], watch: Watch) -> None:
    page.click("#tab-live")
    expect(page.locator("#live-state")).to_have_text("updating every second")
    ask(url, "/v1/score", [files["small.png"]])
    counters = httpx.get(f"{url}/v1/live", trust_env=False).json()
    own = ("score", "critiq-builtin", "OK")
    (count,) = (
        entry["count"] for entry in counters["calls"] if (entry["operation"], entry["model"], entry["code"]) == own
    )
    rows = page.locator("#view-live tr", has_text="critiq-builtin").filter(has_text="OK")
    expect(rows.filter(has_not_text="batch").filter(has_text="score").locator("td").last).to_have_text(f"{count:,}")
    expect(page.locator(".small-multiples figure")).to_have_count(len(counters["scores"]))
    assert {entry["dimension"] for entry in counters["scores"]} >= {"visual_quality", "technical", "aesthetic"}
    expect(page.locator(".lines .line.first").first).to_be_attached()
    page.click("#tab-score")
    page.wait_for_timeout(300)
    asked = watch.paths().count("/v1/live")
    page.wait_for_timeout(2200)
    assert watch.paths().count("/v1/live") == asked


def test_drift_shows_what_the_server_says(page: Page, url: str, files: dict[str, Path]) -> None:
    ask(url, "/v1/score", [files["small.png"]])
    page.click("#tab-drift")
    expect(page.locator(".drift h4", has_text="visual quality")).to_be_visible()
    report = httpx.get(f"{url}/v1/drift", trust_env=False).json()
    expect(page.locator("article.drift")).to_have_count(len(report["series"]))
    expect(page.locator(".live-head .pill").first).to_have_text(report["state"].capitalize())


def test_dark_and_light_and_still(browser: Browser, url: str) -> None:
    grounds = {}
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        page = browser.new_page(color_scheme=scheme, reduced_motion="reduce")
        page.goto(url)
        grounds[scheme] = page.locator("body").evaluate("node => getComputedStyle(node).backgroundColor")
        assert page.locator("#drop").evaluate("node => getComputedStyle(node).transitionDuration") == "0s"
        page.close()
    light, dark = (sum(int(part) for part in grounds[name][4:-1].split(",")) for name in ("light", "dark"))
    assert light > 600
    assert dark < 120


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 360)])
def test_rules_of_accessibility(browser: Browser, url: str, files: dict[str, Path], scheme: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    page.goto(url)
    expect(page.locator("#judges h4")).to_have_count(4)

    def check(state: str) -> None:
        assert problems(page) == [], state
        assert page.evaluate("document.documentElement.scrollWidth") == width, f"{state} scrolls sideways"

    check("start")
    choose(page, files["door.png"], prompt=PROMPT)
    expect(page.locator(".decision")).to_be_visible()
    check("one picture")
    page.click("#heat-switch")
    expect(page.locator(".legend")).to_be_visible(timeout=60_000)
    check("heat map")
    choose(page, files["poor.png"], files["notes.png"], prompt=PROMPT)
    expect(page.locator("#sheet .bad-text")).to_be_visible()
    check("several pictures")
    for name in ("live", "drift"):
        page.click(f"#tab-{name}")
        expect(page.locator(f"#view-{name} section").first).to_be_visible()
        check(name)
    page.close()
