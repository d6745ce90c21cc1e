/** The lower part of the picture: a lane for each request, its chunks as blocks, its tokens as dots on a line. */
import { count, shortId } from "./format.js";

/** @typedef {import("./history.js").Track} Track */

const LABELLED = 14; // pixels a lane needs for text

/** Pixels a lane, so that many of them still fit. @param {number} numLanes */
export const laneHeight = (numLanes) => (numLanes <= 8 ? 27 : numLanes <= 14 ? 22 : numLanes <= 24 ? 16 : numLanes <= 48 ? 9 : 5);

/** @param {any} scene of the picture */
export function drawLanes(scene) {
  const { c, layout, colours, view } = scene;
  c.strokeStyle = colours.line;
  c.lineWidth = 1;
  for (let lane = 0; lane < layout.numLanes; lane++) line(scene, layout.left, layout.right, middle(layout, lane));
  for (const track of view.history.tracks.values()) {
    const chunks = visibleChunks(track, scene);
    if (chunks.length) drawTrack(scene, track, chunks);
  }
}

/** Who is in each lane: the last one in sight. Left of what the picture is clipped to. @param {any} scene of the picture */
export function labelLanes(scene) {
  const { layout, view, first, last } = scene;
  if (layout.lane < LABELLED) return;
  /** @type {(Track | undefined)[]} */
  const newest = [];
  for (const track of view.history.tracks.values()) {
    const begin = track.chunks[0]?.index;
    if (begin === undefined || begin >= last || track.chunks.at(-1).index < first) continue;
    if (begin >= (newest[track.lane]?.chunks[0].index ?? -1)) newest[track.lane] = track;
  }
  for (const track of newest) if (track) labelLane(scene, track);
}

/** In the middle of a row of pixels, so that lines are crisp. */
const middle = (layout, lane) => Math.floor(layout.lanes + (lane + 0.5) * layout.lane) + 0.5;

/** Those in sight and the one before, from which the line comes. @param {Track} track */
function visibleChunks(track, { first, last }) {
  const { chunks } = track;
  if (!chunks.length || chunks[0].index >= last || chunks.at(-1).index < first - 1) return [];
  let [low, high] = [0, chunks.length];
  while (low < high) {
    const half = (low + high) >> 1;
    if (chunks[half].index < first) low = half + 1;
    else high = half;
  }
  let end = low;
  while (end < chunks.length && chunks[end].index < last) end++;
  return chunks.slice(Math.max(0, low - 1), end);
}

function drawTrack(scene, track, chunks) {
  const { layout } = scene;
  const y = middle(layout, track.lane);
  links(scene, track, chunks, y);
  let run = [];
  for (const [position, chunk] of chunks.entries()) {
    if (chunk.isPrefill) {
      const next = chunks[position + 1];
      block(scene, chunk, y, next?.isPrefill === true && next.index === chunk.index + 1);
      run.push(chunk);
    } else {
      labelRun(scene, run, y);
      run = [];
      dot(scene, chunk, y);
    }
  }
  labelRun(scene, run, y);
  if (track.ended !== null) endMark(scene, track.ended, y);
  for (const index of track.preempted) preemptionMark(scene, index, y);
}

/** Lines from token to token; where a stream was left out they are broken and red. */
function links({ c, view, x, colours, layout }, track, chunks, y) {
  const centre = (chunk) => x(chunk.index + 0.5);
  for (let position = 1; position < chunks.length; position++) {
    const [before, chunk] = [chunks[position - 1], chunks[position]];
    if (!before.samples && before.isPrefill) continue;
    if (track.preempted.some((index) => index > before.index && index <= chunk.index)) continue;
    if (view.history.at(chunk.index)?.follows === false) continue;
    const isStall = chunk.turn - before.turn > view.history.stages;
    c.strokeStyle = isStall ? colours.alarm : colours.decode;
    c.lineWidth = isStall ? 1.6 : layout.lane < 10 ? 1 : 1.5;
    c.setLineDash(isStall ? [3, 3] : []);
    c.globalAlpha = isStall ? 1 : 0.55;
    c.beginPath();
    c.moveTo(centre(before), y);
    c.lineTo(centre(chunk), y);
    c.stroke();
  }
  c.setLineDash([]);
  c.globalAlpha = 1;
}

