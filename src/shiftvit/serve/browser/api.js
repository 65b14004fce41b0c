// Runs the model in this browser. Pictures do not leave it.
//
// In a demo, this file replaces the page's own `api.js`, which asks a server. It has the same functions.

const ROOT = new URL("..", import.meta.url);
const MOST_PIXELS = 36_000_000;
const LONGEST_SIDE = 32_768; // as in the package: an elongated picture takes much memory in the graph
const STRIP = 512; // rows that are read at a time: a canvas of more than 16,777,216 pixels stays empty in Safari on iOS
// From no support to the most, as in the figures of `shiftvit explain`.
const COLOURS = [[20, 12, 56], [98, 21, 108], [176, 45, 92], [232, 93, 50], [250, 165, 40], [250, 235, 150]];
const SIDE = 224; // pixels of a heat map's longer side
// The smallest module that uses SIMD: (func (result v128) i32.const 0 i8x16.splat)
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11];

/** How many pictures the page sends at a time; the model has one thread. */
export const AT_ONCE = 1;

/** The reason why there is no answer. */
export class Failure extends Error {
  status = 0;
}

let ort = null;
let session = null;

/** There are no keys here. */
export const onKeyNeeded = () => {};

/** Returns the model: [{name, labels, input_shape, precision, runtime, explain, ...}]. */
export async function listModels() {
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(SIMD))) {
    throw new Failure("The model needs WebAssembly with SIMD, which this browser lacks. Use a newer browser.");
  }
  const about = await parse("model/model.json");
  const [graph, program, head] = await Promise.all(
    ["model/model.onnx", "runtime/ort-wasm-simd-threaded.wasm", "model/head.bin"].map((path) => load(path, "arrayBuffer")),
  );
  if (head.byteLength !== 4 * about.features * about.labels.length) throw damaged("model/head.bin");
  about.head = new Float32Array(head); // (K, C)
  try {
    // Imported here, so that the page can report a missing or damaged file. Every host sends a .js file as JavaScript.
    ort ??= await import("../runtime/ort.wasm.min.js");
    ort.env.wasm.wasmPaths = { mjs: new URL("runtime/ort-wasm-simd-threaded.js", ROOT).href };
    ort.env.wasm.wasmBinary = program;
    ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
    session ??= await ort.InferenceSession.create(new Uint8Array(graph), { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Failure(`The model cannot be loaded (${String(error.message ?? error).slice(0, 200)}). Reload the page.`);
  }
  return [about];
}

/** Returns the most probable classes of an encoded picture: [{label, score}]. */
export async function classify(model, picture, signal) {
  const { scores } = await answer(model, picture, ["probabilities"], signal);
  // Between equal scores the first class wins, as in the package.
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a] || a - b);
  return order.slice(0, 5).map((index) => ({ label: model.labels[index], score: scores[index] }));
}

/** Returns the heat map of a class: {label, heatmap, region}; `heatmap` is an address, `region` fractions of the picture. */
export async function explain(model, picture, label, signal) {
  const { maps, width, height } = await answer(model, picture, ["probabilities", "map"], signal);
  const heat = activation(maps, model.head, model.labels.indexOf(label), model.labels.length);
  const { region, ratio } = seen(model.preprocess, height, width);
  return { label, heatmap: draw(heat, ratio), region };
}

/** Returns the model card in Markdown. */
export const readCard = () => load("model/card.md", "text");

/** Returns the addresses of sample pictures. */
export const listSamples = async () => (await parse("samples/list.json")).map((path) => new URL(path, ROOT).href);

/** Returns the picture at an address of `listSamples`. */
export const readSample = (address) => load(address, "blob");

/** There is no server to ask from a terminal. */
export const command = () => "";

/** Returns a file as `kind`: "text", "blob" or "arrayBuffer". */
async function load(path, kind) {
  let answer;
  try {
    answer = await fetch(new URL(path, ROOT));
    if (answer.ok) return await answer[kind]();
  } catch {
    throw new Failure(`${path} cannot be loaded. Is there a connection to ${ROOT.host}?`);
  }
  throw new Failure(`${path} is missing (status ${answer.status}).`);
}

async function parse(path) {
  const text = await load(path, "text");
  try {
    return JSON.parse(text);
  } catch {
    throw damaged(path);
  }
}

const damaged = (path) => new Failure(`${path} is damaged. Upload the files of the demo again.`);

/** Runs the model on a picture. */
async function answer(model, picture, outputs, signal) {
  const { pixels, width, height } = await decode(model, picture);
  signal?.throwIfAborted();
  const images = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const found = await session.run({ images }, outputs);
  const scores = found.probabilities.data;
  if (!scores.every(Number.isFinite)) throw new Failure("The model returned NaN or infinity for this picture.");
  return { scores, maps: found.map, width, height };
}

