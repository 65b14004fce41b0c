// Takes pictures that the user drops, pastes or chooses. camera.js takes those from the camera.

import { count } from "./dom.js";

const MOST = 100;
const NO_PICTURE = "There is no picture on the clipboard. Copy the picture itself, not a link to it.";

/** Calls `take` with pictures, or `complain` with a sentence if there are none. */
export function watchIntake({ stage, input, paste, take, complain }) {
  const accept = (files, nothing) => {
    if (files.length === 0) return complain(nothing);
    take([...files].slice(0, MOST));
    if (files.length > MOST) {
      const all = count(files.length, "file");
      complain(`The page took the first ${MOST} of ${all}. For more, use the command: shiftvit predict FOLDER`);
    }
  };
  watchDrops(stage, accept);
  input.addEventListener("change", () => {
    if (input.files.length > 0) accept(input.files, "");
    input.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input:not([type=file]), textarea")) return;
    event.preventDefault();
    accept(event.clipboardData.files, NO_PICTURE);
  });
  paste.hidden = !navigator.clipboard?.read;
  paste.addEventListener("click", async () => {
    try {
      accept(await readClipboard(), NO_PICTURE);
    } catch {
      complain("The browser does not let this button read the clipboard. Press Ctrl+V or ⌘V instead.");
    }
  });
}

function watchDrops(stage, accept) {
  // A drag enters and leaves every element that it passes, so this counts the elements entered and not left.
  let depth = 0;
  const carriesFiles = (event) => event.dataTransfer.types.includes("Files");
  const over = (change) => stage.classList.toggle("over", (depth = change) > 0);
  addEventListener("dragenter", (event) => carriesFiles(event) && over(depth + 1));
  addEventListener("dragleave", (event) => carriesFiles(event) && over(Math.max(0, depth - 1)));
  addEventListener("dragover", (event) => {
    event.preventDefault(); // else the browser would leave the page for the picture
    event.dataTransfer.dropEffect = carriesFiles(event) ? "copy" : "none";
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(0);
    accept(event.dataTransfer.files, "That is not a picture file. Drop the picture itself, not a link to it.");
  });
}

async function readClipboard() {
  const items = await navigator.clipboard.read();
  const pictures = items.flatMap((item) => {
    const type = item.types.find((kind) => kind.startsWith("image/"));
    return type ? [item.getType(type)] : [];
  });
  return (await Promise.all(pictures)).map((blob) => new File([blob], "pasted picture", { type: blob.type }));
}
