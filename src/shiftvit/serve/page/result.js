// The card of a picture and its answer in the list of results.

import * as api from "./api.js";
import { foreign, make, megabytes, percent, say, whole } from "./dom.js";
import { Picture } from "./heatmap.js";
import { limit } from "./queue.js";

const inTurn = limit(api.AT_ONCE);
let made = 0;

/** A card. `element` is its place in the list. */
export class Result {
  constructor(file, model, withModel, onremove) {
    this.file = file;
    this.model = model;
    this.gone = new AbortController();
    this.picture = new Picture(file.name, file);
    this.id = `result-${++made}`;
    this.answer = make("div", { class: "answer", "aria-busy": "true" });
    const remove = make("button", { type: "button", class: "remove", "aria-label": `Remove ${file.name}` }, "×");
    remove.addEventListener("click", () => (this.close(), onremove(this)));
    const name = make("p", { class: "file", id: this.id }, foreign(file.name));
    const by = withModel ? make("p", { class: "by" }, "by ", foreign(model.name)) : null;
    this.time = make("p", { class: "time" });
    const head = make("header", {}, name, by, this.time, remove);
    this.article = make("article", { "aria-labelledby": this.id, tabindex: "-1" }, head, this.answer, this.picture.element);
    this.element = make("li", { class: "result" }, this.article);
  }

  /** Shows the answer, or the reason why there is none. */
  async run() {
    this.answer.setAttribute("aria-busy", "true");
    if (this.answer.contains(document.activeElement)) this.article.focus(); // its button goes away
    this.answer.replaceChildren(make("p", { class: "waiting" }, pulse(), "Looking"));
    try {
      this.shown ??= await this.picture.show();
      const { classes, milliseconds } = await inTurn(() => this.ask(), this.gone.signal);
      this.gone.signal.throwIfAborted();
      this.tell(classes, milliseconds);
    } catch (error) {
      if (this.gone.signal.aborted) return;
      this.complain(error instanceof api.Failure ? error : unexpected(error));
    } finally {
      this.answer.removeAttribute("aria-busy");
    }
  }

  async ask() {
    const picture = await this.read();
    const began = performance.now();
    const classes = await api.classify(this.model, picture, this.gone.signal);
    return { classes, milliseconds: performance.now() - began };
  }

  /** Returns the file's bytes. It may be a folder, or have changed since it was dropped. */
  async read() {
    const most = this.model.max_bytes;
    if (this.file.size > most) {
      throw new api.Failure(
        `The file is larger than the ${megabytes(most)} that the server takes. Choose a smaller picture.`,
        413,
      );
    }
    let bytes;
    try {
      bytes = await this.file.arrayBuffer();
    } catch {
      throw new api.Failure("The file cannot be read. It may be a folder, or it has changed since you chose it; choose it again.", 415);
    }
    if (bytes.byteLength === 0) throw new api.Failure("The file is empty.", 415);
    return new Blob([bytes]);
  }

  tell(classes, milliseconds) {
    const [best] = classes;
    this.bars = classes.map(({ label, score }) => this.bar(label, score));
    const heading = make("h3", {}, foreign(best.label), " ", make("span", {}, percent(best.score)));
    this.time.textContent = `${whole(Math.max(1, Math.round(milliseconds)))} ms`;
    const foot = make("footer", {}, ...(this.explains ? this.heatControls(best.label) : []));
    this.legend = make("p", { class: "legend" }, this.shown ? "" : "This browser cannot show pictures of this format.");
    const bars = make("ol", { class: "bars" }, ...this.bars.map(({ row }) => row));
    this.answer.replaceChildren(heading, bars, this.legend, foot);
    if (this.shown) this.picture.element.append(this.enlarge());
    say(`${this.file.name}: ${best.label}, ${percent(best.score)}`);
  }

