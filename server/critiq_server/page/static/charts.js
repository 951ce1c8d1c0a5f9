// Small pictures of numbers, as SVG. Each has its meaning in words beside the drawing.

import { el, number, svg } from "./dom.js";
import { density } from "./reference.js";

const GAUGE = { width: 200, height: 124, x: 100, y: 100, radius: 80 };

function onArc(value, radius = GAUGE.radius) {
  const angle = Math.PI * (1 - value);
  return [GAUGE.x + radius * Math.cos(angle), GAUGE.y - radius * Math.sin(angle)].map((at) => at.toFixed(2));
}

/** A half circle from 0 to 1. `value` null: empty. */
export function gauge(value, label) {
  const [endX, endY] = onArc(value ?? 0);
  const arc = (to) => `M20 100A80 80 0 0 1 ${to}`;
  const inside = value === null ? "no calibrated value" : `${number(value)} of 1`;
  return el("div", {
    class: "gauge", role: "meter", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "1",
    "aria-valuenow": value ?? 0, "aria-valuetext": inside,
  },
  svg("svg", { viewBox: `0 0 ${GAUGE.width} ${GAUGE.height}`, "aria-hidden": "true", focusable: "false" },
    svg("path", { class: "track", d: arc("180 100") }),
    value > 0 && svg("path", { class: `arc ${band(value)}`, d: arc(`${endX} ${endY}`) }),
    [0.25, 0.5, 0.75].map((at) => {
      const [x1, y1] = onArc(at, 66);
      const [x2, y2] = onArc(at, 61);
      return svg("line", { class: "tick", x1, y1, x2, y2 });
    }),
    svg("text", { class: "gauge-value", x: 100, y: 92 }, number(value)),
    svg("text", { class: "gauge-end", x: 20, y: 122 }, "0"),
    svg("text", { class: "gauge-end", x: 180, y: 122 }, "1")));
}

/** Low, middle or high: only a tint, the number is what counts. */
export function band(value) {
  if (value < 1 / 3) return "low";
  return value < 2 / 3 ? "middle" : "high";
}

/** The reference set as a curve over raw values, and where `raw` falls in it; null: the curve alone. */
export function distribution(quantiles, raw, direction) {
  const { from, to, heights } = density(quantiles);
  const x = (value) => 3 + 94 * ((Math.min(to, Math.max(from, value)) - from) / (to - from));
  const y = (height) => 72 - height * 56;
  const step = (to - from) / heights.length;
  const inner = heights.map((height, at) => [x(from + (at + 0.5) * step), y(height)]);
  const points = [[x(from), y(heights[0])], ...inner, [x(to), y(heights.at(-1))]];
  const path = `M${points.map(([px, py]) => `${px.toFixed(2)} ${py.toFixed(2)}`).join("L")}`;
  const area = `${path}L${x(to)} 72L${x(from)} 72Z`;
  const lower = direction === "lower_is_better";
  return el("figure", { class: "curve" },
    plot(72, curveInWords(quantiles, raw, lower),
      svg("path", { class: "area", d: area }),
      raw === null ? null : passed(area, x(raw), lower),
      svg("path", { class: "outline", d: path }),
      svg("line", { class: "axis", x1: 3, x2: 97, y1: 72, y2: 72 }),
      raw === null ? null : [
        svg("line", { class: "marker", x1: x(raw), x2: x(raw), y1: 8, y2: 72 }),
        svg("path", { class: "marker-dot", d: `M${x(raw)} 8h0.01` }),
      ]),
    ends(number(from), lower ? "← better" : "better →", number(to)));
}

function passed(area, at, lower) {
  const id = `passed-${Math.random().toString(36).slice(2)}`;
  return [
    svg("clipPath", { id }, svg("rect", { x: lower ? at : 0, y: 0, width: lower ? 100 - at : at, height: 72 })),
    svg("path", { class: "area passed", d: area, "clip-path": `url(#${id})` }),
  ];
}

function curveInWords(quantiles, raw, lower) {
  const [from, to] = [quantiles[0], quantiles.at(-1)];
  const median = quantiles[(quantiles.length - 1) >> 1];
  const beyond = raw < from || raw > to ? " (beyond the reference set)" : "";
  return `Reference set: raw values from ${number(from)} to ${number(to)}, half of them below ${number(median)}. `
    + `${raw === null ? "" : `This picture: ${number(raw)}${beyond}; `}${lower ? "lower" : "higher"} is better.`;
}

/** A drawing that fills the width it gets: 100 units wide, `height` pixels high; lines keep their thickness. */
function plot(height, words, ...children) {
  return svg("svg", {
    class: `plot high-${height}`, viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": words,
  }, children);
}

/** Labels under a drawing, as text of the page: they keep their size whatever the width. */
function ends(...labels) {
  return el("div", { class: "ends", "aria-hidden": "true" }, labels.map((label) => el("span", {}, label)));
}

/** A short horizontal bar for 0..1. */
export function bar(value) {
  return svg("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" },
    svg("rect", { class: "track", width: 100, height: 6, rx: 3 }),
    value > 0 && svg("rect", { class: `fill ${band(value)}`, width: 100 * Math.min(1, value), height: 6, rx: 3 }));
}

/**
 * Bars side by side. `series`: [{className, shares}], each drawn over the same bins; `labels` stand along the axis, each
 * under its bin where there is one a bin.
 */
export function bars(series, labels, words) {
  const count = Math.max(1, series[0]?.shares.length ?? 0);
  const tallest = Math.max(1e-12, ...series.flatMap((entry) => entry.shares));
  const slot = 100 / count;
  const part = (0.86 * slot) / series.length;
  const one = (className, share, left) => {
    const height = Math.max(1, (60 * share) / tallest);
    return svg("rect", { class: className, x: left, y: 64 - height, width: part, height });
  };
  return el("div", { class: labels.length === count ? "bars even" : "bars" },
    plot(64, words,
      series.map((entry, which) => entry.shares.map((share, at) =>
        (share > 0 ? one(entry.className, share, (at + 0.07) * slot + which * part) : null))),
      svg("line", { class: "axis", x1: 0, x2: 100, y1: 63.5, y2: 63.5 })),
    ends(...labels));
}

/** Lines over time. `series`: [{className, values}] with null for gaps; the newest value stands at the right edge. */
export function lines(series, slots, words, unit = "") {
  const known = series.flatMap((entry) => entry.values.filter((value) => value !== null));
  const top = nice(Math.max(0, ...known));
  const x = (at, length) => (100 * (slots - length + at)) / (slots - 1);
  const y = (value) => 126 - (122 * value) / top;
  const paths = series.map((entry) => {
    let path = "";
    let open = false;
    entry.values.forEach((value, at) => {
      if (value !== null) {
        const point = `${x(at, entry.values.length).toFixed(2)} ${y(value).toFixed(2)}`;
        path += open ? `L${point}` : `M${point}h0.01`; // the dash shows a value between two gaps
      }
      open = value !== null;
    });
    return path && svg("path", { class: `line ${entry.className}`, d: path });
  });
  const levels = [1, 0.5, 0];
  return el("div", { class: "lines" },
    el("div", { class: "levels", "aria-hidden": "true" }, levels.map((part) => el("span", {}, `${short(part * top)}${unit}`))),
    plot(130, words, levels.map((part) => svg("line", { class: "grid", x1: 0, x2: 100, y1: y(part * top), y2: y(part * top) })), paths),
    ends("2 minutes ago", "now"));
}

function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

const short = (value) => value.toLocaleString("en-GB", { maximumSignificantDigits: 3 });
