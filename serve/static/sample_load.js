/** A few chat requests with prompts of different lengths, so that there is something to see. */
import { complete } from "./completion.js";
import { getModel } from "./api.js";

/** Of the longest request that the model takes; the first ones stream while the long prompts come. */
const PROMPT_SHARES = [0.02, 0.04, 0.5, 0.08, 0.35, 0.15];
const MAX_CHARACTERS = 24000;
const MAX_TOKENS = 160;
const PAUSE_S = 0.35;
const SUBJECTS = ["tides", "bridges", "glaciers", "maps", "clocks", "harbours", "looms", "orchards"];
const SENTENCE = (subject, number) => `Note ${number} on ${subject}: they change slowly, and what they were can be read from what they are. `;

export const SAMPLE_SIZE = PROMPT_SHARES.length;

/**
 * Sends them one after another and reads the answers to the end.
 * @param {AbortSignal} signal
 * @param {(done: number) => void} progress
 * @throws {Error} the first error of a request, after all have ended
 */
export async function sendSampleLoad(signal, progress) {
  const { max_model_len: longest = 4096 } = await getModel();
  let done = 0;
  const sent = PROMPT_SHARES.map(async (share, position) => {
    await pause(position * PAUSE_S, signal);
    // A character is at most one token with nearly every tokenizer, so that this fits.
    const characters = Math.min(MAX_CHARACTERS, Math.floor(longest * share));
    const fields = {
      messages: [{ role: "user", content: promptOf(characters, position) }],
      max_tokens: Math.max(1, Math.min(MAX_TOKENS, Math.floor(longest * 0.2))),
      ignore_eos: true,
    };
    await complete(fields, signal, () => {});
    done += 1;
    progress(done);
  });
  const ends = await Promise.allSettled(sent);
  const failed = ends.find((end) => end.status === "rejected" && end.reason.name !== "AbortError");
  if (failed) throw failed.reason;
}

/** A text that begins differently each time: the prefix cache must not have it. */
function promptOf(characters, position) {
  const subject = SUBJECTS[Math.floor(Math.random() * SUBJECTS.length)];
  let text = `${Math.random().toString(36).slice(2, 8)}: `;
  for (let number = 1; text.length < characters; number++) text += SENTENCE(subject, number * 10 + position);
  return text.slice(0, Math.max(characters, 12));
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}
