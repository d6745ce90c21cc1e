/** The steps that are held, in Chrome's trace format, which ui.perfetto.dev opens. Knows nothing of the page. */

/** @typedef {import("./history.js").History} History */

const ENGINE = 1;
const REQUESTS = 2;
const micros = (seconds) => Math.round(seconds * 1e6);

/** @param {History} history @param {Record<string, unknown> | null} engine what `/api/steps` said first */
export function traceOf(history, engine) {
  const events = [name("process_name", ENGINE, 0, "engine"), name("process_name", REQUESTS, 0, "requests"), ...stepEvents(history), ...requestEvents(history)];
  return { displayTimeUnit: "ms", otherData: { ...engine }, traceEvents: events };
}

const name = (kind, pid, tid, text) => ({ ph: "M", name: kind, pid, tid, args: { name: text } });

/** Steps overlap where the next is dispatched before the last one's tokens are read: then they go on several lines. */
function stepEvents(history) {
  const events = [];
  /** @type {number[]} */
  const ends = [];
  for (const step of history.steps) {
    let line = ends.findIndex((end) => end <= step.start_s);
    if (line < 0) line = ends.length;
    if (line === ends.length) events.push(name("thread_name", ENGINE, line + 1, line ? `steps, line ${line + 1}` : "steps"));
    ends[line] = step.end_s;
    const { rows, start_s, end_s, follows, turn, ...args } = step;
    const ts = micros(start_s);
    events.push({ ph: "X", name: `${step.decode_tokens} decode, ${step.prefill_tokens} prefill`, cat: "step", pid: ENGINE, tid: line + 1, ts, dur: micros(end_s) - ts, args });
    events.push({ ph: "C", name: "tokens", pid: ENGINE, tid: 0, ts, args: { decode: step.decode_tokens, prefill: step.prefill_tokens } });
  }
  return events;
}

function requestEvents(history) {
  const events = [];
  let tid = 0;
  for (const track of history.tracks.values()) {
    tid += 1;
    events.push(name("thread_name", REQUESTS, tid, track.id));
    let free = 0; // steps overlap, a line's slices must not: a slice begins where the one before ends
    for (const chunk of track.chunks) {
      const step = history.at(chunk.index);
      if (!step) continue;
      const ts = Math.max(free, micros(step.start_s));
      free = Math.max(ts, micros(step.end_s));
      const args = { step: step.step, first_position: chunk.start, tokens: chunk.tokens, gives_a_token: chunk.samples };
      events.push({ ph: "X", name: chunk.isPrefill ? `prefill ${chunk.tokens}` : "decode", cat: "row", pid: REQUESTS, tid, ts, dur: free - ts, args });
    }
    for (const index of track.preempted) {
      const step = history.at(index);
      if (step) events.push({ ph: "i", s: "t", name: "preempted", cat: "row", pid: REQUESTS, tid, ts: micros(step.start_s) });
    }
  }
  return events;
}
