/** Pointer and keys on the picture: choose a step, go back and forth, pause, zoom. */
import { byId } from "./dom.js";

const DRAG = 4; // pixels that a click may move

/** @param {any} schedule the view */
export function listenToPicture(schedule) {
  const picture = byId("picture");
  const indexAt = (event) => {
    const place = event.clientX - picture.getBoundingClientRect().left;
    const { layout } = schedule;
    if (!layout || place < layout.left || place > layout.right) return null;
    const index = Math.floor(schedule.right - (layout.right - place) / schedule.column);
    return schedule.history.at(index) ? index : null;
  };
  listenToPointer(schedule, picture, indexAt);
  picture.addEventListener("keydown", (event) => {
    const act = keys(schedule)[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
}

function listenToPointer(schedule, picture, indexAt) {
  /** @type {{x: number, right: number, isDrag: boolean} | null} */
  let held = null;
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    held = { x: event.clientX, right: schedule.right, isDrag: false };
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", (event) => {
    if (held && (held.isDrag || Math.abs(event.clientX - held.x) > DRAG)) {
      held.isDrag = true;
      picture.classList.add("dragging");
      schedule.moveTo(held.right - (event.clientX - held.x) / schedule.column);
    }
    schedule.pointed = indexAt(event);
    schedule.changed();
  });
  picture.addEventListener("pointerup", (event) => {
    const index = indexAt(event);
    if (held && !held.isDrag && index !== null) schedule.choose(index);
    held = null;
    picture.classList.remove("dragging");
  });
  for (const name of ["pointercancel", "pointerleave"]) {
    picture.addEventListener(name, () => {
      if (name === "pointercancel") held = null;
      schedule.pointed = null;
      picture.classList.remove("dragging");
      schedule.changed();
    });
  }
  picture.addEventListener(
    "wheel",
    (event) => {
      const by = event.deltaX || (event.shiftKey ? event.deltaY : 0);
      if (!by) return;
      event.preventDefault();
      schedule.moveTo(schedule.right + by / schedule.column);
    },
    { passive: false },
  );
}

function keys(schedule) {
  const now = schedule.chosen ?? Math.round(schedule.right);
  return {
    ArrowLeft: () => schedule.choose(now - 1),
    ArrowRight: () => schedule.choose(now + 1),
    PageUp: () => schedule.choose(now - 10),
    PageDown: () => schedule.choose(now + 10),
    Home: () => schedule.choose(schedule.history.first),
    End: () => schedule.choose(schedule.history.end - 1),
    Escape: () => schedule.pause(false),
    " ": () => schedule.pause(!schedule.isPaused),
    "+": () => schedule.zoomBy(1),
    "=": () => schedule.zoomBy(1),
    "-": () => schedule.zoomBy(-1),
  };
}
