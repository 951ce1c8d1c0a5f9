// What was just asked, as a line for a terminal.

import { address } from "./api.js";
import { announce, el } from "./dom.js";
import { hasKey } from "./key.js";

/** `text` as one word of a POSIX shell. */
function quoted(text) {
  return /^[\w./:=@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A curl command that sends the files as a form; they lie in the current folder under their names. */
export function curl(path, names, { prompt = "", model = null, dimensions = [] }, more = {}) {
  const parts = [`curl ${quoted(address(path))}`];
  if (hasKey()) parts.push('-H "Authorization: Bearer $CRITIQ_API_KEY"'); // not the key itself: commands get shared
  // curl reads quotes and backslashes in a quoted file name; a semicolon or comma outside of quotes ends it.
  for (const name of names) parts.push(`-F ${quoted(`image=@"./${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`)}`);
  if (prompt) parts.push(`--form-string ${quoted(`prompt=${prompt}`)}`);
  if (model) parts.push(`-F ${quoted(`model=${model.name}`)}`, `-F ${quoted(`version=${model.version}`)}`);
  if (dimensions.length) parts.push(`-F ${quoted(`dimensions=${dimensions.join(",")}`)}`);
  for (const [name, value] of Object.entries(more)) parts.push(`-F ${quoted(`${name}=${value}`)}`);
  return parts.join(" \\\n  ");
}

/** A command with a button that copies it. */
export function command(title, text) {
  const code = el("pre", { tabindex: "0", "aria-label": title }, el("code", {}, text));
  const button = el("button", { type: "button", class: "plain", "aria-label": `Copy as curl: ${title}`, onclick: copy }, "Copy as curl");
  return el("div", { class: "command" }, el("div", { class: "command-head" }, el("h3", {}, title), button), code);

  async function copy() {
    try {
      await navigator.clipboard.writeText(text);
      said("Copied");
    } catch {
      // Browsers keep the clipboard from pages that came over plain HTTP from another machine.
      getSelection().selectAllChildren(code);
      said("Selected: press Ctrl+C");
    }
  }

  function said(words) {
    button.textContent = words;
    announce(words);
    setTimeout(() => { button.textContent = "Copy as curl"; }, 2500);
  }
}
