/** The schedule view: follows the engine, moves the picture, and lets one stop and look. */
import { byId } from "./dom.js";
import { follow } from "./feed.js";
import { count, many } from "./format.js";
import { History } from "./history.js";
import { showStep } from "./inspector.js";
import { startLoadButton } from "./load_button.js";
import { showCounts, showEngine, showLatency, showState } from "./meters.js";
import { Picture } from "./picture.js";
import { listenToPicture } from "./pointing.js";
import { traceOf } from "./trace.js";
import { describeStep, describeSteps } from "./words.js";

const COLUMNS = [3, 5, 8, 12, 18, 26, 36]; // pixels a step
const WORDS_EVERY_MS = 250;
const DESCRIBED = 100; // steps that the headline is about

class Schedule {
  constructor() {
    this.history = new History();
    this.picture = new Picture(byId("picture").querySelector("canvas"));
    this.engine = null;
    this.right = 0;
    this.zoom = 3;
    this.isPaused = false;
    /** @type {number | null} */
    this.chosen = null;
    /** @type {number | null} */
    this.pointed = null;
    this.layout = null;
    this.frame = null;
    this.wordsAt = 0;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.listen();
  }

  get column() {
    return COLUMNS[this.zoom];
  }

  /** How many steps fit into the picture. */
  get capacity() {
    return this.layout ? Math.floor((this.layout.right - this.layout.left) / this.column) : 60;
  }

  listen() {
    byId("pause").addEventListener("click", () => this.pause(!this.isPaused));
    byId("export").addEventListener("click", () => this.exportTrace());
    byId("zoom-in").addEventListener("click", () => this.zoomBy(1));
    byId("zoom-out").addEventListener("click", () => this.zoomBy(-1));
    startLoadButton();
    listenToPicture(this);
    new ResizeObserver(() => this.changed()).observe(byId("picture"));
    document.addEventListener("theme", () => {
      this.picture.readColours();
      this.changed();
    });
  }

  /** The view is in sight: from the first time on, the engine is followed. */
  show() {
    if (!this.isFollowing) {
      this.isFollowing = true;
      follow({ message: (message) => this.take(message), lost: (error, pauseS) => this.lost(error, pauseS) });
    }
    this.changed();
  }

  take(message) {
    if (message.kind === "engine") this.meet(message);
    else if (message.kind === "state") showState(message.state);
    else if (message.kind === "latency") showLatency(message, this.engine?.tbt_slo_ms ?? null);
    else if (message.kind === "steps") {
      this.history.add(message.steps, message.queue.running);
      showCounts(message.queue, message.kv);
      this.changed();
    }
  }

  meet(engine) {
    this.engine = engine;
    this.history.stages = engine.stages ?? 1;
    this.history.interrupt();
    showEngine(engine);
    showState(engine.state);
    this.changed();
  }

  lost(error, pauseS) {
    showState("lost", `${error.message} The next try is in ${pauseS < 1 ? "half a second" : many(pauseS, "second")}.`);
  }

  /** Draws with the next frame. */
  changed() {
    this.frame ??= requestAnimationFrame((now) => {
      this.frame = null;
      if (!byId("view-schedule").hidden) this.draw(now);
    });
  }

  draw(now) {
    if (!this.isPaused) this.glide();
    const { history, engine, right, column, chosen, pointed } = this;
    this.layout = this.picture.draw({ history, engine, right, column, chosen, pointed });
    if (now - this.wordsAt > WORDS_EVERY_MS || this.isPaused) this.say(now);
    else this.changed();
  }

  /** The picture glides towards the newest step: a little faster than steps come, without jumps. */
  glide() {
    const behind = this.history.end - this.right;
    const isFar = behind > this.capacity * 2 || behind < 0;
    if (this.calm.matches || isFar || behind < 0.02) this.right = this.history.end;
    else {
      this.right += behind * 0.14;
      this.changed();
    }
  }

  /** The headline, the table, and what a screen reader hears. */
  say(now) {
    this.wordsAt = now;
    const { history, chosen } = this;
    const budget = this.engine?.token_budget ?? null;
    const step = history.at(chosen ?? history.end - 1);
    if (chosen !== null && step) {
      byId("headline").textContent = `Step ${count(step.step)}`;
      byId("subline").textContent = upperFirst(describeStep(step, budget));
    } else {
      const end = this.isPaused ? Math.round(this.right) - history.first : history.steps.length;
      const { headline, line } = describeSteps(history.steps.slice(Math.max(0, end - DESCRIBED), Math.max(0, end)));
      byId("headline").textContent = headline;
      byId("subline").textContent = line;
    }
    if (!step) return;
    showStep(step, chosen !== null);
    const slider = byId("picture");
    slider.setAttribute("aria-valuemin", String(history.first));
    slider.setAttribute("aria-valuemax", String(history.end - 1));
    slider.setAttribute("aria-valuenow", String(chosen ?? history.end - 1));
    slider.setAttribute("aria-valuetext", chosen === null ? `newest, step ${step.step}` : `step ${step.step}: ${describeStep(step, budget)}`);
  }

  pause(isPaused) {
    this.isPaused = isPaused;
    if (!isPaused) this.chosen = this.pointed = null;
    byId("pause").textContent = isPaused ? "Resume" : "Pause";
    byId("pause").setAttribute("aria-pressed", String(isPaused));
    this.wordsAt = 0;
    this.changed();
  }

  /** Looks into one step, and stops for it. @param {number} index */
  choose(index) {
    if (!this.history.steps.length) return;
    this.pause(true);
    this.chosen = Math.max(this.history.first, Math.min(this.history.end - 1, index));
    if (this.chosen + 1 > this.right) this.right = this.chosen + 1;
    if (this.chosen < this.right - this.capacity) this.right = this.chosen + this.capacity;
    this.changed();
  }

  /** Shows other steps; stops for it. @param {number} right index at the right edge */
  moveTo(right) {
    this.pause(true);
    this.right = Math.max(Math.min(this.history.end, this.history.first + this.capacity), Math.min(this.history.end, right));
    this.changed();
  }

  zoomBy(by) {
    this.zoom = Math.max(0, Math.min(COLUMNS.length - 1, this.zoom + by));
    this.changed();
  }

  exportTrace() {
    const text = JSON.stringify(traceOf(this.history, this.engine));
    const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    const link = document.createElement("a");
    link.href = address;
    link.download = `steps-${new Date().toISOString().slice(0, 19).replace(/:/g, "-")}.trace.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }
}

const upperFirst = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function startSchedule() {
  const schedule = new Schedule();
  return { show: () => schedule.show() };
}
