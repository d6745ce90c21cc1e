/** Draws the steps on a canvas: tokens against the budget, what steps took, and a lane for each request; one column a step in all three. */
import { drawLanes, labelLanes, laneHeight } from "./lanes.js";
import { count } from "./format.js";

/**
 * @typedef {import("./history.js").History} History
 * @typedef {{history: History, engine: any, right: number, column: number, chosen: number | null, pointed: number | null}} View
 *   right: index at the right edge, a fraction while it moves; column: pixels a step
 * @typedef {{left: number, right: number, tokens: number, tokensEnd: number, times: number, timesEnd: number, lanes: number, lane: number, numLanes: number, height: number}} Layout
 */

const LEFT = 80;
const RIGHT = 14;
const TOP = 16;
const TOKENS = 176;
const TIMES = 46;
const GAP = 26;
const COLOURS = ["paper", "card", "line", "line-strong", "ink", "ink-2", "ink-3", "decode", "decode-soft", "prefill", "prefill-ink", "alarm", "padding"];

/** @param {History} history @param {any} engine @param {number} width @returns {Layout} */
export function layoutOf(history, engine, width) {
  const numLanes = Math.max(history.lanes.length, Math.min(8, engine?.max_num_seqs ?? 4));
  const lane = laneHeight(numLanes);
  const tokensEnd = TOP + TOKENS;
  const timesEnd = tokensEnd + GAP + TIMES;
  const lanes = timesEnd + GAP;
  return { left: LEFT, right: width - RIGHT, tokens: TOP, tokensEnd, times: tokensEnd + GAP, timesEnd, lanes, lane, numLanes, height: lanes + numLanes * lane + 6 };
}

