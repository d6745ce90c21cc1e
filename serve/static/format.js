/** Numbers and names for people. */
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** 12345 -> "12,345" @param {number} value */
export const count = (value) => whole.format(value);

/** 1 -> "1 prompt", 2 -> "2 prompts" @param {number} value @param {string} noun */
export const many = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** @param {number | null | undefined} seconds @returns {string} "8.4 ms", "84 ms", "1.24 s", or a dash where nothing is known */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

/** @param {number | null | undefined} value a rate per second */
export function rate(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value < 10 ? value.toFixed(1) : count(value);
}

/** @param {number | null | undefined} share of 1 */
export function percent(share) {
  if (share === null || share === undefined || !Number.isFinite(share)) return "–";
  const value = share * 100;
  return `${value > 0 && value < 0.1 ? "<0.1" : value >= 99.95 || value < 0.05 ? Math.round(value) : value.toFixed(1)}%`;
}

/** The end of a request's id, enough to tell it from others. @param {string} id */
export function shortId(id) {
  const tail = id.replace(/^(chatcmpl|cmpl)-/, "");
  return tail.length > 8 ? `${tail.slice(0, 7)}…` : tail;
}

/** A token as it can be seen: spaces and line breaks have signs. @param {string} text */
export const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";

/** @param {number[]} values @param {number} q from 0 to 1 */
export function quantile(values, q) {
  if (!values.length) return null;
  const ordered = [...values].sort((a, b) => a - b);
  const position = (ordered.length - 1) * q;
  const below = Math.floor(position);
  const above = Math.min(below + 1, ordered.length - 1);
  return ordered[below] + (ordered[above] - ordered[below]) * (position - below);
}