  bar(label, score) {
    const fill = make("span", { class: "fill" });
    fill.style.setProperty("--share", score);
    const parts = [
      make("span", { class: "label" }, foreign(label)),
      make("span", { class: "track" }, fill),
      make("span", { class: "share" }, percent(score)),
    ];
    if (!this.explains) return { label, row: make("li", {}, make("div", { class: "bar" }, ...parts)) };
    const button = make("button", { type: "button", class: "bar", "aria-pressed": "false" }, ...parts);
    button.title = `Show what supports ${label}`;
    button.addEventListener("click", () => this.toggle(label));
    return { label, button, row: make("li", {}, button) };
  }

  enlarge() {
    const button = make("button", { type: "button", class: "enlarge", "aria-pressed": "false" }, arrows());
    button.setAttribute("aria-label", `Enlarge ${this.file.name}`);
    button.addEventListener("click", () => {
      const large = this.element.classList.toggle("large");
      button.setAttribute("aria-pressed", large);
      this.element.scrollIntoView({ block: "nearest" });
    });
    return button;
  }

  get explains() {
    return this.model.explain === true && this.shown;
  }

  heatControls(best) {
    this.open = make("button", { type: "button", class: "quiet open", "aria-pressed": "false" }, "Heat map");
    this.open.addEventListener("click", () => this.toggle(this.heatOf ?? best));
    const slider = make("input", { type: "range", min: "0", max: "100", value: "60" });
    slider.addEventListener("input", () => (this.picture.strength = slider.value / 100));
    this.picture.strength = 0.6;
    this.strength = make("label", { class: "strength", hidden: true }, "Strength ", slider);
    return [this.open, this.strength];
  }

  /** Shows the heat map of a class, or hides it if it is shown. */
  async toggle(label) {
    this.looking?.abort();
    if (this.heatOf === label) return this.showHeat(null);
    this.showHeat(label);
    this.looking = new AbortController();
    const { signal } = this.looking;
    this.picture.frame.classList.add("busy");
    try {
      // The user waits for it, so it goes before pictures that are still in the queue.
      const found = await inTurn(async () => api.explain(this.model, await this.read(), label, signal), signal, true);
      await this.picture.lay(found, signal);
      const rest = this.picture.whole ? "" : " The model does not see the darkened parts.";
      this.legend.replaceChildren("The coloured parts support ", foreign(label), `.${rest}`);
      say(`Heat map for ${label} shown over ${this.file.name}`);
    } catch (error) {
      if (signal.aborted || this.gone.signal.aborted) return;
      this.showHeat(null);
      const { message } = error instanceof api.Failure ? error : unexpected(error);
      this.legend.replaceChildren(make("span", { class: "wrong", role: "alert" }, message));
    } finally {
      if (!signal.aborted) this.picture.frame.classList.remove("busy");
    }
  }

  showHeat(label) {
    this.heatOf = label;
    const shown = label !== null;
    this.legend.replaceChildren();
    this.open.setAttribute("aria-pressed", shown);
    this.strength.hidden = !shown;
    for (const bar of this.bars) bar.button.setAttribute("aria-pressed", bar.label === label);
    if (!shown) {
      this.picture.lift();
      this.picture.frame.classList.remove("busy");
    }
  }

  complain(failure) {
    const again = make("button", { type: "button", class: "quiet", onclick: () => this.run() }, "Try again");
    const hopeless = [413, 415, 422].includes(failure.status);
    const text = make("p", { class: "wrong", role: "alert" }, failure.message);
    this.answer.replaceChildren(make("h3", { class: "failed" }, "No answer"), text, hopeless ? "" : again);
    say(`${this.file.name}: ${failure.message}`);
  }

  close() {
    this.gone.abort();
    this.looking?.abort();
    this.picture.close();
    this.element.remove();
  }
}

function unexpected(error) {
  console.error(error);
  return new api.Failure("This page failed on the picture. The browser's console has the details.");
}

/** Returns the mark, whose parts move while the page waits. */
const pulse = () => document.querySelector(".mark").cloneNode(true);

const arrows = () => document.querySelector("#arrows").content.cloneNode(true);