export class Picture {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.readColours();
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    this.colours = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.font = style.getPropertyValue("--sans");
    this.hatch = this.makeHatch();
  }

  /** Diagonal lines, for padding. */
  makeHatch() {
    const tile = new OffscreenCanvas(6, 6);
    const context = tile.getContext("2d");
    context.strokeStyle = this.colours.padding;
    context.lineWidth = 1.4;
    context.beginPath();
    for (const shift of [-6, 0, 6]) {
      context.moveTo(shift - 1, 7);
      context.lineTo(shift + 7, -1);
    }
    context.stroke();
    return this.context.createPattern(tile, "repeat");
  }

  /** @param {View} view @returns {Layout} where things are, for pointers */
  draw(view) {
    const width = this.canvas.clientWidth;
    const layout = layoutOf(view.history, view.engine, width);
    this.resize(width, layout.height);
    const c = this.context;
    c.clearRect(0, 0, width, layout.height);
    const first = Math.max(view.history.first, Math.floor(view.right - (layout.right - layout.left) / view.column) - 1);
    const last = Math.min(view.history.end, Math.ceil(view.right));
    const x = (index) => layout.right - (view.right - index) * view.column;
    const scene = { c, view, layout, first, last, x, colours: this.colours, font: this.font };
    this.band(scene, view.pointed, this.colours.line, 0.5);
    this.band(scene, view.chosen, this.colours["decode-soft"], 1);
    this.clip(scene, layout.tokens - TOP, layout.tokensEnd + 1, () => this.tokens(scene));
    this.clip(scene, layout.times - 4, layout.timesEnd + 1, () => this.times(scene));
    this.clip(scene, layout.lanes - 4, layout.height, () => drawLanes(scene));
    labelLanes(scene);
    this.axes(scene);
    return layout;
  }

  resize(width, height) {
    const ratio = devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) {
      this.canvas.width = w;
      this.canvas.height = h;
      this.canvas.style.height = `${height}px`;
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  clip({ c, layout }, top, bottom, draw) {
    c.save();
    c.beginPath();
    c.rect(layout.left, top, layout.right - layout.left, bottom - top);
    c.clip();
    draw();
    c.restore();
  }

  band({ c, view, layout, x }, index, colour, alpha) {
    if (index === null || !view.history.at(index)) return;
    const left = Math.max(layout.left, x(index));
    c.globalAlpha = alpha;
    c.fillStyle = colour;
    c.fillRect(left, 2, Math.max(0, Math.min(layout.right, x(index + 1)) - left), layout.height - 4);
    c.globalAlpha = 1;
  }

  /** Decodes at the bottom, for they come first; chunks on them; padding up to the bucket's size. */
  tokens(scene) {
    const { c, view, layout, first, last, x } = scene;
    const budget = view.engine?.token_budget ?? 0;
    let most = budget;
    for (let index = first; index < last; index++) {
      const step = view.history.at(index);
      most = Math.max(most, step.bucket_tokens, step.decode_tokens + step.prefill_tokens);
    }
    scene.most = Math.max(1, most);
    const scale = (layout.tokensEnd - layout.tokens) / scene.most;
    const width = Math.max(1, view.column - (view.column > 5 ? 2 : view.column > 2 ? 1 : 0));
    for (let index = first; index < last; index++) this.bar(scene, view.history.at(index), x(index), width, scale);
    c.strokeStyle = this.colours["ink-2"];
    c.setLineDash([5, 4]);
    this.level(scene, layout.tokensEnd - budget * scale);
    c.setLineDash([]);
  }

  bar({ c, layout }, step, left, width, scale) {
    const bottom = layout.tokensEnd;
    const decode = step.decode_tokens ? Math.max(4, step.decode_tokens * scale) : 0;
    const used = Math.max(decode, (step.decode_tokens + step.prefill_tokens) * scale);
    const whole = step.bucket_tokens * scale;
    if (whole > used + 1) {
      c.fillStyle = this.hatch;
      c.fillRect(left, bottom - whole, width, whole - used);
    }
    c.fillStyle = this.colours.decode;
    c.fillRect(left, bottom - decode, width, decode);
    c.fillStyle = this.colours.prefill;
    let top = bottom - decode;
    if (!step.rows.length) c.fillRect(left, bottom - used, width, used - decode); // its rows were not told
    for (const row of step.rows) {
      if (!row[3]) continue;
      const height = row[2] * scale;
      c.fillRect(left, top - height, width, Math.max(1, height - (height > 4 ? 1 : 0)));
      top -= height;
    }
  }

  /** What each step took, against the goal for the time between tokens where it is near. */
  times(scene) {
    const { c, view, layout, first, last, x } = scene;
    let longest = 0;
    for (let index = first; index < last; index++) longest = Math.max(longest, seconds(view.history.at(index)));
    const goal = (view.engine?.tbt_slo_ms ?? 0) / 1000;
    scene.goal = goal > 0 && goal < longest * 6 ? goal : 0;
    scene.longest = Math.max(longest, scene.goal) * 1.08 || 1;
    const scale = (layout.timesEnd - layout.times) / scene.longest;
    const width = Math.max(1, view.column - (view.column > 5 ? 2 : view.column > 2 ? 1 : 0));
    for (let index = first; index < last; index++) {
      const took = seconds(view.history.at(index));
      c.fillStyle = goal > 0 && took > goal ? this.colours.alarm : this.colours["ink-3"];
      c.fillRect(x(index), layout.timesEnd - took * scale, width, Math.max(1, took * scale));
    }
    if (scene.goal) {
      c.strokeStyle = this.colours.alarm;
      c.setLineDash([2, 3]);
      this.level(scene, layout.timesEnd - scene.goal * scale);
      c.setLineDash([]);
    }
  }

  level({ c, layout }, y) {
    c.lineWidth = 1;
    c.beginPath();
    c.moveTo(layout.left, Math.round(y) + 0.5);
    c.lineTo(layout.right, Math.round(y) + 0.5);
    c.stroke();
  }

  axes(scene) {
    const { c, view, layout } = scene;
    const budget = view.engine?.token_budget ?? 0;
    c.strokeStyle = this.colours["line-strong"];
    this.level(scene, layout.tokensEnd);
    this.level(scene, layout.timesEnd);
    const label = (text, y, colour = this.colours["ink-3"], weight = 400) => {
      c.font = `${weight} 11px ${this.font}`;
      c.fillStyle = colour;
      c.textAlign = "right";
      c.textBaseline = "middle";
      c.fillText(text, layout.left - 10, y, layout.left - 14);
    };
    label("tokens", layout.tokens - 8, this.colours["ink-2"], 600);
    label("0", layout.tokensEnd);
    const scale = (layout.tokensEnd - layout.tokens) / scene.most;
    if (budget) label(`budget ${count(budget)}`, Math.max(layout.tokens + 8, layout.tokensEnd - budget * scale), this.colours.ink, 600);
    label("time", layout.times - 6, this.colours["ink-2"], 600);
    if (scene.goal) label(`goal ${Math.round(scene.goal * 1000)} ms`, layout.times + 10, this.colours.alarm);
    else if (view.history.steps.length) label(`${(scene.longest * 1000).toFixed(scene.longest < 0.01 ? 1 : 0)} ms`, layout.times + 8);
    label("requests", layout.lanes - 10, this.colours["ink-2"], 600);
  }
}

const seconds = (step) => Math.max(0, step.end_s - step.start_s);
