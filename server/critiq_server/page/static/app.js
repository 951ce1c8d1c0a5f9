// The page: what was chosen, what was asked, what came back.

import { ApiError, get, score } from "./api.js";
import { command, curl } from "./curl.js";
import { announce, byId, el, many, number, show } from "./dom.js";
import { Drift } from "./drift.js";
import { Live } from "./live.js";
import { Pictures } from "./pictures.js";
import { drawRanking } from "./ranking.js";
import { ranking, share } from "./reference.js";
import { detail, judges } from "./results.js";
import { startTabs } from "./tabs.js";
import { Verdicts } from "./verdict.js";

// `picked`: the visitor chose whose card is shown; until then it is the best picture's.
const state = { models: [], by: "", ascending: false, selected: 0, picked: false, asked: null, running: null };
const verdicts = new Verdicts();
const pictures = new Pictures(changed);

async function start() {
  const views = { live: new Live(byId("view-live")), drift: new Drift(byId("view-drift")) };
  startTabs((name) => {
    for (const [other, view] of Object.entries(views)) view.shown(other === name);
  });
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
  });
  byId("clear").addEventListener("click", clear);
  byId("model").addEventListener("change", () => {
    aboutModel();
    if (pictures.list.length) run();
  });
  await Promise.all([loadModels(), verdicts.load()]);
  draw(); // a quick visitor has a picture's card already, without the policies
}

async function loadModels() {
  try {
    const { models } = await get("v1/models");
    state.models = models.filter((model) => model.state === "ready");
    notice("");
  } catch (error) {
    notice(error.message, loadModels);
    return;
  }
  show(byId("model"), state.models.map((model, at) =>
    el("option", { value: at, ".selected": model.is_default }, `${model.name} ${model.version}`)));
  if (!state.models.length) notice("No model is ready on this server yet.", loadModels);
  aboutModel();
}

function aboutModel() {
  const model = chosenModel();
  byId("model-about").textContent = model ? model.description : "";
  show(byId("judges"), model && judges(model));
}

const chosenModel = () => state.models[Number(byId("model").value)];

function clear() {
  state.running?.abort();
  pictures.clear();
  byId("prompt").value = "";
  byId("drop").focus();
  announce("Cleared.");
}

function changed(added) {
  if (!pictures.list.some((picture) => picture.id === state.selected)) {
    state.selected = pictures.list[0]?.id ?? 0;
    state.picked = false;
  }
  if (added) run();
  else draw();
}

/** Scores what was chosen. A run under way gives way: what it has not answered is asked again. */
async function run() {
  if (!pictures.list.length) {
    announce("Choose a picture first.");
    byId("drop").focus();
    return;
  }
  const model = chosenModel();
  if (!model) {
    await loadModels();
    if (!chosenModel()) return;
  }
  state.running?.abort();
  const running = new AbortController();
  const asked = { prompt: byId("prompt").value.trim(), model: chosenModel(), signal: running.signal };
  const same = state.asked && state.asked.prompt === asked.prompt && state.asked.model === asked.model;
  if (!same) state.by = "";
  Object.assign(state, { running, asked });
  const list = pictures.list.slice();
  for (const picture of list) {
    if (!same || !picture.result) Object.assign(picture, { result: null, error: null });
  }
  const due = list.filter((picture) => !picture.result);
  let done = 0;
  notice("");
  progress(`Scoring ${many(due.length, "picture")} …`);
  draw();
  try {
    await score(due.map((picture) => picture.file), asked, {
      signal: running.signal,
      onWait: (seconds) => progress(`The server is busy; trying again in ${number(seconds, 1)} s …`),
      onItem: (at, { result, error }) => {
        Object.assign(due[at], { result, error });
        done += 1;
        progress(`${done} of ${many(due.length, "picture")} scored`);
        if (done % 8 === 0) draw();
      },
    });
    finish(list);
  } catch (error) {
    if (error.name === "AbortError") return;
    progress("");
    const words = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
    for (const picture of due) {
      if (!picture.result && !picture.error) picture.error = new ApiError(error.code ?? "PAGE", words);
    }
    notice(words, run);
    draw();
    if (!(error instanceof ApiError)) throw error;
  }
}

