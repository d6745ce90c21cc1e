/** The button that sends the sample load, and stops it. */
import { byId } from "./dom.js";
import { SAMPLE_SIZE, sendSampleLoad } from "./sample_load.js";

export function startLoadButton() {
  const button = byId("load");
  /** @type {AbortController | null} */
  let sending = null;

  function say(text, isProblem = false) {
    byId("load-notice").textContent = text;
    byId("load-notice").classList.toggle("problem", isProblem);
  }

  button.addEventListener("click", async () => {
    if (sending) {
      sending.abort();
      return;
    }
    sending = new AbortController();
    button.textContent = "Stop sample load";
    const progress = (done) => say(`This page sends ${SAMPLE_SIZE} chat requests, short prompts and long: ${done} done`);
    progress(0);
    try {
      await sendSampleLoad(sending.signal, progress);
      say("");
    } catch (error) {
      say(`The sample load failed: ${error.message}`, true);
    }
    sending = null;
    button.textContent = "Send sample load";
  });
}
