// Puts the parts of the page together.

import * as api from "./api.js";
import { takePicture } from "./camera.js";
import { askForKey, openDialog } from "./dialog.js";
import { count, foreign, make, say, whole } from "./dom.js";
import { drawField } from "./field.js";
import { watchIntake } from "./intake.js";
import { renderMarkdown } from "./markdown.js";
import { Result } from "./result.js";

const find = (selector) => document.querySelector(selector);
const results = new Set();
let models = [];
let model = null;
let starting = null;
const waiting = []; // pictures that came before the models were known

api.onKeyNeeded(askForKey);
drawField(find("#field"));
watchIntake({ stage: find("#stage"), input: find("#files"), paste: find("#paste"), take, complain });
find("#camera").addEventListener("click", once(shoot));
find("#card").addEventListener("click", once(showCard));
find("#clear").addEventListener("click", clear);
find("#models").addEventListener("change", (event) => use(models[event.target.selectedIndex]));
find("#trouble button").addEventListener("click", retry);
start();

/** Asks the server for its models, then classifies the pictures that came before. */
function start() {
  dismiss();
  find("#trouble").classList.remove("late"); // the page has started
  starting ??= introduce()
    .catch((error) => complain(error.message, true))
    .finally(() => (starting = null));
  return starting;
}

/** Starts again. If that fails too, the focus returns to the button, unless the user has moved on. */
async function retry() {
  await start();
  if (document.activeElement === find("#files")) find("#trouble button").focus(); // nothing happens if it is hidden
}

async function introduce() {
  models = await api.listModels();
  find("#models").replaceChildren(...models.map(({ name }) => make("option", {}, name)));
  find("#choice").hidden = models.length < 2;
  find("#name").hidden = models.length > 1;
  use(models[0]);
  take(waiting.splice(0));
  showSamples(await api.listSamples());
}

function use(chosen) {
  model = chosen;
  const [height, width] = model.input_shape;
  find("#name").replaceChildren(foreign(model.name));
  const size = width === null || height === null ? "any size" : `${width} × ${height} px`;
  const facts = [count(model.labels.length, "class", "classes"), size, model.precision, model.runtime];
  find("#facts").textContent = facts.join(" · ");
  find("#model").hidden = false;
  const known = model.labels.slice(0, 12).flatMap((label) => [", ", foreign(label)]).slice(1);
  const more = model.labels.length > 12 ? ` and ${whole(model.labels.length - 12)} more` : "";
  find("#classes").replaceChildren(make("b", {}, "The model knows "), ...known, `${more}. Every picture gets one of these labels.`);
  find("#curl code").textContent = api.command(model);
  find("#curl").hidden = find("#curl code").textContent === "";
}

/** Classifies pictures and adds a card for each. */
function take(files) {
  if (model === null) {
    waiting.push(...files);
    return start();
  }
  if (files.length === 0) return;
  dismiss();
  const fresh = files.map((file) => new Result(file, model, models.length > 1, forget));
  for (const result of fresh) results.add(result);
  find("#results ul").prepend(...fresh.map(({ element }) => element));
  recount();
  say(`${count(files.length, "picture")} added`);
  for (const result of fresh) result.run();
  find("#results").scrollIntoView({ block: "nearest" });
}

/** Returns a listener that ignores events while its task runs. A disabled button would lose the focus. */
function once(task) {
  let running = null;
  return () => (running ??= task().finally(() => (running = null)));
}

async function shoot() {
  try {
    const picture = await takePicture();
    if (picture !== null) take([picture]);
  } catch (error) {
    complain(error.message);
  }
}

function forget(result) {
  results.delete(result);
  recount();
  find("#results").focus({ preventScroll: true });
}

function clear() {
  for (const result of results) result.close();
  results.clear();
  recount();
  find("#files").focus();
}

function recount() {
  find("#count").textContent = count(results.size, "picture");
  find("#headline").textContent = results.size > 0 ? "Drop another." : "Drop a picture.";
  find("#results header").hidden = results.size === 0;
  document.body.classList.toggle("some", results.size > 0);
}

function showSamples(addresses) {
  const tiles = addresses.map((address) => {
    const folder = decodeURIComponent(address.split("/").at(-2));
    const button = make("button", { type: "button", title: folder }, make("img", { src: address, alt: `A picture of: ${folder}` }));
    button.addEventListener("click", async () => {
      try {
        take([new File([await api.readSample(address)], `sample: ${folder}`)]);
      } catch (error) {
        complain(error.message);
      }
    });
    return make("li", {}, button);
  });
  find("#samples ul").replaceChildren(...tiles);
  find("#samples").hidden = tiles.length === 0;
}

async function showCard() {
  const { name } = model;
  try {
    const text = make("div", { class: "card" }, renderMarkdown(await api.readCard(model)));
    openDialog(name, "wide", text);
  } catch (error) {
    complain(error.status === 404 ? `The model ${name} has no model card.` : error.message);
  }
}

/** Shows an error of the whole page until the user does something else. */
function complain(message, again = false) {
  find("#trouble p").textContent = message;
  find("#trouble button").hidden = !again;
  find("#trouble").hidden = false;
  find("#trouble").scrollIntoView({ block: "nearest" });
}

/** Hides the error of the whole page. */
function dismiss() {
  if (find("#trouble").contains(document.activeElement)) find("#files").focus(); // its button goes away
  find("#trouble").hidden = true;
}
