// Whether scores and pictures are still what they were: what /v1/drift says, drawn.

import { get } from "./api.js";
import { bars } from "./charts.js";
import { absent, el, many, number, show, table } from "./dom.js";

const SECONDS = 15;
const STATES = {
  learning: ["", "Learning", "not enough values yet to say"],
  steady: ["good", "Steady", "as far as chance allows"],
  warning: ["warn", "Warning", "different; could be chance"],
  alarm: ["bad", "Alarm", "surely different"],
};
const KINDS = { score: "Scores", input: "Pictures and prompts", embedding: "Embeddings" };
const UNITS = { pixels: "pixels of a picture", bytes: "bytes of a picture", format: "file formats", prompt_length: "length of prompts" };

const ABOUT = "Windows of the last minutes, hours and days are held against a baseline, which is earlier traffic, and where there "
  + "is one against the model's reference set. The gap is the largest difference between the two shares of values up to any point "
  + "(0: the same, 1: nothing in common; of embeddings: standard deviations). p bounds the probability of such a gap, had nothing "
  + "changed.";

export class Drift {
  constructor(node) {
    this.node = node;
    this.visible = false;
    document.addEventListener("visibilitychange", () => this.update());
  }

  shown(visible) {
    this.visible = visible;
    this.update();
  }

  update() {
    const looking = this.visible && !document.hidden;
    clearInterval(this.timer);
    this.timer = looking ? setInterval(() => this.load(), SECONDS * 1000) : null;
    if (looking) this.load();
  }

  async load() {
    try {
      this.draw(await get("v1/drift"));
    } catch (error) {
      const missing = error.status === 404;
      const text = missing ? "This server does not watch for drift." : error.message;
      show(this.node, head(null), el("p", { class: `notice ${missing ? "warn" : "bad"}` }, text));
    }
  }

  draw(report) {
    const missing = absent(report);
    const shown = JSON.stringify([report.series, missing]);
    if (this.drawn === shown && this.node.childElementCount) return;
    this.drawn = shown;
    const series = report.series;
    show(this.node, head(report),
      series.length > 0 && el("p", { class: "hint" }, ABOUT),
      missing && el("p", { class: "notice warn" }, missing),
      !report.enabled && el("p", { class: "notice warn" }, "Watching for drift is switched off in the server's settings."),
      report.enabled && !series.length && el("p", { class: "card hint" },
        "Nothing was scored yet. As pictures come in, their scores, sizes, formats and prompts are held against what came before."),
      groups(series).map(([title, members]) => el("section", { class: "card" },
        el("h3", {}, title),
        el("div", { class: "small-multiples wide" }, members.map((entry) => one(entry, report.rule))))));
  }
}

function head(report) {
  return el("div", { class: "card-head live-head" }, el("h2", {}, "Drift"), report && badge(report.state));
}

function badge(state) {
  const [tone, title, meaning] = STATES[state] ?? ["", state, ""];
  return el("span", { class: "state" }, el("span", { class: `pill ${tone}` }, title), el("span", { class: "hint" }, meaning));
}

/** Series of one model, label and kind together. */
function groups(series) {
  const found = new Map();
  const order = Object.keys(KINDS);
  for (const entry of [...series].sort((one, other) => order.indexOf(one.kind) - order.indexOf(other.kind))) {
    const label = entry.label ? `, label ${entry.label}` : "";
    const title = `${KINDS[entry.kind] ?? entry.kind}: ${entry.model} ${entry.version}${label}`;
    found.set(title, [...(found.get(title) ?? []), entry]);
  }
  return [...found];
}

function one(entry, rule) {
  const name = UNITS[entry.name] ?? entry.name.replaceAll("_", " ");
  return el("article", { class: "drift" },
    el("h4", {}, name),
    badge(entry.state),
    el("p", { class: "hint" }, `${many(entry.count, "value")} seen${since(entry)}`),
    entry.histogram && histogram(entry, name),
    entry.windows.length > 0 && table(`How ${name} differ`, ["Last", "Values", "Against", "Gap", "p"],
      entry.windows.flatMap((window) => Object.entries(window.comparisons).map(([against, found]) => [
        hours(window), window.count.toLocaleString("en-GB"), against,
        found.ks === null ? `${number(found.shift, 3)} sd` : number(found.ks, 3), chance(found.p_value),
      ]))),
    learning(entry, rule));
}

function histogram({ histogram: { edges, categories, shares }, against }, name) {
  const yardstick = shares[against] ? against : Object.keys(shares).find((key) => key !== "window");
  const series = [{ className: "first", shares: shares.window }];
  if (yardstick) series.push({ className: "second", shares: shares[yardstick] });
  const labels = categories.length ? categories : [`≤ ${short(edges[0])}`, `> ${short(edges.at(-1))}`];
  const words = categories.length
    ? categories.map((category, at) => `${category} ${number(100 * shares.window[at], 0)} %`).join(", ")
    : `${name} from ${short(edges[0])} to ${short(edges.at(-1))}, this window beside the ${yardstick}`;
  return el("div", {},
    bars(series, labels, words),
    el("p", { class: "key", "aria-hidden": "true" }, el("span", { class: "first" }, "this window"),
      yardstick && el("span", { class: "second" }, yardstick)));
}

function learning(entry, rule) {
  if (entry.baseline?.state === "learning") {
    const { count, wanted } = entry.baseline;
    return el("p", { class: "hint" }, `Learning the baseline: ${count.toLocaleString("en-GB")} of ${many(wanted, "value")}.`);
  }
  return entry.windows.length ? null : el("p", { class: "hint" }, `A window needs ${many(rule.least_count, "value")}.`);
}

const since = (entry) => (entry.since ? `; in this state since ${entry.since.replace("T", " ").replace("Z", " UTC")}` : "");

function hours({ start, end }) {
  const seconds = (Date.parse(end) - Date.parse(start)) / 1000;
  const [size, name] = [[86400, "day"], [3600, "hour"], [60, "min"], [1, "s"]].find(([unit]) => seconds >= 2 * unit) ?? [1, "s"];
  const count = Math.round(seconds / size);
  return name.length > 3 ? many(count, name) : `${count} ${name}`;
}

const short = (value) => value.toLocaleString("en-GB", { maximumSignificantDigits: 3 });
const chance = (value) => (value < 1e-4 ? "< 0.0001" : number(value, 4));