/** Returns a picture's pixels, upright and on white: uint8 (height, width, 3). */
async function decode(model, picture) {
  const colorSpaceConversion = model.preprocess.srgb ? "default" : "none"; // the canvas is in sRGB
  let bitmap;
  try {
    bitmap = await createImageBitmap(picture, { imageOrientation: "from-image", colorSpaceConversion });
  } catch {
    throw new Failure("This browser cannot read the file. It reads JPEG, PNG, WebP, GIF, BMP and AVIF.");
  }
  const { width, height } = bitmap;
  try {
    if (width * height > MOST_PIXELS || Math.max(width, height) > LONGEST_SIDE) {
      throw new Failure(`The picture has ${width} × ${height} pixels, which is too many; choose a smaller one.`);
    }
    return { pixels: read(bitmap), width, height };
  } finally {
    bitmap.close();
  }
}

/** Returns the pixels of a bitmap on white. */
function read(bitmap) {
  const { width, height } = bitmap;
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = Math.min(STRIP, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  const pixels = new Uint8Array(width * height * 3);
  let to = 0;
  for (let top = 0; top < height; top += STRIP) {
    context.fillRect(0, 0, width, STRIP);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, Math.min(STRIP, height - top));
    for (let from = 0; from < data.length; from += 4) {
      pixels[to++] = data[from];
      pixels[to++] = data[from + 1];
      pixels[to++] = data[from + 2];
    }
  }
  return pixels;
}

/** Returns the class activation map (Zhou et al., CVPR 2016, equation 2), rows of numbers from 0 to 1. */
function activation(maps, head, index, classes) {
  const [, rows, columns, channels] = maps.dims;
  const heat = [];
  let most = 0;
  for (let row = 0, at = 0; row < rows; row++) {
    heat.push([]);
    for (let column = 0; column < columns; column++) {
      let sum = 0;
      for (let channel = 0; channel < channels; channel++) sum += maps.data[at++] * head[channel * classes + index];
      heat[row].push(Math.max(sum, 0));
      most = Math.max(most, sum);
    }
  }
  return heat.map((line) => line.map((value) => (most > 0 ? value / most : 0)));
}

/** Returns the part of a picture that the model sees, as fractions, and its width over its height. */
function seen(preprocess, height, width) {
  const [rows, columns] = pair(preprocess.crop) ?? resized(preprocess, height, width);
  const [newHeight, newWidth] = resized(preprocess, height, width);
  const centred = preprocess.crop_position === "center";
  const top = centred ? Math.floor((newHeight - rows) / 2) : 0;
  const left = centred ? Math.floor((newWidth - columns) / 2) : 0;
  return { region: [left / newWidth, top / newHeight, columns / newWidth, rows / newHeight], ratio: columns / rows };
}

/** Returns [height, width] after the resizing, as `Preprocess.resized_shape` does. */
function resized({ resize, crop }, height, width) {
  if (resize === null) return [height, width];
  if (Array.isArray(resize)) return resize;
  const shorter = Math.min(height, width);
  const size = [height, width].map((side) => Math.floor((side * resize) / shorter));
  const [rows, columns] = pair(crop) ?? [1, 1];
  if (resize < Math.min(rows, columns)) return size;
  if (size[0] < rows) return [rows, Math.floor((rows * width) / height)];
  if (size[1] < columns) return [Math.floor((columns * height) / width), columns];
  return size;
}

const pair = (size) => (Array.isArray(size) || size === null ? size : [size, size]);

/** Draws a heat map, transparent where nothing supports the class; returns its address. */
function draw(heat, ratio) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(SIDE * Math.min(1, ratio));
  canvas.height = Math.round(SIDE / Math.max(1, ratio));
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let y = 0, at = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const level = between(heat, ((y + 0.5) * heat.length) / canvas.height - 0.5, ((x + 0.5) * heat[0].length) / canvas.width - 0.5);
      const step = level * (COLOURS.length - 1);
      const low = COLOURS[Math.floor(step)];
      const high = COLOURS[Math.ceil(step)];
      for (let channel = 0; channel < 3; channel++) {
        image.data[at++] = low[channel] + (high[channel] - low[channel]) * (step % 1);
      }
      image.data[at++] = 255 * level;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL("image/png");
}

/** Returns the bilinear interpolation of a grid at a place; beyond the grid, the value at its edge. */
function between(grid, y, x) {
  const place = (value, length) => Math.min(Math.max(value, 0), length - 1);
  const [row, column] = [place(y, grid.length), place(x, grid[0].length)];
  const [top, left] = [Math.floor(row), Math.floor(column)];
  const [bottom, right] = [Math.min(top + 1, grid.length - 1), Math.min(left + 1, grid[0].length - 1)];
  const upper = grid[top][left] + (grid[top][right] - grid[top][left]) * (column - left);
  const lower = grid[bottom][left] + (grid[bottom][right] - grid[bottom][left]) * (column - left);
  return upper + (lower - upper) * (row - top);
}
