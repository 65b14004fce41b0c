// Takes a picture from the camera.

import { make } from "./dom.js";
import { openDialog } from "./dialog.js";

const REASONS = {
  NotAllowedError: "The browser does not allow this page to use the camera. Allow it in the address bar, then try again.",
  NotFoundError: "There is no camera on this device.",
  NotReadableError: "Another program is using the camera.",
};

/** Promises a picture as a File, or null if the user closed the dialog. Throws an Error with a sentence. */
export async function takePicture() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error(
      isSecureContext
        ? "This browser cannot use a camera."
        : "The camera works only on pages at https:// or on this machine (localhost).",
    );
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new Error(REASONS[error.name] ?? "The camera did not start.");
  }
  try {
    return await shoot(stream);
  } finally {
    for (const track of stream.getTracks()) track.stop();
  }
}

function shoot(stream) {
  return new Promise((resolve, reject) => {
    const video = make("video", { autoplay: true, playsinline: true, "aria-label": "What the camera sees" });
    video.muted = true;
    video.srcObject = stream;
    const release = make("button", { type: "button", class: "button main", disabled: true }, "Take the picture");
    const dialog = openDialog("Camera", "camera", video, release);
    video.addEventListener("playing", () => {
      release.disabled = false;
      release.focus();
    });
    for (const track of stream.getTracks()) track.addEventListener("ended", () => dialog.close()); // unplugged
    release.addEventListener("click", async () => {
      await photograph(video).then(resolve, reject);
      dialog.close();
    });
    dialog.addEventListener("close", () => resolve(null));
  });
}

async function photograph(video) {
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  if (blob === null) throw new Error("The camera returned no picture. Try again.");
  return new File([blob], `camera ${new Date().toLocaleTimeString("en-GB")}`, { type: blob.type });
}
