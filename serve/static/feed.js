/** The connection to `/api/steps`: kept up, and made anew when it is lost, with pauses that grow. */
import { call } from "./api.js";
import { readEvents } from "./sse.js";

const FIRST_PAUSE_S = 0.5;
const LONGEST_PAUSE_S = 8;
const SILENCE_S = 40; // the server sends a comment every 15 s

/**
 * Reads for as long as the page is open.
 * @param {{message: (message: any) => void, lost: (error: Error, pauseS: number) => void}} on
 */
export async function follow(on) {
  let pauseS = FIRST_PAUSE_S;
  for (;;) {
    try {
      await read((message) => {
        pauseS = FIRST_PAUSE_S;
        on.message(message);
      });
      throw new Error("The server closed the connection.");
    } catch (error) {
      on.lost(error, pauseS);
      await new Promise((resolve) => setTimeout(resolve, pauseS * 1000));
      pauseS = Math.min(LONGEST_PAUSE_S, pauseS * 2);
    }
  }
}

/** One connection, until it ends. */
async function read(onMessage) {
  const stop = new AbortController();
  const response = await call("api/steps", { headers: { Accept: "text/event-stream" }, signal: stop.signal });
  const watched = response.body.pipeThrough(watch(() => stop.abort(new Error("Nothing was heard from the server."))));
  try {
    for await (const data of readEvents(watched)) onMessage(JSON.parse(data));
  } finally {
    stop.abort();
  }
}

/** Passes everything on, comments too, and calls `silent` when nothing has come for long. */
function watch(silent) {
  let timer = setTimeout(silent, SILENCE_S * 1000);
  return new TransformStream({
    transform(chunk, controller) {
      clearTimeout(timer);
      timer = setTimeout(silent, SILENCE_S * 1000);
      controller.enqueue(chunk);
    },
    flush: () => clearTimeout(timer),
  });
}
