/** What has been seen of the engine: its last steps, and for each request where it was in them. Knows nothing of the page. */

export const MAX_STEPS = 4000;
const SPARE = 500; // steps over the limit before the oldest go, so that they go rarely
const LANE_GAP = 2; // empty steps between two requests in one lane

/**
 * @typedef {[string, number, number, number, number]} Row request id, first position, tokens, is prefill, gives a token
 * @typedef {{step: number, start_s: number, end_s: number, bucket: string, bucket_tokens: number, decode_tokens: number,
 *   prefill_tokens: number, preempted: string[], rows: Row[], replica?: number}} Step
 * @typedef {Step & {turn: number, stalled: string[], follows: boolean}} SeenStep turn: of its replica's steps; stalled: running streams left out;
 *   follows: nothing is missing before it
 * @typedef {{index: number, turn: number, start: number, tokens: number, isPrefill: boolean, samples: boolean}} Chunk
 * @typedef {{id: string, lane: number, chunks: Chunk[], preempted: number[], ended: number | null, isDecoding: boolean, isWaiting: boolean}} Track
 *   preempted, ended: indices of steps
 */

/**
 * Steps have an index of their own here, which goes on where the engine's numbers begin anew. One that comes without its rows, because
 * it was under way when somebody began to watch, is a gap like any other.
 */
export class History {
  constructor() {
    /** @type {SeenStep[]} */
    this.steps = [];
    this.first = 0;
    /** @type {Map<string, Track>} */
    this.tracks = new Map();
    /** @type {(Track | null)[]} */
    this.lanes = [];
    this.stages = 1;
    /** @type {Map<number, {step: number, turn: number}>} the newest step of each replica of the engine, empty after a gap */
    this.newest = new Map();
  }

  /** The index after the newest step's. */
  get end() {
    return this.first + this.steps.length;
  }

  /** @param {number} index @returns {SeenStep | undefined} */
  at(index) {
    return this.steps[index - this.first];
  }

  /** Nothing is known of what comes between: the connection was lost, or the engine began anew. */
  interrupt() {
    this.newest.clear();
    for (const track of this.tracks.values()) track.isDecoding = false;
  }

  /**
   * @param {Step[]} steps
   * @param {number} running requests after them
   */
  add(steps, running) {
    for (const step of steps) this.addStep(step);
    this.findEnded(running);
    if (this.steps.length > MAX_STEPS + SPARE) this.forget(this.steps.length - MAX_STEPS);
  }

  addStep(step) {
    const index = this.end;
    const replica = step.replica ?? 0;
    const last = this.newest.get(replica);
    const isKnown = step.rows.length > 0 || step.decode_tokens + step.prefill_tokens === 0;
    const follows = isKnown && last !== undefined && step.step === last.step + 1;
    if (last && !follows) this.interrupt();
    const turn = follows ? last.turn + 1 : 0;
    this.newest.set(replica, { step: step.step, turn });
    this.steps.push({ ...step, turn, stalled: [], follows });
    for (const id of step.preempted) this.preempt(id, index);
    for (const row of step.rows) this.addRow(row, index, turn);
  }

  addRow([id, start, tokens, isPrefill, samples], index, turn) {
    const track = this.tracks.get(id) ?? this.newTrack(id, index);
    if (track.isDecoding) this.markStalls(track, index);
    track.chunks.push({ index, turn, start, tokens, isPrefill: Boolean(isPrefill), samples: Boolean(samples) });
    track.isDecoding = Boolean(samples) || !isPrefill;
    track.isWaiting = false;
    track.ended = null;
  }

  /** A stream that had begun was in none of the steps since its last token, beyond those that its pipeline takes. */
  markStalls(track, index) {
    const last = track.chunks.at(-1);
    const replica = this.at(index).replica;
    for (let missed = last.index + 1; missed < index; missed++) {
      const step = this.at(missed);
      if (step && step.replica === replica && step.turn >= last.turn + this.stages) step.stalled.push(track.id);
    }
  }

  newTrack(id, index) {
    const track = { id, lane: this.freeLane(index), chunks: [], preempted: [], ended: null, isDecoding: false, isWaiting: false };
    this.lanes[track.lane] = track;
    this.tracks.set(id, track);
    return track;
  }

  freeLane(index) {
    const isFree = (track) => !track || (track.ended !== null && index - track.ended > LANE_GAP);
    const lane = this.lanes.findIndex(isFree);
    return lane < 0 ? this.lanes.length : lane;
  }

  preempt(id, index) {
    const track = this.tracks.get(id);
    if (!track) return;
    track.preempted.push(index);
    track.isWaiting = true;
    track.isDecoding = false;
  }

  endTrack(track) {
    if (track?.chunks.length) track.ended = track.chunks.at(-1).index;
    if (track) track.isDecoding = track.isWaiting = false;
  }

  /** Ends are not told: when fewer run than have lanes, those seen longest ago have ended. */
  findEnded(running) {
    const alive = this.lanes.filter((track) => track && track.ended === null && !track.isWaiting);
    const last = (track) => track.chunks.at(-1).index;
    const newest = this.end - 1;
    alive.sort((a, b) => last(a) - last(b));
    for (const track of alive.slice(0, Math.max(0, alive.length - running))) {
      if (running === 0 || last(track) < newest) this.endTrack(track);
    }
  }

  /** @param {number} count of the oldest steps */
  forget(count) {
    this.steps.splice(0, count);
    this.first += count;
    for (const [id, track] of this.tracks) {
      const kept = track.chunks.findIndex((chunk) => chunk.index >= this.first);
      if (kept > 0) track.chunks.splice(0, kept);
      else if (kept < 0 && track.ended !== null) this.drop(id, track);
    }
  }

  drop(id, track) {
    this.tracks.delete(id);
    if (this.lanes[track.lane] === track) this.lanes[track.lane] = null;
    while (this.lanes.length && !this.lanes.at(-1)) this.lanes.pop();
  }
}