function finish(asked) {
  progress("");
  const list = asked.filter((picture) => pictures.list.includes(picture)); // some may have been removed meanwhile
  if (!list.length) return;
  const [best] = state.by ? ranking(list, state.by) : [];
  if (best?.rank && !state.picked) state.selected = list[best.index].id;
  draw();
  const failed = list.filter((picture) => picture.error).length;
  const busy = list.find((picture) => picture.error?.status === 429 || picture.error?.code === "TOO_BUSY");
  if (busy) notice(`The server is too busy: ${busy.error.message}`, run);
  const scored = list.length - failed;
  announce([scored && summary(list), failed && `${many(failed, "picture")} could not be scored.`].filter(Boolean).join(" "));
}

function summary(list) {
  if (list.length > 1) {
    const best = ranking(list, state.by)[0];
    return `${many(list.length, "picture")} ranked by ${titleOf(state.by)}; the best is ${list[best.index].name}.`;
  }
  const values = list[0].result.scores.map((entry) => `${titleOf(entry.dimension)} ${number(share(entry) ?? entry.raw)}`);
  return `Scored ${list[0].name}: ${values.join(", ")}.`;
}

const titleOf = (name) => state.asked.model.dimensions.find((dimension) => dimension.name === name)?.title ?? name;

/** The dimensions that came back, in the model's order. */
function answered() {
  const { prompt, model } = state.asked;
  return model.dimensions.filter((dimension) => prompt || !dimension.needs_prompt);
}

function draw() {
  const list = pictures.list;
  byId("welcome").hidden = list.length > 0;
  if (!list.length || !state.asked) {
    show(byId("ranking"));
    show(byId("detail"));
    show(byId("request"));
    return;
  }
  const dimensions = answered();
  // As the server ranks when no dimension is named: by the first that reads the prompt, else by the first.
  state.by ||= (dimensions.find((dimension) => dimension.needs_prompt) ?? dimensions[0])?.name ?? "";
  if (list.length > 1) {
    drawRanking(byId("ranking"), list, dimensions, state, (change) => draw(Object.assign(state, change)), select);
  } else show(byId("ranking"));
  const picture = list.find((entry) => entry.id === state.selected);
  drawDetail(picture);
  show(byId("request"), request(list, dimensions));
}

/** Keeps what the visitor does inside the card (a heat map switched on) while other pictures' scores arrive. */
function drawDetail(picture) {
  const { prompt, model } = state.asked;
  const key = JSON.stringify([
    picture.id, Boolean(picture.result), picture.error?.message, prompt, model.name, model.version, verdicts.policies?.length,
  ]);
  const node = byId("detail");
  if (node.dataset.key === key && node.childElementCount) return;
  node.dataset.key = key;
  show(node, detail(picture, model), picture.result && verdicts.card(picture, state.asked));
}

function select(id) {
  Object.assign(state, { selected: id, picked: true });
  draw();
  byId("detail-title").focus({ preventScroll: true });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("detail").scrollIntoView({ behavior: still ? "auto" : "smooth", block: "nearest" });
}

function request(list, dimensions) {
  const names = list.map((picture) => picture.name);
  const { prompt, model } = state.asked;
  const several = list.length > 1;
  const about = several ? "The same in one call" : "The call that gave these scores";
  const commands = [command(about, curl(several ? "v1/score/batch" : "v1/score", names, { prompt, model }))];
  if (several) {
    const by = dimensions.some((dimension) => dimension.name === state.by) ? [state.by] : [];
    commands.push(command("The ranking alone", curl("v1/rank", names, { prompt, model, dimensions: by })));
  }
  return el("section", { class: "card", "aria-labelledby": "request-title" },
    el("h2", { id: "request-title" }, "From a terminal"),
    el("p", { class: "hint" }, "Run it where the pictures lie. The ", el("a", { href: "docs" }, "API's description"),
      " has all other calls and forms."),
    commands);
}

function progress(text) {
  byId("progress").textContent = text;
  byId("results").setAttribute("aria-busy", String(Boolean(text)));
}

function notice(text, again) {
  const node = byId("server-notice");
  node.hidden = !text;
  const button = again && el("button", { type: "button", class: "plain", onclick: () => again() }, "Try again");
  show(node, text && [el("span", {}, text), button]);
}

start();
