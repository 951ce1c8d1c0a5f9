// What a score means: the share of the reference set below it, the shape of that set, and values to order pictures by.

/** The value of a score on 0 (worst) .. 1 (best), or null: calibrated, else its percentile. */
export function share(score) {
  if (score.calibrated !== null) return score.calibrated;
  return score.percentile === null ? null : score.percentile / 100;
}

/** `raw` with the sign that makes larger better. */
const goodness = (score) => (score.direction === "lower_is_better" ? -score.raw : score.raw);

/** Share of the reference set at or below `raw`, by its evenly spaced quantiles, linear between them. */
export function below(quantiles, raw) {
  const last = quantiles.length - 1;
  if (raw < quantiles[0]) return 0;
  if (raw >= quantiles[last]) return 1;
  let low = 0;
  let high = last;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (quantiles[middle] <= raw) low = middle;
    else high = middle;
  }
  const width = quantiles[high] - quantiles[low];
  return (low + (width > 0 ? (raw - quantiles[low]) / width : 0)) / last;
}

/**
 * The density of the reference set in `bins` equal bins, smoothed a little, largest 1.
 * Returns {from, to, heights}; a point mass becomes a tall bin.
 */
export function density(quantiles, bins = 48) {
  const from = quantiles[0];
  const to = quantiles[quantiles.length - 1];
  if (!(to > from)) return { from: from - 0.5, to: from + 0.5, heights: [1] };
  const edges = Array.from({ length: bins + 1 }, (_, at) => from + ((to - from) * at) / bins);
  const shares = edges.map((edge) => below(quantiles, edge));
  shares[0] = 0;
  let heights = shares.slice(1).map((value, at) => value - shares[at]);
  for (let pass = 0; pass < 2; pass += 1) heights = smoothed(heights);
  const tallest = Math.max(...heights);
  return { from, to, heights: heights.map((height) => height / tallest) };
}

function smoothed(values) {
  return values.map((value, at) => {
    const before = values[Math.max(0, at - 1)];
    const after = values[Math.min(values.length - 1, at + 1)];
    return (before + 2 * value + after) / 4;
  });
}

/**
 * Places of pictures by one dimension, as /v1/rank gives them: best first, ties share a rank and keep their order, those
 * without a comparable score last with rank 0. `items` hold {result, error}; returns [{index, rank, score, why}].
 */
export function ranking(items, dimension) {
  const scores = items.map((item) => item.result?.scores.find((score) => score.dimension === dimension));
  const mixed = new Set(scores.filter(Boolean).map((score) => score.degraded)).size === 2;
  const scored = [];
  const failed = [];
  scores.forEach((score, index) => {
    if (score && !(mixed && score.degraded)) scored.push({ index, score });
    else failed.push({ index, rank: 0, score: null, why: reason(items[index], score, dimension) });
  });
  scored.sort((one, other) => goodness(other.score) - goodness(one.score));
  let rank = 0;
  const placed = scored.map((entry, at) => {
    if (at === 0 || entry.score.raw !== scored[at - 1].score.raw) rank = at + 1;
    return { ...entry, rank, why: "" };
  });
  return [...placed, ...failed];
}

function reason(item, score, dimension) {
  if (item.error) return item.error.message;
  if (score) return `its score is a stand-in and cannot be compared with full ones: ${score.degraded_reason}`;
  return item.result ? `no score for ${dimension}` : "not scored yet";
}
