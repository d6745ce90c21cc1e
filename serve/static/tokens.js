/** Tokens as one can look at them: each coloured by how surprising it was, with a card about it on hover and focus. */
import { byId, element } from "./dom.js";
import { duration, percent, visible } from "./format.js";

/** @typedef {import("./completion.js").Token} Token */

const NOTHING_LESS_LIKELY = 6; // nats: tokens below a chance of 0.25 % have the full colour

/** A line of tokens; more can be added while they come. */
export class TokenLine {
  /** @param {HTMLElement} holder */
  constructor(holder) {
    this.holder = holder;
    /** @type {Token[]} */
    this.tokens = [];
    holder.addEventListener("pointerover", (event) => this.point(event.target));
    holder.addEventListener("pointerleave", hideCard);
    holder.addEventListener("focusin", (event) => this.point(event.target));
    holder.addEventListener("focusout", hideCard);
    holder.addEventListener("keydown", (event) => this.key(event));
  }

  /** Shows the tokens that are not there yet. @param {Token[]} tokens */
  update(tokens) {
    const fresh = tokens.slice(this.tokens.length);
    const first = this.tokens.length;
    this.tokens = [...tokens];
    this.holder.append(...fresh.map((token, position) => this.span(token, first + position)));
  }

  span(token, position) {
    const span = element("span", { class: "token", "data-position": position, tabindex: position ? -1 : 0, text: token.text });
    span.style.setProperty("--p", (Math.min(1, -token.logprob / NOTHING_LESS_LIKELY) ** 0.7).toFixed(3));
    return span;
  }

  /** Tokens that are not in the answer's text stand back: the one that ends it, say. @param {number} length of the text */
  markOutside(length) {
    let before = 0;
    this.tokens.forEach((token, position) => {
      this.holder.children[position].classList.toggle("outside", before >= length && token.text !== "");
      before += token.text.length;
    });
  }

  point(target) {
    const span = target.closest?.(".token");
    if (span) showCard(span, this.tokens[Number(span.dataset.position)]);
  }

  /** Left and right go from token to token; Tab leaves the line. @param {KeyboardEvent} event */
  key(event) {
    const span = /** @type {HTMLElement} */ (event.target).closest(".token");
    const next = { ArrowRight: span?.nextElementSibling, ArrowLeft: span?.previousElementSibling }[event.key];
    if (event.key === "Escape") hideCard();
    if (!(next instanceof HTMLElement)) return;
    event.preventDefault();
    span.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

/** @param {HTMLElement} span @param {Token} token */
function showCard(span, token) {
  const card = byId("token-card");
  const chance = Math.exp(token.logprob);
  const when = token.gap === null ? "the first token" : token.gap === 0 ? "came with the token before" : `${duration(token.gap)} after the token before`;
  card.replaceChildren(
    element("header", {}, element("span", { text: visible(token.text) }), element("span", { text: percent(chance) })),
    element("p", { class: "when", text: when }),
    element("ol", { "aria-label": "What else there was" }, ...token.alternatives.map((other) => choice(other, token))),
  );
  card.hidden = false;
  document.querySelector('[aria-describedby="token-card"]')?.removeAttribute("aria-describedby");
  span.setAttribute("aria-describedby", "token-card");
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const above = box.top - card.offsetHeight - 8;
  card.style.left = `${Math.max(8, Math.min(box.left, innerWidth - card.offsetWidth - 8))}px`;
  card.style.top = `${above > 60 ? above : box.bottom + 8}px`;
}

function choice(other, token) {
  const chance = Math.exp(other.logprob);
  const bar = element("i");
  bar.style.width = `${(chance * 100).toFixed(1)}%`;
  const taken = other.text === token.text && other.logprob === token.logprob;
  return element("li", { class: taken ? "taken" : null }, bar, element("span", { text: visible(other.text) }), element("span", { text: percent(chance) }));
}

export function hideCard() {
  byId("token-card").hidden = true;
}
