// Traffic as it happens: the server's counters twice a second apart, and what changed between them.

import { get } from "./api.js";
import { absent, el, many, number, bytes, show, table } from "./dom.js";
import { bars, lines } from "./charts.js";

const SECONDS = 1;
const SLOTS = 120;

export class Live {
  constructor(node) {
    this.node = node;
    this.samples = []; // {time, calls, failed, p50, p95} of each second, null where the view was not looking
    this.last = null;
    this.timer = null;
    this.visible = false;
    document.addEventListener("visibilitychange", () => this.update());
  }

  /** The view came up, or went away. */
  shown(visible) {
    this.visible = visible;
    this.update();
  }

  update() {
    const looking = this.visible && !document.hidden;
    if (looking && !this.timer) {
      this.frame();
      this.last = null; // what happened meanwhile is no second's traffic
      this.timer = setInterval(() => this.tick(), SECONDS * 1000);
      this.tick();
    } else if (!looking && this.timer) {
      clearInterval(this.timer);
      this.timer = null;
      this.push(null);
    }
  }

  /** The fixed parts: drawn once, so that what moves does not take the focus or the scroll position along. */
  frame() {
    if (this.node.childElementCount) return;
    this.parts = Object.fromEntries(["figures", "traffic", "latency", "stages", "scores", "outcomes"].map((name) => [name, el("div", {})]));
    this.state = el("span", { class: "live-state", id: "live-state" }, "…");
    const card = (title, body, about) =>
      el("section", { class: "card" }, el("h3", {}, title), about && el("p", { class: "hint" }, about), body);
    show(this.node,
      el("div", { class: "card-head live-head" }, el("h2", {}, "Live"), this.state),
      this.parts.figures,
      el("div", { class: "two" },
        card("Calls a second", this.parts.traffic),
        card("Time to answer", this.parts.latency, "of all calls in the second before; lines: half of them, and 95 of 100, were faster")),
      card("Scores given", this.parts.scores, "since the server started, 0 (worst) to 1 (best)"),
      card("Batches", this.parts.stages, "since the server started; larger batches mean that callers share the work"),
      card("Answers", this.parts.outcomes, "since the server started"));
  }

  async tick() {
    if (this.asking) return;
    this.asking = true;
    try {
      const now = await get("v1/live");
      // What a process counted comes and goes with it: that is no second's traffic.
      if (this.last) this.push(sameProcesses(this.last, now) ? between(this.last, now) : null);
      this.last = now;
      const missing = absent(now);
      this.state.textContent = missing || "updating every second";
      this.state.classList.toggle("bad-text", Boolean(missing));
      this.draw(now);
    } catch (error) {
      this.push(null);
      this.last = null;
      this.state.textContent = error.message;
      this.state.classList.add("bad-text");
    } finally {
      this.asking = false;
    }
  }

  push(sample) {
    this.samples.push(sample);
    if (this.samples.length > SLOTS) this.samples.shift();
  }

  draw(now) {
    const latest = recent(this.samples);
    const { figures, traffic, latency, stages, scores, outcomes } = this.parts;
    const looked = now.store.hits + now.store.misses;
    show(figures, el("dl", { class: "figures" },
      figure("Calls a second", number(latest.calls, 1)),
      figure("Pictures a second", number(latest.pictures, 1)),
      figure("Under way", String(now.under_way.pictures), `of ${now.under_way.pictures_limit} pictures, ${bytes(now.under_way.bytes)}`),
      figure("Half answered within", latest.p50 === null ? "–" : milliseconds(latest.p50)),
      figure("Found in memory", looked ? `${number((100 * now.store.hits) / looked, 0)} %` : "–",
        `${many(looked, "look-up")}, ${bytes(now.store.bytes)} kept`)));
    const pick = (name) => this.samples.map((sample) => sample && sample[name]);
    show(traffic, lines([{ className: "first", values: pick("calls") }, { className: "second", values: pick("failed") }], SLOTS,
      `Calls a second over two minutes; now ${number(latest.calls, 1)}, of which ${number(latest.failed, 1)} failed.`),
    key([["first", "all"], ["second", "failed"]]));
    show(latency, lines([{ className: "first", values: pick("p50") }, { className: "second", values: pick("p95") }], SLOTS,
      `Time to answer over two minutes; now ${milliseconds(latest.p50)} for half of the calls.`, " ms"),
    key([["first", "half"], ["second", "95 %"]]));
    show(scores, histograms(now.scores));
    keepScroll(stages, stageTable(now.stages));
    keepScroll(outcomes, table("Calls by outcome", ["Operation", "Model", "Outcome", "Calls"],
      now.calls.map(({ operation, model, code, count }) => [operation, model, code, count.toLocaleString("en-GB")])));
  }
}

/** Whether two answers tell of the same processes: none came, went, or began anew. */
function sameProcesses(before, after) {
  const all = ({ calls }) => calls.reduce((sum, { count }) => sum + count, 0);
  return JSON.stringify(before.processes) === JSON.stringify(after.processes) && all(before) <= all(after);
}

