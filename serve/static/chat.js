/** The chat view: the conversation, what is being asked, and stopping it. */
import { complete } from "./completion.js";
import { byId, element } from "./dom.js";
import { Settings } from "./sampling.js";
import { hideCard } from "./tokens.js";
import { AnswerTurn, userTurn } from "./turn.js";

const EXAMPLES = ["Why are prompts split into chunks?", "What is a KV cache?", "12+30=", "sort(5,3,8)="];
const AT_END = 60; // pixels from the end that still count as reading along

class Chat {
  constructor() {
    this.conversation = byId("conversation");
    this.prompt = /** @type {HTMLTextAreaElement} */ (byId("prompt"));
    /** @type {{role: string, content: string}[]} */
    this.messages = [];
    /** @type {AnswerTurn[]} */
    this.turns = [];
    /** @type {AbortController | null} */
    this.asking = null;
    this.settings = new Settings(() => this.redraw());
    this.listen();
    this.redraw();
  }

  listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(this.prompt.value);
    });
    byId("stop").addEventListener("click", () => this.asking?.abort());
    byId("new-conversation").addEventListener("click", () => this.clear());
    this.prompt.addEventListener("input", () => this.fit());
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send(this.prompt.value);
    });
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !byId("view-chat").hidden && !document.querySelector("dialog[open]")) this.asking?.abort();
    });
    const offer = (text) => element("li", {}, element("button", { type: "button", text, onclick: () => this.send(text) }));
    byId("examples").append(...EXAMPLES.map(offer));
  }

  /** @param {string} text */
  send(text) {
    if (this.asking || !text.trim() || !this.settings.areValid()) return;
    byId("welcome").hidden = true;
    if (this.messages.at(-1)?.role === "user") this.messages.pop(); // it was never answered: roles take turns
    this.messages.push({ role: "user", content: text });
    this.conversation.append(userTurn(text));
    this.prompt.value = "";
    this.fit();
    this.ask();
  }

  /** Asks for the answer to the messages so far. */
  async ask() {
    const turn = new AnswerTurn(this.settings);
    const messages = this.settings.system ? [{ role: "system", content: this.settings.system }, ...this.messages] : [...this.messages];
    const asking = new AbortController();
    this.turns.push(turn);
    this.conversation.append(turn.node);
    this.scrollDown(true);
    this.setAsking(asking);
    try {
      await complete({ messages, ...this.settings.fields() }, asking.signal, (answer) => this.changed(turn, answer));
      this.ended(turn, "");
    } catch (error) {
      if (error.name === "AbortError") this.ended(turn, "stopped");
      else this.failed(turn, error);
    }
    if (this.asking === asking) this.setAsking(null);
    this.scrollDown();
  }

  /** At most once a frame, however many tokens come. */
  changed(turn, answer) {
    turn.answer = answer;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (!turn.node.classList.contains("streaming")) return;
      const follows = this.isAtEnd();
      turn.update(turn.answer);
      if (follows) this.scrollDown(true);
    });
  }

  ended(turn, note) {
    if (!this.turns.includes(turn)) return;
    if (turn.answer) turn.update(turn.answer);
    turn.end(note);
    if (turn.answer?.text) this.messages.push({ role: "assistant", content: turn.answer.text });
    byId("announcer").textContent = note ? `The answer was ${note}: ${turn.answer?.text ?? ""}` : `The model says: ${turn.answer?.text ?? ""}`;
  }

  failed(turn, error) {
    if (!this.turns.includes(turn)) return;
    if (turn.answer) turn.update(turn.answer);
    turn.fail(error.message, () => {
      if (this.asking || this.turns.at(-1) !== turn) return;
      turn.node.remove();
      this.turns.pop();
      this.ask();
    });
  }

  setAsking(asking) {
    const focused = document.activeElement === byId("stop");
    this.asking = asking;
    byId("send").hidden = asking !== null;
    byId("stop").hidden = asking === null;
    if (asking) byId("announcer").textContent = "The model answers.";
    else if (focused) this.prompt.focus();
  }

  clear() {
    this.asking?.abort();
    this.messages = [];
    this.turns = [];
    hideCard();
    this.conversation.replaceChildren(byId("welcome"));
    byId("welcome").hidden = false;
    byId("announcer").textContent = "A new conversation.";
    this.prompt.focus();
  }

  redraw() {
    byId("scale").hidden = !this.settings.showsProbabilities;
    for (const turn of this.turns) turn.redraw();
  }

  /** The field grows with its text. */
  fit() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight}px`;
  }

  get scroller() {
    const own = getComputedStyle(this.conversation).overflowY === "auto";
    return own ? this.conversation : document.documentElement;
  }

  isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < AT_END;
  }

  scrollDown(always = false) {
    if (always || this.isAtEnd()) this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

export function startChat() {
  const chat = new Chat();
  return { show: () => chat.fit() };
}
