// Asks the server that this page came from.
//
// The page uses only these functions. A demo whose model runs in the browser replaces this file by one with the same functions.
// Each throws an AbortError, or a `Failure` whose message the page shows.

import { count } from "./dom.js";

const ROOT = new URL("..", import.meta.url);
const KEY = "shiftvit-api-key";
const PATIENCE = 90_000; // ms
const ATTEMPTS = 3;
const QUIET = 1000; // ms

/** How many pictures the page sends at a time. */
export const AT_ONCE = 4;

/** The reason why there is no answer. `status` is 0 if the server did not answer. */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let askForKey = null;
let asking = null;
let declined = -Infinity; // when the user gave no key
let key = stored();

/** Sets the function that asks the user for an API key. It gets whether a key was refused, and `isKey`; it promises a key or null. */
export const onKeyNeeded = (ask) => void (askForKey = ask);

/** Returns the models, the default one first: [{name, labels, input_shape, precision, runtime, explain, max_bytes}]. */
export const listModels = () => request("v1/models", "json");

/** Returns the most probable classes of an encoded picture: [{label, score}]. */
export const classify = (model, picture, signal) => request(`${at(model)}/classify?top_k=5`, "json", { picture, signal });

/** Returns the heat map of a class: {label, heatmap, region}; `heatmap` is an address, `region` fractions of the picture. */
export async function explain(model, picture, label, signal) {
  const path = `${at(model)}/explain?top_k=5&label=${encodeURIComponent(label)}`;
  const found = await request(path, "json", { picture, signal });
  return { ...found, heatmap: `data:image/png;base64,${found.heatmap}` };
}

/** Returns the model card in Markdown. */
export const readCard = (model) => request(`${at(model)}/card`, "text");

/** Returns the addresses of sample pictures. */
export async function listSamples() {
  try {
    const paths = await request("v1/samples", "json");
    return paths.map((path) => new URL(path.replace(/^\//, ""), ROOT).href);
  } catch (error) {
    if (error.status === 404) return [];
    throw error;
  }
}

/** Returns the picture at an address of `listSamples`. */
export const readSample = (address) => request(address, "blob");

/** Returns the command that classifies a picture in a terminal. */
export const command = (model) => `curl --data-binary @cat.jpg ${new URL(`${at(model)}/classify`, ROOT).href}`;

const at = (model) => `v1/models/${encodeURIComponent(model.name)}`;

/**
 * Returns the body of the server's answer as `kind`: "json", "text" or "blob".
 * Tries again if the server is full, and asks the user for a key if it needs one.
 */
async function request(path, kind, { picture = null, signal = null } = {}) {
  for (let attempt = 1; ; attempt++) {
    const used = key;
    const { answer, body } = await send(path, kind, picture, signal);
    if (answer.ok) return body;
    if (answer.status === 401 && (await renewKey(used))) {
      attempt = 0;
    } else if (answer.status === 503 && attempt < ATTEMPTS) {
      await pause(Math.min(Number(answer.headers.get("Retry-After")) || 1, 5) * 1000, signal);
    } else {
      throw new Failure(body, answer.status);
    }
  }
}

/** Returns an answer and its body, or the reason for its error. A connection can also break while the body arrives. */
async function send(path, kind, picture, signal) {
  signal?.throwIfAborted();
  const stop = new AbortController(); // browsers before 2024 have no AbortSignal.any
  const abort = () => stop.abort();
  const timer = setTimeout(abort, PATIENCE);
  signal?.addEventListener("abort", abort);
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  if (picture !== null) headers["Content-Type"] = "application/octet-stream";
  try {
    const answer = await fetch(new URL(path, ROOT), {
      method: picture === null ? "GET" : "POST",
      body: picture,
      headers,
      signal: stop.signal,
    });
    return { answer, body: await (answer.ok ? answer[kind]() : reason(answer)) };
  } catch (error) {
    signal?.throwIfAborted();
    if (stop.signal.aborted) throw new Failure(`No answer after ${PATIENCE / 1000} seconds.`);
    if (error instanceof SyntaxError) {
      throw new Failure(`The answer from ${ROOT.host} is not JSON. Did a proxy or a login page send it? Reload this page.`);
    }
    throw new Failure(
      navigator.onLine || ["localhost", "127.0.0.1", "[::1]"].includes(ROOT.hostname)
        ? `The server at ${ROOT.host} does not answer. Is it still running?`
        : "There is no connection to the network.",
    );
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
}

/** Asks the user for a key unless another request did; returns whether there is a key other than the refused one. */
async function renewKey(refused) {
  if (key !== refused) return true; // another request has asked already
  const asksAgain = performance.now() - declined > QUIET; // else another picture of the same batch
  const given = askForKey !== null && asksAgain ? await (asking ??= ask(refused)) : null;
  if (given === null) {
    declined = performance.now();
    return false;
  }
  key = given;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // The browser stores nothing for this page, so the key lasts until the page is reloaded.
  }
  return true;
}

const ask = (refused) => askForKey(refused !== null, isKey).finally(() => (asking = null));

function stored() {
  try {
    const text = sessionStorage.getItem(KEY);
    return text !== null && isKey(text) ? text : null;
  } catch {
    return null;
  }
}

/** Returns whether a header may carry a text as a key: the browser sends no request with other characters. */
function isKey(text) {
  return /^[\x21-\x7e]+$/.test(text);
}

/** Returns the server's error as a sentence. */
async function reason(answer) {
  let text = `The server answered with status ${answer.status}.`;
  try {
    const { error } = await answer.json();
    if (typeof error === "string" && error !== "") text = error.replaceAll("the body", "the file");
  } catch {
    // Something between here and the server answered, in another form.
  }
  if (answer.status === 503) text += ` (tried ${count(ATTEMPTS, "time")})`;
  text = text[0].toUpperCase() + text.slice(1);
  return /[.!?)]$/.test(text) ? text : `${text}.`;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