/** What happened between two answers, a second. */
function between(before, after) {
  const seconds = Math.max(0.001, after.time - before.time);
  const rate = (entries) => entries.reduce((sum, entry) => sum + entry.count, 0);
  const failed = (entries) => rate(entries.filter((entry) => entry.code !== "OK"));
  const spent = merged(after.latency.map((entry) => entry.seconds));
  const spentBefore = merged(before.latency.map((entry) => entry.seconds));
  const fresh = spent.counts.map((count, at) => count - (spentBefore.counts[at] ?? 0));
  return {
    calls: (rate(after.calls) - rate(before.calls)) / seconds,
    failed: (failed(after.calls) - failed(before.calls)) / seconds,
    pictures: (rate(after.pictures) - rate(before.pictures)) / seconds,
    p50: times(1000, quantile(spent.bounds, fresh, 0.5)),
    p95: times(1000, quantile(spent.bounds, fresh, 0.95)),
  };
}

const times = (factor, value) => (value === null ? null : factor * value);
const milliseconds = (value) => (value === null ? "–" : `${number(value, value < 10 ? 1 : 0)} ms`);

function merged(distributions) {
  const bounds = distributions[0]?.bounds ?? [];
  const counts = Array.from({ length: bounds.length + 1 }, (_, at) => distributions.reduce((sum, entry) => sum + entry.counts[at], 0));
  return { bounds, counts };
}

/** A quantile of a histogram, linear within its bucket; null if it is empty. */
function quantile(bounds, counts, share) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (!all) return null;
  let left = share * all;
  for (let at = 0; at < counts.length; at += 1) {
    if (left <= counts[at] && counts[at] > 0) {
      const from = at === 0 ? 0 : bounds[at - 1];
      return at === bounds.length ? from : from + ((bounds[at] - from) * left) / counts[at];
    }
    left -= counts[at];
  }
  return bounds.at(-1);
}

/** Means over the last five seconds: single ones jump. */
function recent(samples) {
  const last = samples.slice(-5).filter(Boolean);
  const mean = (name) => {
    const values = last.map((sample) => sample[name]).filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  };
  return { calls: mean("calls") ?? 0, failed: mean("failed") ?? 0, pictures: mean("pictures") ?? 0, p50: mean("p50") };
}

const total = (distribution) => distribution.counts.reduce((sum, count) => sum + count, 0);
const mean = (distribution) => distribution.sum / Math.max(1, total(distribution));

function histograms(scores) {
  if (!scores.length) return el("p", { class: "hint" }, "None yet.");
  return el("div", { class: "small-multiples" }, scores.map(({ model, version, dimension, values }) => {
    const all = total(values);
    const shares = values.counts.slice(0, -1).map((count) => count / all);
    const about = `${many(all, "score")}, mean ${number(mean(values))}`;
    return el("figure", {},
      el("figcaption", {}, el("strong", {}, dimension.replaceAll("_", " ")), el("span", { class: "hint" }, `${model} ${version}, ${about}`)),
      bars([{ className: "first", shares }], ["0", "1"], `${dimension} of ${model} ${version}: ${about}.`));
  }));
}

function stageTable(stages) {
  if (!stages.length) return el("p", { class: "hint" }, "None yet.");
  return table("Batches of each stage", ["Stage", "Model", "Batches", "Mean size", "Sizes", "Waiting", "Computing"],
    stages.map(({ model, stage, batch_size: sizes, queue_seconds: queue, compute_seconds: compute }) => [
      stage, model, total(sizes).toLocaleString("en-GB"), number(mean(sizes), 1), sizeBars(sizes),
      milliseconds(1000 * mean(queue)), milliseconds(1000 * mean(compute)),
    ]));
}

function sizeBars(sizes) {
  const all = Math.max(1, total(sizes));
  const size = (at) => (at < sizes.bounds.length ? `up to ${sizes.bounds[at]}` : "more");
  const words = sizes.counts.map((count, at) => count && `${size(at)}: ${count}`).filter(Boolean).join(", ");
  const ends = ["1", `over ${sizes.bounds.at(-1)}`];
  return bars([{ className: "first", shares: sizes.counts.map((count) => count / all) }], ends, words || "none");
}

const figure = (name, value, about) =>
  el("div", {}, el("dt", {}, name), el("dd", {}, value, about && el("span", { class: "hint" }, about)));

const key = (entries) =>
  el("p", { class: "key", "aria-hidden": "true" }, entries.map(([name, words]) => el("span", { class: name }, words)));

/** Replaces a table without losing where a visitor scrolled it to, or the focus on it. */
function keepScroll(node, fresh) {
  const old = node.querySelector(".scroll");
  const [left, focused] = [old?.scrollLeft ?? 0, old === document.activeElement];
  show(node, fresh);
  if (node.querySelector(".scroll")) node.querySelector(".scroll").scrollLeft = left;
  if (old && focused) node.querySelector(".scroll")?.focus();
}