/** A block is as high as its chunk is large, of the budget. Those of one prompt touch, with a line between. */
function block({ c, view, x, layout, colours }, chunk, y, goesOn) {
  const full = layout.lane - (layout.lane > 8 ? 5 : 1);
  const share = Math.min(1, chunk.tokens / Math.max(1, view.engine?.token_budget ?? chunk.tokens));
  const height = full * (0.6 + 0.4 * share);
  const left = x(chunk.index);
  const width = Math.max(1, view.column - (goesOn || view.column <= 3 ? 0 : 1.5));
  c.fillStyle = colours.prefill;
  c.beginPath();
  c.roundRect(left, y - height / 2, width, height, Math.min(3, width / 3));
  c.fill();
  if (!goesOn || view.column < 5) return;
  c.fillRect(left + width - 3, y - height / 2 + 2, 6, height - 4);
  c.globalAlpha = 0.35;
  c.fillStyle = colours["prefill-ink"];
  c.fillRect(left + width - 0.5, y - height / 2 + 1, 1, height - 2);
  c.globalAlpha = 1;
}

function dot({ c, view, x, layout, colours }, chunk, y) {
  const radius = Math.max(0.8, Math.min(view.column * 0.3, layout.lane * 0.17, 3.6));
  c.fillStyle = colours.decode;
  c.beginPath();
  c.arc(x(chunk.index + 0.5), y, radius, 0, 2 * Math.PI);
  c.fill();
}

/** How many tokens of a prompt: in each block where they are wide, else over all of them. */
function labelRun(scene, run, y) {
  const { c, view, x, layout, colours, font } = scene;
  if (!run.length || layout.lane < LABELLED) return;
  c.font = `600 10.5px ${font}`;
  c.textAlign = "center";
  c.textBaseline = "middle";
  c.fillStyle = colours["prefill-ink"];
  if (view.column >= 30) {
    for (const chunk of run) c.fillText(count(chunk.tokens), x(chunk.index) + view.column / 2 - 0.75, y + 0.5);
    return;
  }
  const text = count(run.reduce((sum, chunk) => sum + chunk.tokens, 0));
  const left = Math.max(layout.left, x(run[0].index));
  const right = x(run.at(-1).index + 1);
  const width = c.measureText(text).width;
  if (right - left < width + 8) return;
  c.fillStyle = colours.prefill;
  c.fillRect((left + right - width) / 2 - 2, y - 6, width + 4, 12); // over the lines between blocks
  c.fillStyle = colours["prefill-ink"];
  c.fillText(text, (left + right) / 2, y + 0.5);
}

function endMark({ c, x, layout, colours }, index, y) {
  const height = Math.min(14, layout.lane * 0.6);
  c.fillStyle = colours.ink;
  c.fillRect(x(index + 1) - 1, y - height / 2, 2, height);
}

function preemptionMark({ c, x, layout, colours }, index, y) {
  const size = Math.min(6, layout.lane * 0.3);
  c.fillStyle = colours.alarm;
  c.beginPath();
  c.moveTo(x(index) - size, y - size);
  c.lineTo(x(index) + size, y - size);
  c.lineTo(x(index), y + size);
  c.fill();
}

function labelLane({ c, layout, colours, font }, track) {
  c.font = `${track.ended === null ? 500 : 400} 11px ${font}`;
  c.textAlign = "right";
  c.textBaseline = "middle";
  c.fillStyle = track.ended === null ? colours["ink-2"] : colours["ink-3"];
  c.globalAlpha = track.ended === null ? 1 : 0.6;
  c.fillText(shortId(track.id), layout.left - 10, middle(layout, track.lane) + 0.5);
  c.globalAlpha = 1;
}

function line({ c }, left, right, y) {
  c.beginPath();
  c.moveTo(left, y);
  c.lineTo(right, y);
  c.stroke();
}
