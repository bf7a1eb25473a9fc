// From an image file to the pixels that the network reads, by the steps of training: upright, over white, without color
// management, resized with antialiasing as Pillow does, cropped.
//
// The browser only decodes. Its own resizing filters otherwise, so ours works on the pixels in full size. It reads them
// in strips of rows, which needs little memory beside the browser's own copy of a large photograph.
"use strict";

// A reason why an image cannot be used: empty, not-an-image, heic, format (no browser reads it), cut-short, damaged, or
// too-large.
class ImageError extends Error {
  constructor(code) {
    super(code);
    this.code = code;
  }
}

const STRIP = 256; // rows

// ── decoding ────────────────────────────────────────────────────────────────────────────────────

// Opens a file (a Blob), an ImageBitmap, or pixels {width, height, data} in RGBA, row after row. Returns its size, a
// function that returns the RGBA values of some rows, and one that frees the memory.
async function openImage(source) {
  if (source.data) {
    const { width, height, data } = source;
    return { width, height, rows: (from, to) => data.subarray(4 * width * from, 4 * width * to), close() {} };
  }
  const bitmap = source instanceof Blob ? await decode(source) : source;
  const { width, height } = bitmap;
  const canvas = createCanvas(width, Math.min(height, STRIP));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new ImageError("too-large");
  const rows = (from, to) => {
    // A canvas multiplies colors by their opacity and rounds them to 8 bits; what it returns would be rounded twice.
    // So it blends them with white itself: rounded once, at most 1 of 255 from the exact value. Opaque ones stay exact.
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, to - from);
    context.drawImage(bitmap, 0, -from);
    try {
      return context.getImageData(0, 0, width, to - from).data;
    } catch {
      throw new ImageError("too-large"); // of memory, or of what the browser allows for a canvas
    }
  };
  return { width, height, rows, close: () => bitmap.close() };
}

function createCanvas(width, height) {
  if (typeof OffscreenCanvas !== "undefined") return new OffscreenCanvas(width, height);
  return Object.assign(document.createElement("canvas"), { width, height });
}

async function decode(file) {
  await checkFile(file);
  try {
    return await createImageBitmap(file, {
      colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image",
    });
  } catch {
    throw new ImageError("damaged");
  }
}

// Refuses what is no image, and files without an end, which browsers show in part.
async function checkFile(file) {
  const text = (from, to) => file.slice(from, to).arrayBuffer().then((b) => String.fromCharCode(...new Uint8Array(b)));
  if (!file.size) throw new ImageError("empty");
  const start = await text(0, 16), brand = start.slice(4, 8) === "ftyp" ? start.slice(8, 11) : "";
  if (["hei", "hev", "mif", "msf"].includes(brand)) throw new ImageError("heic");
  if (/^(II[*+]\0|MM\0[*+]|\0\0\0\x0cjP)/.test(start)) throw new ImageError("format");
  const end = { "\xff\xd8\xff": "\xff\xd9", "\x89PN": "IEND" }[start.slice(0, 3)];
  if (!end && !/^(GIF8|BM|RIFF....WEBP|\0\0\x01\0)/s.test(start) && brand.slice(0, 2) !== "av")
    throw new ImageError("not-an-image");
  // cameras append previews, so that the end may be anywhere near the end
  for (let to = file.size; end && !(await text(Math.max(0, to - 8192), to)).includes(end); to -= 8190)
    if (to < file.size - 57344 || to <= 8192) throw new ImageError("cut-short");
}

// ── resizing and cropping ───────────────────────────────────────────────────────────────────────

// Returns an image as the network sees it, channel after channel, 8 bits each. `steps` are those of the manifest of an
// exported file, by name.
function toPixels(image, steps) {
  const { size } = steps.crop, channels = steps.colors.mode === "L" ? 1 : 3;
  const [width, height] = resizedSize(image.width, image.height, steps.resize);
  const left = roundHalfToEven((width - size) / 2), top = roundHalfToEven((height - size) / 2);
  const across = filterWindows(image.width, width, left, size, steps.resize.filter);
  const down = filterWindows(image.height, height, top, size, steps.resize.filter);
  const first = down[0].start, last = Math.max(...down.map(({ start, weights }) => start + weights.length));
  down.forEach((window) => { window.start -= first; }); // other rows are not read

  const readRows = (length, change) => {
    const pixels = new Uint8ClampedArray((last - first) * length);
    for (let row = first; row < last; row += STRIP)
      pixels.set(change(toChannels(image.rows(row, Math.min(row + STRIP, last)), channels)), (row - first) * length);
    return pixels;
  };
  // Each of the two passes rounds to 8 bits, so their order matters, if only by a level. This is that of Pillow 13;
  // earlier versions always begin with the width, and so differ for images more than twice as high as wide.
  const heightFirst = image.height - height > 2 * Math.max(0, image.width - width), length = image.width * channels;
  if (heightFirst) {
    const low = resizeColumns(readRows(length, (pixels) => pixels), length, down);
    return toPlanes(resizeRows(low, length, channels, across), channels);
  }
  const narrow = readRows(size * channels, (pixels) => resizeRows(pixels, length, channels, across));
  return toPlanes(resizeColumns(narrow, size * channels, down), channels);
}

