// The picture behind the headline shows the shift: most channels stay, and four groups, each in its colour, move by one pixel in
// different directions. style.css moves them.

const WIDE = 56;
const HIGH = 40;
const GROUPS = ["left", "right", "up", "down", "stay"];

/** Draws the five groups into an element, in the colours of style.css. */
export function drawField(place) {
  const draw = () => place.replaceChildren(...GROUPS.map(drawGroup));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}

function drawGroup(name) {
  const canvas = document.createElement("canvas");
  canvas.className = name;
  canvas.width = WIDE;
  canvas.height = HIGH;
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
  for (let y = 0; y < HIGH; y++) {
    for (let x = 0; x < WIDE; x++) {
      context.globalAlpha = level(x, y);
      context.fillRect(x, y, 1, 1);
    }
  }
  return canvas;
}

/** Returns the opacity of a pixel, 0 to 1 in steps: rings that fade outward, and faster behind the headline. */
function level(x, y) {
  const [right, down] = [x - WIDE / 2 + 0.5, y - HIGH / 2 + 0.5];
  const radius = Math.hypot(right, down);
  const ring = 0.5 + 0.5 * Math.cos(radius * 0.9);
  const free = Math.min(1, Math.max(0, (right + 13) / 6));
  return Math.round(5 * free * ring ** 1.5 * Math.exp(-((radius / 19) ** 2))) / 5;
}
