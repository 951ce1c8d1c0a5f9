// The views: one at a time, in the address behind #, with the keys that tabs have.

import { byId } from "./dom.js";

const NAMES = ["score", "live", "drift"];

/** Calls `onShow(name)` whenever a view comes up. */
export function startTabs(onShow) {
  for (const name of NAMES) {
    byId(`tab-${name}`).addEventListener("click", () => { location.hash = name; });
  }
  byId("tab-score").parentElement.addEventListener("keydown", (event) => {
    const at = NAMES.findIndex((name) => byId(`tab-${name}`) === document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: NAMES.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const name = NAMES[(to + NAMES.length) % NAMES.length];
    location.hash = name;
    byId(`tab-${name}`).focus();
  });
  window.addEventListener("hashchange", open);
  open();

  function open() {
    const wanted = location.hash.slice(1);
    if (wanted && !NAMES.includes(wanted)) return;
    const name = wanted || NAMES[0];
    for (const other of NAMES) {
      const tab = byId(`tab-${other}`);
      tab.setAttribute("aria-selected", String(other === name));
      tab.tabIndex = other === name ? 0 : -1;
      byId(`view-${other}`).hidden = other !== name;
    }
    onShow(name);
  }
}
