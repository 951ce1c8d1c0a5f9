// Everything about one picture: the picture itself with its heat map, what was done to it, its scores.

import { el, many, number } from "./dom.js";
import { distribution, gauge } from "./charts.js";
import { share } from "./reference.js";
import { heatPanel } from "./heatpanel.js";

/** A picture's card and the cards of its scores. `model` describes the dimensions. */
export function detail(picture, model) {
  const head = el("div", { class: "card-head" }, el("h2", { id: "detail-title", tabindex: "-1", class: "file-name" }, picture.name));
  if (picture.error) {
    return el("section", { class: "card failed", "aria-labelledby": "detail-title" }, head,
      el("p", { class: "notice bad" }, el("strong", {}, "This picture was not scored. "), picture.error.message,
        el("span", { class: "code" }, ` ${picture.error.code}`)));
  }
  if (!picture.result) {
    return el("section", { class: "card", "aria-labelledby": "detail-title", "aria-busy": "true" }, head,
      el("p", { class: "hint waiting" }, "Waiting for its scores …"));
  }
  const { scores, image, prompt } = picture.result;
  return el("div", { class: "detail" },
    el("section", { class: "card picture", "aria-labelledby": "detail-title" }, head, heatPanel(picture, model, facts(image, prompt))),
    el("section", { class: "scores", "aria-label": "Scores" },
      scores.map((score) => scoreCard(score, model.dimensions.find((entry) => entry.name === score.dimension))),
      unasked(model, scores)));
}

function facts(image, prompt) {
  const notes = remarks(image, prompt);
  return el("div", { class: "facts" },
    el("p", {}, `${image.format}, ${image.width} × ${image.height} pixels`),
    notes.length ? el("ul", {}, notes.map((note) => el("li", {}, note))) : null);
}

/** The report's flags in words. */
function remarks(image, prompt) {
  const flags = [
    [image.orientation_applied, "Turned upright, as its orientation tag says."],
    [image.alpha_flattened, "Transparent parts were put on the background colour."],
    [image.depth_scaled, "More than 8 bits a channel were scaled to 8."],
    [image.colour_converted, "Colours were converted to sRGB."],
    [image.first_frame_only, "Animated: only the first frame was judged."],
    [image.resized, "Resized to what the model sees."],
    [prompt?.truncated, prompt && `The prompt has ${many(prompt.token_count, "token")}; the model read the first ${prompt.token_limit}.`],
  ];
  return flags.filter(([set]) => set).map(([, words]) => words);
}

function scoreCard(score, dimension) {
  const quantiles = dimension?.reference_quantiles ?? [];
  const title = dimension?.title ?? score.dimension;
  return el("article", { class: "card score", "data-dimension": score.dimension },
    el("h3", {}, title),
    gauge(share(score), title),
    score.percentile !== null && el("p", { class: "standing" }, standing(score, dimension)),
    score.degraded && el("p", { class: "notice warn" }, el("strong", {}, "Stand-in. "),
      `A simpler head of the model gave this score: ${score.degraded_reason}`),
    el("p", { class: "meaning" }, dimension?.description ?? ""),
    score.scope === "within_prompt" && el("p", { class: "hint" }, "Compares pictures of one prompt only."),
    quantiles.length > 1 && !score.degraded ? distribution(quantiles, score.raw, score.direction) : null,
    el("dl", {},
      pair("Calibrated", score.calibrated === null ? "none" : number(score.calibrated, 4)),
      pair("Percentile", score.percentile === null ? "none" : number(score.percentile, 2)),
      pair(`Raw${range(dimension)}`, number(score.raw, 4))));
}

const pair = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));

function range(dimension) {
  if (!dimension || dimension.minimum === null || dimension.maximum === null) return "";
  return `, ${number(dimension.minimum, 0)} to ${number(dimension.maximum, 0)}`;
}

function standing(score, dimension) {
  const among = dimension?.reference_count ? `${dimension.reference_count.toLocaleString("en-GB")} references` : "the reference set";
  const population = dimension?.reference_population;
  return [el("strong", {}, `Better than ${number(score.percentile, 0)} %`), ` of ${among}`,
    population && el("span", { class: "hint" }, population)];
}

/** What a model judges, before anything was asked. */
export function judges(model) {
  return [
    el("h3", {}, "What the model judges"),
    el("div", { class: "judged" }, model.dimensions.map((dimension) => el("div", {},
      el("h4", {}, dimension.title),
      el("p", { class: "meaning" }, `${dimension.description} `, dimension.needs_prompt && el("span", { class: "tag" }, "needs the prompt")),
      dimension.reference_quantiles.length > 1 && distribution(dimension.reference_quantiles, null, dimension.direction),
      dimension.reference_count > 0 && el("p", { class: "hint" },
        `${many(dimension.reference_count, "reference")}: ${dimension.reference_population}`)))),
  ];
}

/** Says why a dimension is missing: the most frequent question of somebody who did not type a prompt. */
function unasked(model, scores) {
  const given = scores.map((score) => score.dimension);
  const missing = model.dimensions.filter((dimension) => dimension.needs_prompt && !given.includes(dimension.name));
  return missing.map((dimension) => el("article", { class: "card score absent" },
    el("h3", {}, dimension.title),
    el("p", { class: "hint" }, "Needs the prompt that the picture was made from: type it and score again."),
    el("p", { class: "meaning" }, dimension.description)));
}
