// Several pictures side by side, in the order of one dimension.

import { announce, el, number, show } from "./dom.js";
import { band, bar } from "./charts.js";
import { thumbnail } from "./pictures.js";
import { ranking, share } from "./reference.js";

/** Draws into `node`. `state`: {by, ascending, selected}; `onState(change)` and `onSelect(id)` tell what the visitor did. */
export function drawRanking(node, pictures, dimensions, state, onState, onSelect) {
  const order = ranking(pictures, state.by);
  const shown = state.ascending ? [...order.filter((entry) => entry.rank).reverse(), ...order.filter((entry) => !entry.rank)] : order;
  const title = dimensions.find((dimension) => dimension.name === state.by)?.title ?? state.by;
  const focused = document.activeElement?.dataset.key;
  show(node, el("section", { class: "card", "aria-labelledby": "ranking-title" },
    el("div", { class: "card-head" },
      el("h2", { id: "ranking-title" }, "Ranking"),
      el("label", { class: "inline" }, "by ",
        el("select", { id: "rank-by", "data-key": "rank-by", onchange: (event) => sortBy(event.target.value, false) },
          dimensions.map((dimension) => el("option", { value: dimension.name, ".selected": dimension.name === state.by }, dimension.title))))),
    strip(shown, pictures, state, onSelect),
    sheet(shown, pictures, dimensions, state, sortBy, onSelect)));
  if (focused) node.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();

  function sortBy(by, ascending) {
    onState({ by, ascending });
    const name = dimensions.find((dimension) => dimension.name === by).title;
    announce(`Sorted by ${name}, ${ascending ? "worst" : "best"} first.`);
  }

  function strip(entries) {
    return el("ol", { class: "strip", "aria-label": `Pictures by ${title}, ${state.ascending ? "worst" : "best"} first` },
      entries.map(({ index, rank, score }) => {
        const picture = pictures[index];
        const value = score && share(score);
        return el("li", {}, el("button", {
          type: "button", class: "tile", "data-key": `tile-${picture.id}`, "aria-pressed": String(picture.id === state.selected),
          "aria-label": `${picture.name}: ${place(rank, picture)}${score ? `, ${title} ${number(value ?? score.raw)}` : ""}`,
          onclick: () => onSelect(picture.id),
        },
        thumbnail(picture),
        el("span", { class: `badge ${rank === 1 ? "first" : ""}` }, rank ? String(rank) : picture.error ? "!" : "…"),
        score && el("span", { class: "tile-value" }, number(value ?? score.raw))));
      }));
  }
}

function place(rank, picture) {
  if (rank) return `rank ${rank}`;
  return picture.error ? "not scored" : "waiting";
}

function sheet(entries, pictures, dimensions, state, sortBy, onSelect) {
  const caption = "Calibrated values, 0 (worst) to 1 (best); raw values where a dimension has no calibration";
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores of all pictures" },
    el("table", { id: "sheet" },
      el("caption", {}, caption),
      el("thead", {}, el("tr", {},
        el("th", { scope: "col" }, "Rank"),
        el("th", { scope: "col" }, "Picture"),
        dimensions.map((dimension) => header(dimension, state, sortBy)))),
      el("tbody", {}, entries.map((entry) => row(entry, pictures, dimensions, state, onSelect)))));
}

function header(dimension, state, sortBy) {
  const sorted = dimension.name === state.by;
  const order = state.ascending ? "ascending" : "descending";
  return el("th", { scope: "col", "aria-sort": sorted ? order : null },
    el("button", {
      type: "button", class: "sort", "data-key": `sort-${dimension.name}`,
      onclick: () => sortBy(dimension.name, sorted && !state.ascending),
    }, dimension.title, el("span", { class: "arrow", "aria-hidden": "true" }, sorted ? (state.ascending ? "▲" : "▼") : "")));
}

function row({ index, rank, why }, pictures, dimensions, state, onSelect) {
  const picture = pictures[index];
  const chosen = picture.id === state.selected;
  return el("tr", { class: chosen ? "chosen-row" : "", "data-id": picture.id },
    el("td", { class: "rank" }, rank ? String(rank) : "–"),
    el("th", { scope: "row" }, el("button", {
      type: "button", class: "link", "data-key": `row-${picture.id}`, "aria-pressed": String(chosen), onclick: () => onSelect(picture.id),
    }, picture.name)),
    picture.error || (!picture.result && why)
      ? el("td", { colspan: dimensions.length, class: picture.error ? "bad-text" : "hint" }, why)
      : dimensions.map((dimension) => cell(picture.result.scores.find((score) => score.dimension === dimension.name))));
}

function cell(score) {
  if (!score) return el("td", { class: "number" }, "–");
  const value = share(score);
  const title = `raw ${number(score.raw, 4)}${score.degraded ? "; stand-in score" : ""}`;
  return el("td", { class: `number ${value === null ? "" : band(value)}`, title },
    `${number(value ?? score.raw)}${score.degraded ? " *" : ""}`, value === null ? null : bar(value));
}
