/** The table below the picture: one step, row by row. */
import { byId, element } from "./dom.js";
import { count, duration, percent } from "./format.js";

const MAX_ROWS = 128;

/** @param {import("./history.js").SeenStep} step @param {boolean} isChosen whether somebody chose it, or it is the newest */
export function showStep(step, isChosen) {
  const used = step.decode_tokens + step.prefill_tokens;
  const padding = Math.max(0, step.bucket_tokens - used);
  byId("inspector-title").textContent = `${isChosen ? "Step" : "Newest step,"} ${count(step.step)}`;
  byId("inspector-facts").textContent = [
    `${count(step.decode_tokens)} decode + ${count(step.prefill_tokens)} prefill tokens`,
    `${duration(step.end_s - step.start_s)}`,
    `bucket ${step.bucket}, ${percent(used / Math.max(1, step.bucket_tokens))} full`,
    ...(step.preempted.length ? [`preempted: ${step.preempted.join(", ")}`] : []),
    ...(step.stalled.length ? [`left out: ${step.stalled.join(", ")}`] : []),
  ].join(" · ");
  const whole = Math.max(1, used + padding);
  const parts = { decode: step.decode_tokens, prefill: step.prefill_tokens, padding };
  for (const [part, tokens] of Object.entries(parts)) {
    const bar = /** @type {HTMLElement} */ (byId("share").querySelector(`.${part}`));
    bar.style.width = `${(100 * tokens) / whole}%`;
  }
  const rows = step.rows.slice(0, MAX_ROWS).map(row);
  if (step.rows.length > MAX_ROWS) rows.push(element("tr", {}, element("td", { colspan: 5, text: `and ${count(step.rows.length - MAX_ROWS)} more` })));
  byId("rows").replaceChildren(...rows);
}

function row([id, start, tokens, isPrefill, samples]) {
  const kind = isPrefill ? "prefill" : "decode";
  return element(
    "tr",
    {},
    element("td", { text: id }),
    element("td", {}, element("i", { class: `key ${kind}` }), kind),
    element("td", { class: "amount", text: count(tokens) }),
    element("td", { text: tokens === 1 ? count(start) : `${count(start)} to ${count(start + tokens - 1)}` }),
    element("td", { text: samples ? "yes" : "not yet" }),
  );
}