function resizedSize(width, height, { side, keep_aspect_ratio: keep }) {
  if (!keep) return [side, side];
  const long = Math.floor(side * Math.max(width, height) / Math.min(width, height));
  return width <= height ? [side, long] : [long, side];
}

// Python's round(), which decides on which side an odd margin is larger.
function roundHalfToEven(x) {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + floor % 2 : Math.round(x);
}

// RGBA to RGB, or to the gray of ITU-R 601 as Pillow rounds it.
function toChannels(rgba, channels) {
  const pixels = new Uint8Array(rgba.length / 4 * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const r = rgba[from], g = rgba[from + 1], b = rgba[from + 2];
    if (channels === 1) pixels[to++] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16;
    else { pixels[to++] = r; pixels[to++] = g; pixels[to++] = b; }
  }
  return pixels;
}

// `length` is that of a row, in values.
function resizeRows(pixels, length, channels, windows) {
  const resized = new Uint8ClampedArray(pixels.length / length * windows.length * channels); // clamps to 0…255
  for (let row = 0, at = 0; row < pixels.length; row += length)
    for (const { start, weights } of windows)
      for (let c = 0; c < channels; c++) {
        let sum = HALF;
        for (let k = 0, from = row + start * channels + c; k < weights.length; k++, from += channels)
          sum += pixels[from] * weights[k];
        resized[at++] = sum >> BITS;
      }
  return resized;
}

function resizeColumns(pixels, length, windows) {
  const resized = new Uint8ClampedArray(length * windows.length);
  let at = 0;
  for (const { start, weights } of windows)
    for (let i = 0; i < length; i++) {
      let sum = HALF;
      for (let k = 0, from = start * length + i; k < weights.length; k++, from += length)
        sum += pixels[from] * weights[k];
      resized[at++] = sum >> BITS;
    }
  return resized;
}

function toPlanes(pixels, channels) {
  const plane = pixels.length / channels;
  return pixels.map((_, i) => pixels[i % plane * channels + Math.floor(i / plane)]);
}

// Pillow's filters: the distance at which they end, and their weights. An enlarged image is interpolated; of a reduced
// one the filter is as much wider as the image becomes smaller, which is antialiasing.
const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    x = Math.abs(x);
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0;
  }],
};
const BITS = 22, HALF = 1 << (BITS - 1); // weights are integers: Pillow's fixed-point numbers

// Returns for `count` values of a resized row, from `from` on, which values of the row they are a weighted mean of.
function filterWindows(size, resized, from, count, filter) {
  const scale = size / resized;
  if (filter === "nearest") {
    const nearest = [];
    for (let i = 0, x = scale * 0.5; i < from + count; i++, x += scale) // added up as Pillow does
      nearest.push({ start: Math.floor(x), weights: [1 << BITS] });
    return nearest.slice(from);
  }
  const [reach, weigh] = FILTERS[filter], stretch = Math.max(scale, 1);
  return Array.from({ length: count }, (_, i) => {
    const center = (from + i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - reach * stretch + 0.5));
    const end = Math.min(size, Math.trunc(center + reach * stretch + 0.5));
    const weights = Array.from({ length: end - start }, (_, k) => weigh((k + start - center + 0.5) * (1 / stretch)));
    const sum = weights.reduce((a, b) => a + b);
    return { start, weights: Int32Array.from(weights, (w) => w / sum * 2 ** BITS + (w < 0 ? -0.5 : 0.5)) };
  });
}

// ── normalization ───────────────────────────────────────────────────────────────────────────────

// pixel · scale + shift. The shift is a number for each channel, or for each pixel where a mean image is subtracted.
function normalize(pixels, scale, shift) {
  const plane = pixels.length / scale.length, perPixel = shift.length === pixels.length;
  return Float32Array.from(pixels, (value, i) => {
    const c = Math.floor(i / plane);
    return Math.fround(value * scale[c]) + shift[perPixel ? i : c];
  });
}
