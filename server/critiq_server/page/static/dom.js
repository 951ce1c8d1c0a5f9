// Elements made by calls. Text is always text: nothing here, or anywhere on the page, turns a string into HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element: attributes, listeners (`onclick: f`), properties (`.value: x`) and children (strings become text). */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** An SVG element; as `el`. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith(".")) node[name.slice(1)] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Puts `children` in the place of what `node` holds. */
export function show(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter(Boolean));
}

let announced = 0;

/** Tells those who do not see the page. What comes within a second is added: a region that changes at once is not read. */
export function announce(text) {
  const node = byId("announce");
  const now = performance.now();
  node.textContent = now - announced < 1000 ? `${node.textContent} ${text}` : text;
  announced = now;
}

/** `value` with so many decimals, a minus sign as long as a plus; a dash where there is none. */
export function number(value, decimals = 2) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const text = value.toLocaleString("en-GB", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  return Number(text.replaceAll(",", "")) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

/** A count with its noun. */
export function many(count, one, several = `${one}s`) {
  return `${count.toLocaleString("en-GB")} ${count === 1 ? one : several}`;
}

export function bytes(count) {
  if (count < 1000) return many(count, "byte");
  return count < 1e6 ? `${number(count / 1e3, 0)} kB` : `${number(count / 1e6, 1)} MB`;
}

/** Says of which of several processes an answer does not tell; null where it tells of all. */
export function absent({ processes }) {
  if (!processes?.missing.length) return null;
  return `without process ${processes.missing.join(", ")} of ${processes.of}, which did not answer`;
}

/** A table that scrolls sideways in its own region, with a caption; `head` and `rows` hold strings or nodes. */
export function table(caption, head, rows) {
  const cell = (entry, at) => (at === 0 ? el("th", { scope: "row" }, entry) : el("td", {}, entry));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {},
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, head.map((entry) => el("th", { scope: "col" }, entry)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell))))));
}
