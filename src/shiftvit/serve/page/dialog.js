// Dialogs. The browser's own keep the focus inside, close on Escape and return the focus.

import { make } from "./dom.js";

/** Returns an open dialog, which is removed when it closes. `name` is its heading. */
export function openDialog(name, kind, ...children) {
  const close = make("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close");
  const head = make("header", {}, make("h2", {}, name), close);
  const dialog = make("dialog", { class: kind, "aria-label": name }, head, ...children);
  // A press and a click beside it close it. A press inside that ends beside it selects text.
  let beside = false;
  dialog.addEventListener("pointerdown", (event) => (beside = event.target === dialog));
  dialog.addEventListener("click", (event) => beside && event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Asks for the API key, a text that `isKey` accepts; promises it, or null. */
export function askForKey(refused, isKey) {
  return new Promise((resolve) => {
    let key = null;
    const field = make("input", { type: "password", id: "key", autocomplete: "off", spellcheck: "false", required: true });
    const wrong = make("p", { class: "wrong", role: "alert", hidden: !refused }, "The server did not accept that key.");
    const form = make(
      "form",
      { novalidate: true },
      make("p", {}, "This server needs an API key. The key stays in this tab until you close it."),
      make("label", { for: "key" }, "API key"),
      field,
      wrong,
      make("button", { class: "button main" }, "Use this key"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (isKey(text)) {
        key = text;
        return dialog.close();
      }
      wrong.textContent =
        text === ""
          ? "Enter the key first."
          : "A key has only ASCII letters, digits and punctuation. This text has another character; copy the key again.";
      wrong.hidden = false;
      field.select();
    });
    const dialog = openDialog("API key", "narrow", form);
    dialog.addEventListener("close", () => resolve(key));
    field.focus();
  });
}
