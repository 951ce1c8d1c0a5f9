// The picture with its heat map: a switch, the dimension, the legend, and what it shows in words.

import { ApiError } from "./api.js";
import { announce, el, many, number, show, svg } from "./dom.js";
import { colour, localMap, paint, plan, scoreTiles, span, TILE } from "./heatmap.js";

/** `facts` stand beside the picture, above the switch. The tiles' scores by a model are asked for once, and kept with it. */
export function heatPanel(picture, model, facts) {
  const local = model.dimensions.filter((dimension) => !dimension.needs_prompt);
  const image = el("img", { src: picture.url, alt: `The picture ${picture.name}`, class: "subject" });
  const canvas = el("canvas", { class: "overlay", hidden: true, "aria-hidden": "true" });
  const frame = el("div", { class: "frame" }, image, canvas);
  image.addEventListener("error", () => {
    frame.replaceWith(el("p", { class: "hint" }, "This browser cannot show the picture; the server can read it."));
  });
  const { width, height } = picture.result.image;
  const layout = plan(width, height);
  if (!layout || !local.length) {
    const why = layout
      ? "No heat map: every dimension of this model needs the prompt, which says nothing about a part of the picture."
      : `Too small for a heat map: it needs ${TILE} pixels on the shorter side and ${1.5 * TILE} on the longer.`;
    return el("div", { class: "heat" }, frame, el("div", { class: "aside" }, facts, el("p", { class: "hint heat-why" }, why)));
  }

  picture.tiles ??= new Map();
  const [kept, key] = [picture.tiles, `${model.name} ${model.version}`];
  const words = el("div", { class: "heat-words" });
  const toggle = el("button", {
    type: "button", role: "switch", class: "switch", id: "heat-switch", "aria-checked": "false", onclick: flip,
  }, el("span", { class: "knob", "aria-hidden": "true" }), "Heat map");
  const choice = el("select", {
    id: "heat-dimension", "aria-label": "Dimension of the heat map", onchange: async () => draw(await kept.get(key)),
  }, local.map((dimension) => el("option", { value: dimension.name }, dimension.title)));
  const panel = el("div", { class: "heat-choice", hidden: true }, choice);
  return el("div", { class: "heat" }, frame, el("div", { class: "aside" }, facts, el("div", { class: "heat-bar" }, toggle, panel), words));

  async function flip() {
    const on = toggle.getAttribute("aria-checked") !== "true";
    toggle.setAttribute("aria-checked", String(on));
    panel.hidden = !on;
    words.hidden = !on;
    canvas.hidden = true;
    if (!on) return;
    try {
      kept.set(key, kept.get(key) ?? compute());
      draw(await kept.get(key));
    } catch (error) {
      kept.delete(key);
      const text = error instanceof ApiError ? error.message : "this browser cannot read the picture's pixels.";
      show(words, el("p", { class: "notice bad", role: "alert" }, `No heat map: ${text}`));
      toggle.setAttribute("aria-checked", "false");
      panel.hidden = true;
    }
  }

  async function compute() {
    const all = layout.xs.length * layout.ys.length;
    const progress = el("progress", { max: all, value: 0, "aria-label": "Tiles scored" });
    const note = el("span", { class: "hint" }, `Scoring ${many(all, "tile")} …`);
    show(words, el("p", { class: "heat-progress" }, progress, note));
    const onProgress = (done) => {
      progress.value = done;
      note.textContent = `${done} of ${many(all, "tile")} scored`;
    };
    const onWait = (seconds) => { note.textContent = `The server is busy; trying again in ${number(seconds, 1)} s`; };
    const bitmap = await createImageBitmap(picture.file);
    try {
      return await scoreTiles(bitmap, layout, { model, dimensions: local.map((dimension) => dimension.name) }, onProgress, onWait);
    } finally {
      bitmap.close();
    }
  }

  function draw({ tiles, failed }) {
    if (toggle.getAttribute("aria-checked") !== "true") return;
    const dimension = local.find((entry) => entry.name === choice.value);
    const map = localMap(layout, tiles, dimension.name);
    paint(canvas, map);
    canvas.hidden = false;
    const ends = `lowest ${number(map.low)} at the ${map.lowest}, highest ${number(map.high)} at the ${map.highest}`;
    const summary = `${dimension.title}: ${ends}.`;
    show(words,
      legend(map),
      el("p", {}, summary),
      el("p", { class: "hint" }, `Each of ${many(tiles.length, "overlapping tile")} of ${layout.size} × ${layout.size} pixels was cut out at the `
        + "picture's own resolution and judged by itself, as if it were a whole picture. A plain sky or a soft background can come out "
        + `low although nothing is wrong with it.${failed ? ` ${many(failed, "tile")} could not be scored.` : ""}`));
    announce(summary);
  }
}

const rgb = (at) => `rgb(${colour(at).join(" ")})`;

function legend(map) {
  const [from, to] = span(map);
  const stops = [0, 0.25, 0.5, 0.75, 1];
  const id = `colours-${Math.random().toString(36).slice(2)}`;
  return el("div", { class: "legend" },
    el("span", {}, number(from)),
    svg("svg", {
      viewBox: "0 0 100 1", preserveAspectRatio: "none", role: "img", "aria-label": `Colours from ${number(from)} to ${number(to)}`,
    },
    svg("linearGradient", { id }, stops.map((at) => svg("stop", { offset: at, "stop-color": rgb(map.lowerIsBetter ? 1 - at : at) }))),
    svg("rect", { width: 100, height: 1, fill: `url(#${id})` })),
    el("span", {}, number(to)),
    el("span", { class: "hint" }, "red: worse, blue: better"));
}
