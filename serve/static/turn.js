/** One turn of the conversation as one sees it: what the user wrote, or an answer with what there is to know about it. */
import { element, svg } from "./dom.js";
import { count, duration, many, quantile, rate } from "./format.js";
import { formatted } from "./markdown.js";
import { TokenLine } from "./tokens.js";

/** @typedef {import("./completion.js").Answer} Answer */

/** @param {string} text */
export function userTurn(text) {
  return element("article", { class: "turn user", "aria-label": "You" }, element("div", { class: "text", text }));
}

/** An answer on the page. */
export class AnswerTurn {
  /** @param {import("./sampling.js").Settings} settings */
  constructor(settings) {
    this.settings = settings;
    this.text = element("div", { class: "text plain" });
    this.facts = element("p", { class: "facts" });
    this.node = element("article", { class: "turn answer streaming", "aria-label": "Model", "aria-busy": "true" }, this.text, this.facts);
    /** @type {Answer | null} */
    this.answer = null;
    this.line = null;
  }

  /** @param {Answer} answer */
  update(answer) {
    this.answer = answer;
    if (this.settings.showsProbabilities && answer.tokens.length) this.showTokens();
    else if (this.settings.showsMarkdown) this.show("formatted", formatted(answer.text));
    else this.show("plain", document.createTextNode(answer.text));
  }

  /** Shows the same answer anew, after a setting has changed. */
  redraw() {
    this.line = null;
    if (this.answer) this.update(this.answer);
  }

  showTokens() {
    if (!this.line) {
      const holder = element("span", { role: "group", "aria-label": "Tokens; arrow keys go from one to the next" });
      this.show("tokens", holder);
      this.line = new TokenLine(holder);
    }
    this.line.update(this.answer.tokens);
    if (this.answer.finish) this.line.markOutside(this.answer.text.length);
  }

  show(kind, content) {
    this.line = null;
    this.text.className = `text ${kind}`;
    this.text.replaceChildren(content);
  }

  /** @param {string} [note] why it ended early */
  end(note) {
    this.node.classList.remove("streaming");
    this.node.removeAttribute("aria-busy");
    this.facts.replaceChildren(...(this.answer ? aboutAnswer(this.answer) : []), ...(note ? [element("span", { text: note })] : []));
  }

  /** @param {string} message @param {() => void} again */
  fail(message, again) {
    this.end();
    this.node.append(
      element("div", { class: "notice problem", role: "alert" }, element("p", { text: message }), element("button", { type: "button", text: "Try again", onclick: again })),
    );
  }
}

/** @param {Answer} answer @returns {Node[]} */
function aboutAnswer(answer) {
  const { usage, timing } = answer;
  const facts = [];
  const add = (value, rest) => facts.push(element("span", {}, element("b", { text: value }), ` ${rest}`));
  const tokens = usage?.completion_tokens ?? answer.tokens.length;
  add(count(tokens), tokens === 1 ? "token" : "tokens");
  add(duration(answer.ttft), "to the first");
  if (answer.speed !== null) add(rate(answer.speed), "tokens/s");
  if (answer.gaps.length > 1) facts.push(rhythm(answer.gaps));
  if (usage) add(count(usage.prompt_tokens), `in the prompt${cached(usage)}`);
  if (timing) facts.push(...aboutTiming(timing));
  if (answer.finish && answer.finish !== "stop") facts.push(element("span", { text: answer.finish === "length" ? "cut at the most tokens allowed" : `ended: ${answer.finish}` }));
  return facts;
}

function cached(usage) {
  const hits = usage.prompt_tokens_details?.cached_tokens;
  return hits ? `, ${count(hits)} of them cached` : "";
}

/** What the engine says: its times are exact, those above are the browser's. */
function aboutTiming(timing) {
  const facts = [];
  if (Number.isFinite(timing.queue_s)) facts.push(`${duration(timing.queue_s)} queued`);
  if (Number.isFinite(timing.prefill_s)) facts.push(`${duration(timing.prefill_s)} prefill`);
  if (timing.num_preemptions) facts.push(`preempted ${many(timing.num_preemptions, "time")}`);
  if (timing.num_engine_restarts) facts.push(`went on after ${many(timing.num_engine_restarts, "restart")} of the engine`);
  const stalls = timing.stalls ?? [];
  const causes = [...new Set(stalls.map((stall) => stall.cause).filter((cause) => typeof cause === "string"))];
  if (timing.stalls) facts.push(stalls.length ? `${many(stalls.length, "late token")}${causes.length ? ` (${causes.join(", ")})` : ""}` : "no late tokens");
  return facts.map((text) => element("span", { text, title: "Measured by the engine" }));
}

/** The times between tokens as small bars: a stall is seen at once. @param {number[]} gaps seconds */
function rhythm(gaps) {
  const shown = gaps.slice(-80);
  const usual = quantile(gaps, 0.5);
  const most = Math.max(...shown, usual * 3);
  const bars = shown.map((gap, position) => {
    const height = Math.max(1, (gap / most) * 18);
    return svg("rect", { x: position * 2, y: 18 - height, width: 1.4, height, class: gap > usual * 3 && gap > 0.05 ? "late" : "" });
  });
  const label = `Time between tokens: median ${duration(usual)}, longest ${duration(Math.max(...gaps))}`;
  const width = shown.length * 2;
  return svg("svg", { width, height: 18, viewBox: `0 0 ${width} 18`, role: "img", "aria-label": label }, titled(label), ...bars);
}

function titled(text) {
  const title = svg("title");
  title.textContent = text;
  return title;
}
