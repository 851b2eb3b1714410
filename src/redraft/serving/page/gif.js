// A recording as a GIF (89a): frames drawn on a canvas, one palette of the page's colours and their blends with white, LZW.

import { COLOURS, EDGE, GLYPH, LINE, WIDTH, lines, played, said } from "./save.js";

const FONT = '14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace', FRAMES = 64, BITS = 6, BLENDS = 8;
const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
// White, then each colour in eighths: what smooth letters are made of.
const PALETTE = [[255, 255, 255], ...[...new Set(Object.values(COLOURS))].flatMap((colour) =>
  Array.from({ length: BLENDS }, (_, i) => rgb(colour).map((c) => Math.round(255 + ((c - 255) * (i + 1)) / BLENDS))))];

const short = (number) => [number & 255, number >> 8];

export function gif(recording, title) {
  const { length, frames } = played(recording, FRAMES);
  const tall = Math.max(...frames.map((frame) => lines(frame.runs).length));
  const [wide, high] = [Math.round(2 * EDGE + WIDTH * GLYPH), 2 * EDGE + (tall + 3) * LINE];
  const colours = Array.from({ length: 1 << BITS }, (_, i) => PALETTE[i] ?? [0, 0, 0]).flat();
  const parts = [letters("GIF89a"), short(wide), short(high), [0xf0 | (BITS - 1), 0, 0], colours];
  parts.push([0x21, 0xff, 11], letters("NETSCAPE2.0"), [3, 1, 0, 0, 0]); // again and again
  const index = nearest(), context = canvas(wide, high);
  frames.forEach((frame, number) => {
    const until = frames[number + 1]?.at ?? length;
    draw(context, frame, title);
    const { data } = context.getImageData(0, 0, wide, high);
    const pixels = Uint8Array.from({ length: wide * high }, (_, i) => index(data[4 * i], data[4 * i + 1], data[4 * i + 2]));
    const wait = Math.round(100 * until) - Math.round(100 * frame.at); // hundredths that add up; players take less than two for ten
    parts.push([0x21, 0xf9, 4, 0, ...short(Math.max(2, wait)), 0, 0]);
    parts.push([0x2c, 0, 0, 0, 0, ...short(wide), ...short(high), 0, BITS], ...blocks(lzw(pixels)), [0]);
  });
  return new Uint8Array([...parts, [0x3b]].flatMap((part) => [...part]));
}

const letters = (text) => [...text].map((c) => c.charCodeAt(0));

function canvas(width, height) {
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d", { willReadFrequently: true });
  return context;
}

function draw(context, frame, title) {
  const put = (text, x, row, kind) => {
    context.font = kind === "t0" ? `bold ${FONT}` : FONT;
    context.fillStyle = COLOURS[kind];
    context.fillText(text, x, EDGE + row * LINE);
  };
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  put(title, EDGE, 0.5, "given");
  const rows = lines(frame.runs);
  rows.forEach((row, number) => {
    let used = 0;
    for (const [text, kind] of row) {
      put(text, EDGE + used * GLYPH, number + 2, kind);
      used += [...text].length;
    }
  });
  put(said(frame), EDGE, rows.length + 2.5, "given");
}

// The palette's index of a colour, remembered.
function nearest() {
  const known = new Map();
  const far = ([a, b, c], r, g, bl) => (a - r) ** 2 + (b - g) ** 2 + (c - bl) ** 2;
  return (r, g, b) => {
    const key = (r << 16) | (g << 8) | b;
    if (!known.has(key)) {
      const distances = PALETTE.map((colour) => far(colour, r, g, b));
      known.set(key, distances.indexOf(Math.min(...distances)));
    }
    return known.get(key);
  };
}

// Codes of growing width, at most 12 bits, the lowest bit first.
function lzw(pixels) {
  const clear = 1 << BITS, out = [], codes = new Map();
  let width = BITS + 1, next = clear + 2, bits = 0, count = 0, prefix = pixels[0];
  const put = (code) => {
    bits |= code << count;
    for (count += width; count >= 8; count -= 8, bits >>>= 8) out.push(bits & 255);
  };
  put(clear);
  for (const pixel of pixels.subarray(1)) {
    const key = (prefix << 8) | pixel, code = codes.get(key);
    if (code !== undefined) { prefix = code; continue; }
    put(prefix);
    if (next === 4096) { put(clear); codes.clear(); next = clear + 2; width = BITS + 1; }
    else {
      if (next === 1 << width) width++;
      codes.set(key, next++);
    }
    prefix = pixel;
  }
  put(prefix);
  put(clear + 1);
  if (count) out.push(bits & 255);
  return out;
}

function* blocks(bytes) {
  for (let at = 0; at < bytes.length; at += 255) {
    const some = bytes.slice(at, at + 255);
    yield [some.length, ...some];
  }
}
