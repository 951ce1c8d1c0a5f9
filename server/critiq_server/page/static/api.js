// Calls to the server that served this page, and to no other.

import { fetchWithKey } from "./key.js";

const BUSY_TRIES = 4;
const CHUNK_BYTES = 12e6;
const CHUNK_ITEMS = 8;

/** Why there is no answer: the server's own code and message, or UNREACHABLE. */
export class ApiError extends Error {
  constructor(code, message, field = "", status = 0, retryAfter = 0) {
    super(message);
    Object.assign(this, { code, field, status, retryAfter });
  }
}

export const address = (path) => new URL(path, document.baseURI).href;

/** The JSON behind a path. Raises ApiError; an abort stays an AbortError. */
export async function get(path, signal) {
  return answer(await reach(path, { signal }));
}

/** Posts a form; when the server is busy, waits as long as it asks and tries again, telling `onWait(seconds, trial)`. */
export async function post(path, form, { signal, onWait = () => {} } = {}) {
  for (let trial = 1; ; trial += 1) {
    try {
      return await answer(await reach(path, { method: "POST", body: form, signal }));
    } catch (error) {
      if (error.status !== 429 || trial === BUSY_TRIES) throw error;
      const seconds = Math.max(error.retryAfter, 0.5 * trial);
      onWait(seconds, trial);
      await pause(seconds, signal);
    }
  }
}

/** A form with pictures and what is asked of them. File names stay here: the server has no use for them. */
export function form(blobs, { prompt = "", model = null, dimensions = [], priority = "" } = {}) {
  const data = new FormData();
  for (const blob of blobs) data.append("image", blob, "image");
  if (prompt) data.append("prompt", prompt);
  if (model) {
    data.append("model", model.name);
    data.append("version", model.version);
  }
  if (dimensions.length) data.append("dimensions", dimensions.join(","));
  if (priority) data.append("priority", priority);
  return data;
}

/** Scores one picture by /v1/score, several by /v1/score/batch in small calls; tells `onItem(at, {result, error})`. */
export async function score(blobs, asked, { onItem, ...options }) {
  if (blobs.length === 1) {
    onItem(0, await outcome(() => post("v1/score", form(blobs, asked), options)));
    return;
  }
  for (const [from, to] of chunks(blobs)) await scorePart(blobs, from, to, asked, onItem, options);
}

async function scorePart(blobs, from, to, asked, onItem, options) {
  try {
    const answered = await post("v1/score/batch", form(blobs.slice(from, to), asked), options);
    answered.results.forEach((item, at) => {
      const error = item.error && new ApiError(item.error.code, item.error.message, item.error.field);
      onItem(from + at, { result: item.result, error });
    });
  } catch (error) {
    // This server takes less at once than the page thought.
    if (error.status === 413 && to - from > 1) {
      const middle = (from + to) >> 1;
      await scorePart(blobs, from, middle, asked, onItem, options);
      await scorePart(blobs, middle, to, asked, onItem, options);
      return;
    }
    if (!(error instanceof ApiError)) throw error;
    for (let at = from; at < to; at += 1) onItem(at, { result: null, error });
    if (error.code === "UNREACHABLE") throw error;
  }
}

async function outcome(work) {
  try {
    return { result: await work(), error: null };
  } catch (error) {
    if (!(error instanceof ApiError) || error.code === "UNREACHABLE") throw error;
    return { result: null, error };
  }
}

function chunks(blobs) {
  const found = [];
  let from = 0;
  let size = 0;
  blobs.forEach((blob, at) => {
    if (at > from && (at - from === CHUNK_ITEMS || size + blob.size > CHUNK_BYTES)) {
      found.push([from, at]);
      from = at;
      size = 0;
    }
    size += blob.size;
  });
  if (blobs.length) found.push([from, blobs.length]);
  return found;
}

async function reach(path, options) {
  try {
    return await fetchWithKey(address(path), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("UNREACHABLE", `The server at ${location.host} does not answer. Is it still running?`);
  }
}

async function answer(response) {
  let body;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("UNREADABLE", `The answer (status ${response.status}) is not JSON.`, "", response.status);
  }
  if (response.ok) return body;
  const { code = "UNKNOWN", message = `status ${response.status}`, field = "", retry_after_ms: wait } = body.error ?? {};
  throw new ApiError(code, message, field, response.status, (wait ?? 0) / 1000);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
