/** The settings beside the chat: kept in this browser, and as fields of a request. */
import { byId } from "./dom.js";

const KEPT = "sarathi-settings";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

export class Settings {
  /** @param {() => void} changed called when what is shown changes */
  constructor(changed) {
    this.form = /** @type {HTMLFormElement} */ (byId("sampling"));
    this.restore();
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", (event) => {
      this.keep();
      if (/** @type {HTMLInputElement} */ (event.target).type === "checkbox") changed();
    });
    if (matchMedia("(max-width: 860px)").matches) byId("settings-fold").removeAttribute("open");
  }

  get showsProbabilities() {
    return this.field("colour").checked;
  }

  get showsMarkdown() {
    return this.field("markdown").checked;
  }

  get system() {
    return this.field("system").value.trim();
  }

  /** What was set, and nothing else: the server has the defaults. @returns {Record<string, number>} */
  fields() {
    const set = NUMBERS.filter((name) => this.field(name).value !== "" && this.field(name).checkValidity());
    return Object.fromEntries(set.map((name) => [name, Number(this.field(name).value)]));
  }

  /** Whether all that is set can be sent; says what is wrong where it can't. */
  areValid() {
    return this.form.reportValidity();
  }

  field(name) {
    return /** @type {HTMLInputElement} */ (this.form.elements.namedItem(name));
  }

  keep() {
    const texts = ["system", ...NUMBERS].map((name) => [name, this.field(name).value]);
    const checks = ["colour", "markdown"].map((name) => [name, this.field(name).checked]);
    localStorage.setItem(KEPT, JSON.stringify(Object.fromEntries([...texts, ...checks])));
  }

  restore() {
    const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    for (const [name, value] of Object.entries(kept)) {
      const field = this.field(name);
      if (field) typeof value === "boolean" ? (field.checked = value) : (field.value = value);
    }
  }
}
