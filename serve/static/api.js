/** Requests to the server this page came from: relative addresses, the key where one is needed, errors as the server words them. */
import { byId } from "./dom.js";

const KEY = "sarathi-api-key";

/** What the server answered instead: `message` is its own text. */
export class ApiError extends Error {
  /** @param {string} message @param {number} status @param {string | null} code */
  constructor(message, status, code = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }
}

/**
 * Fetches, asks for a key after a 401 and tries again with it.
 * @param {string} path without a leading slash, so that it also holds behind a proxy's prefix
 * @param {RequestInit} [options]
 * @returns {Promise<Response>} only ever a good one
 * @throws {ApiError | DOMException}
 */
export async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const response = await reach(path, { ...options, headers });
    if (response.ok) return response;
    const error = await errorOf(response);
    if (error.status !== 401 || !(await askForKey(error.message, key))) throw error;
  }
}

/** @param {string} path @param {object} body @param {AbortSignal} signal */
export function post(path, body, signal) {
  return call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server can't be reached. Is it still running?", 0);
  }
}

async function errorOf(response) {
  const text = await response.text();
  try {
    const { message, code } = JSON.parse(text).error;
    return new ApiError(message, response.status, code);
  } catch {
    return new ApiError(text.slice(0, 300) || `The server answered ${response.status}.`, response.status);
  }
}

/** @type {Promise<boolean> | null} one dialog, whoever asks */
let asking = null;

/** @param {string} message @param {string | null} tried the key that the server refused */
function askForKey(message, tried) {
  if (sessionStorage.getItem(KEY) !== tried) return Promise.resolve(true); // somebody else has asked meanwhile
  asking ??= new Promise((resolve) => {
    const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
    const field = /** @type {HTMLInputElement} */ (byId("key"));
    byId("key-message").textContent = message;
    field.value = "";
    dialog.returnValue = "";
    byId("key-cancel").onclick = () => dialog.close("");
    dialog.onclose = () => {
      const used = dialog.returnValue === "use" && field.value.trim() !== "";
      if (used) sessionStorage.setItem(KEY, field.value.trim());
      field.value = "";
      asking = null;
      resolve(used);
    };
    dialog.showModal();
  });
  return asking;
}

/** @type {Promise<{id: string, max_model_len?: number}> | null} */
let model = null;

/** The model that the server offers first. */
export function getModel() {
  model ??= call("v1/models")
    .then((response) => response.json())
    .then(({ data }) => data[0])
    .catch((error) => {
      model = null;
      throw error;
    });
  return model;
}
