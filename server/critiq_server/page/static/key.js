// The visitor's API key, for servers that ask for one. It stays in this tab's session.

import { byId } from "./dom.js";

const NAME = "critiq-api-key";
let asking = null;

export const hasKey = () => Boolean(sessionStorage.getItem(NAME));

/** `fetch` with the key; where the server wants another, asks the visitor and tries again. */
export async function fetchWithKey(url, options) {
  for (;;) {
    const key = sessionStorage.getItem(NAME);
    const headers = { Accept: "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await fetch(url, { headers, ...options });
    if (response.status !== 401) return response;
    // Another call may have brought the right one meanwhile.
    if (key === sessionStorage.getItem(NAME)) await ask(Boolean(key), options?.signal);
  }
}

async function ask(refused, signal) {
  byId("key-why").textContent = refused
    ? "The server does not know this key."
    : "This server asks for an API key. It is kept in this tab until you close it.";
  asking ??= new Promise((resolve) => {
    const form = byId("key-form");
    form.hidden = false;
    byId("key").value = "";
    byId("key").focus();
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(NAME, byId("key").value.trim());
      byId("key").value = "";
      form.hidden = true;
      asking = null;
      resolve();
    }, { once: true });
  });
  await Promise.race([asking, aborted(signal)]);
}

const aborted = (signal) =>
  new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason), { once: true }));
