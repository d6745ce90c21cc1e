/** The figures beside the picture. */
import { byId, element } from "./dom.js";
import { count, duration, percent, rate } from "./format.js";

/** @param {any} message of kind "latency" @param {number | null} sloMs goal for the time between tokens */
export function showLatency(message, sloMs) {
  showPercentiles("ttft", message.ttft_s, null);
  showPercentiles("tbt", message.tbt_s, sloMs);
  byId("output-rate").textContent = rate(message.output_tokens_per_s);
  byId("prompt-rate").textContent = rate(message.prompt_tokens_per_s);
  byId("hit-rate").textContent = percent(message.prefix_hit_rate);
}

function showPercentiles(id, values, limitMs) {
  const cells = byId(id).querySelectorAll("td");
  ["p50", "p90", "p99"].forEach((name, position) => {
    const value = values?.[name] ?? null;
    const isOver = limitMs !== null && value !== null && value * 1000 > limitMs;
    cells[position].textContent = duration(value);
    cells[position].classList.toggle("over", isOver);
    cells[position].title = isOver ? `over the goal of ${limitMs} ms` : "";
  });
}

/** @param {{running: number, waiting: number}} queue @param {{used: number, cached: number, free: number}} kv */
export function showCounts(queue, kv) {
  byId("running").textContent = count(queue.running);
  byId("waiting").textContent = count(queue.waiting);
  const total = Math.max(1, kv.used + kv.cached + kv.free);
  const bar = byId("pages");
  for (const part of ["used", "cached", "free"]) byId(`pages-${part}`).textContent = count(kv[part]);
  bar.querySelector(".used").style.width = `${(100 * kv.used) / total}%`;
  bar.querySelector(".cached").style.width = `${(100 * kv.cached) / total}%`;
  bar.setAttribute("aria-label", `KV pages: ${kv.used} used, ${kv.cached} cached, ${kv.free} free`);
}

/** @param {any} engine the message of kind "engine" */
export function showEngine(engine) {
  const known = [
    ["policy", engine.policy],
    ["token budget", maybe(engine.token_budget, count)],
    ["requests at most", maybe(engine.max_num_seqs, count)],
    ["longest request", maybe(engine.max_model_len, (value) => `${count(value)} tokens`)],
    ["KV pages", engine.num_pages ? `${count(engine.num_pages)} of ${engine.page_size} tokens` : null],
    ["device", engine.device],
    ["version", engine.version],
  ];
  const rows = known.filter(([, value]) => value).map(([term, value]) => element("div", {}, element("dt", { text: term }), element("dd", { text: value })));
  byId("about").replaceChildren(...rows);
  byId("slo").textContent = engine.tbt_slo_ms ? `goal for TBT: ${engine.tbt_slo_ms} ms` : "";
  byId("model").textContent = engine.model;
}

const maybe = (value, write) => (value === null || value === undefined ? null : write(value));

const STATES = {
  starting: "The engine is starting: it loads the model and compiles its programs.",
  restarting: "The engine is restarting. Answers under way go on when it is back.",
  draining: "The server is shutting down: it ends what it has begun and takes nothing new.",
};

/** @param {string} state @param {string} [notice] */
export function showState(state, notice = STATES[state] ?? "") {
  const pill = byId("state");
  pill.textContent = state;
  pill.dataset.state = state;
  byId("feed-notice").textContent = notice;
  byId("feed-notice").hidden = notice === "";
}
