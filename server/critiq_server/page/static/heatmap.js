// Local quality: the picture is cut into overlapping tiles at its own resolution, and each is scored by itself.

import { score as ask } from "./api.js";
import { share } from "./reference.js";

export const TILE = 224;
const ALONG = 6; // tiles along the longer side of a large picture
const CELLS = 4; // cells of the map along a tile
/** Low to high; told apart with any kind of colour vision. */
const COLOURS = [[178, 34, 68], [226, 125, 78], [243, 226, 178], [112, 178, 176], [22, 96, 128]];

/** Where tiles lie in a picture of so many pixels: {size, xs, ys}, or null if it is too small for two of them. */
export function plan(width, height) {
  const shorter = Math.min(width, height);
  const longer = Math.max(width, height);
  const size = Math.min(shorter, Math.max(TILE, Math.round(longer / ALONG)));
  if (shorter < TILE || longer < 1.5 * TILE) return null;
  const along = (length) => {
    const count = Math.max(1, Math.ceil((length - size) / (size / 2)) + 1);
    return Array.from({ length: count }, (_, at) => (count === 1 ? 0 : Math.round(((length - size) * at) / (count - 1))));
  };
  return { size, width, height, xs: along(width), ys: along(height) };
}

/**
 * Scores every tile; tells `onProgress(done, all)`. Returns {tiles, failed}: tiles are {x, y, scores} by pixel, scores a Map
 * from dimension to score. Raises ApiError if none could be scored.
 */
export async function scoreTiles(bitmap, layout, asked, onProgress, onWait) {
  const places = layout.ys.flatMap((y) => layout.xs.map((x) => ({ x, y })));
  const tiles = [];
  let failed = 0;
  let problem = null;
  const step = 8;
  for (let from = 0; from < places.length; from += step) {
    const part = places.slice(from, from + step);
    const blobs = [];
    for (const place of part) blobs.push(await cut(bitmap, place, layout.size));
    const onItem = (at, { result, error }) => {
      if (error) {
        failed += 1;
        problem = error;
        return;
      }
      tiles.push({ ...part[at], scores: new Map(result.scores.map((score) => [score.dimension, score])) });
    };
    await ask(blobs, { ...asked, priority: "bulk" }, { onItem, onWait });
    onProgress(Math.min(from + step, places.length), places.length);
  }
  if (!tiles.length) throw problem;
  return { tiles, failed };
}

function cut(bitmap, { x, y }, size) {
  const canvas = document.createElement("canvas");
  canvas.width = size;
  canvas.height = size;
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // what the server puts behind transparent pixels
  context.fillRect(0, 0, size, size);
  context.drawImage(bitmap, x, y, size, size, 0, 0, size, size);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/**
 * A dimension's map: each cell is the mean of the tiles over it, weighted towards their centres.
 * Returns {columns, rows, values, low, high, lowest, highest, lowerIsBetter}; cells without a tile are NaN.
 */
export function localMap(layout, tiles, dimension) {
  const cell = layout.size / CELLS;
  const columns = Math.max(1, Math.round(layout.width / cell));
  const rows = Math.max(1, Math.round(layout.height / cell));
  const judged = tiles.filter((tile) => tile.scores.has(dimension));
  const scores = judged.map((tile) => tile.scores.get(dimension));
  const entries = judged.map(({ x, y }, at) => ({ x, y, value: share(scores[at]) ?? scores[at].raw }));
  const values = new Float64Array(columns * rows);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const x = ((column + 0.5) / columns) * layout.width;
      const y = ((row + 0.5) / rows) * layout.height;
      let sum = 0;
      let weights = 0;
      for (const entry of entries) {
        const weight = tent(x - entry.x, layout.size) * tent(y - entry.y, layout.size);
        sum += weight * entry.value;
        weights += weight;
      }
      values[row * columns + column] = weights > 0 ? sum / weights : NaN;
    }
  }
  const [score] = scores;
  const lowerIsBetter = score !== undefined && share(score) === null && score.direction === "lower_is_better";
  return { columns, rows, values, lowerIsBetter, ...extremes(values, columns, rows) };
}

function tent(offset, size) {
  const from = Math.abs(offset / size - 0.5);
  return from < 0.5 ? Math.max(0.02, 1 - 2 * from) : 0;
}

function extremes(values, columns, rows) {
  let low = Infinity;
  let high = -Infinity;
  let lowest = 0;
  let highest = 0;
  values.forEach((value, at) => {
    if (value < low) [low, lowest] = [value, at];
    if (value > high) [high, highest] = [value, at];
  });
  const where = (at) => place((at % columns) + 0.5, Math.floor(at / columns) + 0.5, columns, rows);
  return { low, high, lowest: where(lowest), highest: where(highest) };
}

function place(x, y, columns, rows) {
  const vertical = ["top", "middle", "bottom"][Math.min(2, Math.floor((3 * y) / rows))];
  const horizontal = ["left", "centre", "right"][Math.min(2, Math.floor((3 * x) / columns))];
  return vertical === "middle" && horizontal === "centre" ? "centre" : `${vertical} ${horizontal}`.replace(" centre", "");
}

/** The values that the two ends of the colours stand for: at least 0.1 apart, so that noise stays pale. */
export function span({ low, high }) {
  const lack = Math.max(0, 0.1 - (high - low)) / 2;
  return [low - lack, high + lack];
}

export function colour(at) {
  const position = Math.min(0.9999, Math.max(0, at)) * (COLOURS.length - 1);
  const below = Math.floor(position);
  return COLOURS[below].map((value, channel) => Math.round(value + (COLOURS[below + 1][channel] - value) * (position - below)));
}

/** Draws the map over the picture: a pixel a cell, which the browser enlarges smoothly. */
export function paint(canvas, map) {
  const [from, to] = span(map);
  canvas.width = map.columns;
  canvas.height = map.rows;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(map.columns, map.rows);
  map.values.forEach((value, at) => {
    if (Number.isNaN(value)) return;
    const along = (value - from) / (to - from);
    pixels.data.set([...colour(map.lowerIsBetter ? 1 - along : along), 255], 4 * at);
  });
  context.putImageData(pixels, 0, 0);
}
