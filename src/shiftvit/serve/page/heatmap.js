// A picture and the heat map over it.

import { make } from "./dom.js";

/** A picture in its frame, with a heat map that can be laid over it. */
export class Picture {
  constructor(name, blob) {
    this.address = URL.createObjectURL(blob);
    this.photo = make("img", { class: "photo", alt: name, decoding: "async", draggable: "false" });
    this.heat = make("img", { class: "heat", alt: "", draggable: "false", hidden: true });
    this.frame = make("div", { class: "frame" }, this.photo, this.heat);
    this.element = make("div", { class: "mat" }, this.frame);
  }

  /** Shows the picture upright. Returns whether the browser can. */
  async show() {
    this.photo.src = this.address;
    try {
      await this.photo.decode();
    } catch {
      this.frame.replaceChildren(make("p", { class: "blank" }, "No preview"));
      return false;
    }
    const { naturalWidth: width, naturalHeight: height } = this.photo;
    this.frame.style.setProperty("--ratio", width / height);
    this.frame.classList.toggle("tiny", Math.max(width, height) <= 128);
    return true;
  }

  /** Lays a heat map over the part of the picture that the model sees, unless the signal is aborted meanwhile. */
  async lay({ heatmap, region: [left, top, width, height] }, signal) {
    const part = { left, top, width, height };
    signal.throwIfAborted();
    this.heat.src = heatmap;
    await this.heat.decode();
    signal.throwIfAborted();
    for (const [side, share] of Object.entries(part)) this.heat.style.setProperty(side, `${100 * share}%`);
    this.heat.hidden = false;
    this.whole = width * height > 0.99;
  }

  lift() {
    this.heat.hidden = true;
  }

  set strength(share) {
    this.heat.style.setProperty("opacity", share);
  }

  close() {
    URL.revokeObjectURL(this.address);
  }
}
