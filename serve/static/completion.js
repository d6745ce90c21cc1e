/** One streamed chat completion: the request, and its chunks put together. */
import { ApiError, getModel, post } from "./api.js";
import { readEvents } from "./sse.js";

/**
 * @typedef {{text: string, logprob: number, alternatives: {text: string, logprob: number}[], gap: number | null}} Token
 *   gap: seconds since the token before, null for the first
 */

/** An answer while it comes. */
export class Answer {
  constructor() {
    this.text = "";
    /** @type {Token[]} */
    this.tokens = [];
    /** @type {number[]} seconds between two chunks that brought text */
    this.gaps = [];
    this.usage = null;
    this.timing = null;
    this.finish = null;
    this.startedAt = performance.now();
    this.firstAt = null;
    this.lastAt = null;
    this.decoder = new TextDecoder();
  }

  /** Takes in one chunk of the stream. @param {any} chunk */
  add(chunk) {
    this.usage = chunk.usage ?? this.usage;
    this.timing = chunk.timing ?? this.timing;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    this.finish = choice.finish_reason ?? this.finish;
    const entries = choice.logprobs?.content ?? [];
    const text = choice.delta?.content ?? "";
    if (!text && !entries.length) return;
    const gap = this.tick(performance.now());
    entries.forEach((entry, position) => this.tokens.push(this.token(entry, position ? 0 : gap)));
    this.text += text;
  }

  tick(now) {
    const gap = this.lastAt === null ? null : (now - this.lastAt) / 1000;
    this.firstAt ??= now;
    this.lastAt = now;
    if (gap !== null) this.gaps.push(gap);
    return gap;
  }

  /** A character can be cut by a token's end: it then belongs to the token that completes it. */
  token(entry, gap) {
    const text = entry.bytes ? this.decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token;
    const alternatives = (entry.top_logprobs ?? []).map(({ token, logprob }) => ({ text: token, logprob }));
    return { text, logprob: entry.logprob, alternatives, gap };
  }

  /** Seconds to the first token, null before it. */
  get ttft() {
    return this.firstAt === null ? null : (this.firstAt - this.startedAt) / 1000;
  }

  /** Output tokens per second after the first one, null where there is nothing to measure. */
  get speed() {
    const tokens = this.usage?.completion_tokens ?? this.tokens.length;
    const seconds = (this.lastAt - this.firstAt) / 1000;
    return this.firstAt === null || tokens < 2 || seconds <= 0 ? null : (tokens - 1) / seconds;
  }
}

/**
 * Asks, and calls `changed` after each chunk.
 * @param {object} fields messages and sampling
 * @param {AbortSignal} signal
 * @param {(answer: Answer) => void} changed
 * @throws {ApiError} also when the stream ends with an error, or breaks off
 */
export async function complete(fields, signal, changed) {
  const { id } = await getModel();
  const answer = new Answer();
  const body = { model: id, stream: true, stream_options: { include_usage: true }, logprobs: true, top_logprobs: 5, timing: true, ...fields };
  const response = await post("v1/chat/completions", body, signal);
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, 200, chunk.error.code);
      answer.add(chunk);
      changed(answer);
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("The connection broke off before the answer was complete.", 0);
  }
  if (answer.finish === null) throw new ApiError("The stream ended before the answer was complete.", 0);
}
