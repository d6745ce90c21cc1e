/** What the picture shows, in a sentence. Knows nothing of the page. */
import { count, duration, many } from "./format.js";

/** @typedef {import("./history.js").SeenStep} SeenStep */

/** One step. @param {SeenStep} step @param {number | null} budget */
export function describeStep(step, budget) {
  const prompts = step.rows.filter((row) => row[3]).length;
  const decodes = step.rows.length - prompts;
  const streams = decodes ? `${many(decodes, "running stream")} got ${decodes === 1 ? "its" : "their"} next token` : "";
  const left = budget === null ? "" : decodes ? ` of the ${count(Math.max(0, budget - decodes))} that were left` : ` of a budget of ${count(budget)}`;
  const chunks = prompts ? `${many(step.prefill_tokens, "token")}${left} read ${many(prompts, "prompt")}` : "no prompt was there to read";
  const stalled = step.stalled.length ? `, and ${many(step.stalled.length, "running stream")} had to wait` : "";
  return `${[streams, chunks].filter(Boolean).join("; ")}${stalled}.`;
}

/** A stretch of steps, as a headline and a line below it. @param {SeenStep[]} steps */
export function describeSteps(steps) {
  if (!steps.length) {
    return { headline: "Waiting for the first step", line: "A step is one run of the model. Send a request, or the sample load, to see some." };
  }
  const total = (of) => steps.reduce((sum, step) => sum + of(step), 0);
  const prompts = new Set(steps.flatMap((step) => step.rows.filter((row) => row[3]).map((row) => row[0])));
  const chunks = total((step) => step.rows.filter((row) => row[3]).length);
  const stalls = total((step) => step.stalled.length);
  const decodes = total((step) => step.decode_tokens);
  const longest = Math.max(...steps.map((step) => step.end_s - step.start_s));
  const line = `Last ${many(steps.length, "step")}: ${many(decodes, "token")} for running streams, ${many(chunks, "chunk")} of ${many(prompts.size, "prompt")}; the longest step took ${duration(longest)}.`;
  return { headline: headline(decodes, prompts.size, stalls), line };
}

function headline(decodes, prompts, stalls) {
  if (stalls) return `Streams were left out ${count(stalls)} ${stalls === 1 ? "time" : "times"}`;
  if (decodes && prompts) return `No stream waited while ${many(prompts, "prompt")} ${prompts === 1 ? "was" : "were"} read`;
  if (prompts) return `${many(prompts, "prompt")} ${prompts === 1 ? "is" : "are"} being read`;
  return "Every running stream gets a token in each step";
}
