// The pictures that the visitor chose: by the button, by dropping, by pasting.

import { announce, byId, bytes, el, many, show } from "./dom.js";

const MOST = 256;
let made = 0;

export class Pictures {
  /** `onChange(added)` is called after every change. */
  constructor(onChange) {
    this.list = [];
    this.onChange = onChange;
    const input = byId("files");
    const drop = byId("drop");
    drop.addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      this.add(input.files);
      input.value = "";
    });
    document.addEventListener("paste", (event) => {
      if (event.clipboardData?.files.length) {
        event.preventDefault();
        this.add(event.clipboardData.files);
      }
    });
    // The whole window takes drops: a file that misses the zone would otherwise replace the page.
    window.addEventListener("dragover", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      drop.classList.add("over");
    });
    window.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) drop.classList.remove("over");
    });
    window.addEventListener("drop", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      drop.classList.remove("over");
      this.add(event.dataTransfer.files);
    });
  }

  add(files) {
    const room = MOST - this.list.length;
    const taken = [...files].slice(0, Math.max(0, room));
    for (const file of taken) {
      made += 1;
      const picture = { id: made, file, name: file.name || `picture ${made}`, url: URL.createObjectURL(file) };
      this.list.push({ ...picture, result: null, error: null });
    }
    const left = files.length - taken.length;
    announce(`${many(taken.length, "picture")} added.${left > 0 ? ` ${left} left out: the page takes ${MOST}.` : ""}`);
    this.draw();
    if (taken.length) this.onChange(true);
  }

  remove(id) {
    const at = this.list.findIndex((picture) => picture.id === id);
    const [gone] = this.list.splice(at, 1);
    URL.revokeObjectURL(gone.url);
    this.draw();
    // The focus goes to the next one, not to the top of the page.
    const next = byId("chosen").querySelectorAll("button")[Math.min(at, this.list.length - 1)];
    (next ?? byId("drop")).focus();
    announce(`Removed ${gone.name}.`);
    this.onChange(false);
  }

  clear() {
    for (const picture of this.list) URL.revokeObjectURL(picture.url);
    this.list = [];
    this.draw();
    this.onChange(false);
  }

  draw() {
    byId("drop").classList.toggle("small", this.list.length > 0);
    show(byId("chosen"), this.list.map((picture) => el("li", {},
      thumbnail(picture),
      el("span", { class: "name" }, picture.name, el("span", { class: "hint" }, bytes(picture.file.size))),
      el("button", {
        type: "button", class: "icon", "aria-label": `Remove ${picture.name}`, onclick: () => this.remove(picture.id),
      }, "×"))));
  }
}

/** A small picture, or a sign in its place where the browser cannot show it. */
export function thumbnail(picture) {
  const image = el("img", { class: "thumb", src: picture.url, alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "thumb none", "aria-hidden": "true" }, "?")));
  return image;
}
