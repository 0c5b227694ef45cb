// From label maps to pixels. A map has a class number a pixel: 0 background, 255 unknown. A table of 256 colours, one
// 32-bit number each, turns it into a picture in a single pass.

const UNKNOWN = 255;

/** One colour as the 32-bit number that ImageData holds on a little-endian machine (all that browsers run on). */
const pixel = ([r, g, b], alpha = 255) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;

/** Colours that differ for every kind of colour vision (Okabe and Ito), for up to seven classes beside the background. */
export const SAFE = [[0, 0, 0], [240, 228, 66], [255, 255, 255], [0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233]];

/** What the disagreement layer says: a lesion not found, one that is not there, another class. */
export const ERRORS = { missed: [255, 80, 60], 'false alarm': [255, 170, 0], 'other class': [190, 110, 255] };

/** The colours of the classes in a palette: 'given' by the data set, or 'safe'. */
export function colours(given, palette) {
  if (palette !== 'safe') return given;
  return given.map((c, i) => i < SAFE.length ? SAFE[i] : c);
}

/** The table for a label map; hidden classes and the background are clear. */
export function labelTable(colours, hidden) {
  const table = new Uint32Array(256);
  colours.forEach((c, i) => { if (i > 0 && !hidden.has(i)) table[i] = pixel(c); });
  table[UNKNOWN] = pixel([128, 128, 128], 130);
  return table;
}

/** The table for a probability: clear at 0, dark violet over teal to light yellow at 255. */
export function probabilityTable() {
  const stops = [[60, 15, 90], [50, 90, 140], [30, 150, 140], [110, 205, 90], [250, 235, 60]];
  return Uint32Array.from({ length: 256 }, (_, v) => {
    const at = v / 255 * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(at)), f = at - i;
    const mixed = stops[i].map((a, k) => Math.round(a + f * (stops[i + 1][k] - a)));
    return pixel(mixed, Math.min(255, v * 3));
  });
}

/** A canvas of the size of an eye, and the 32-bit pixels to draw it with. */
export class Sheet {
  constructor(width, height) {
    this.canvas = document.createElement('canvas');
    this.canvas.width = width;
    this.canvas.height = height;
    this.context = this.canvas.getContext('2d');
    this.image = this.context.createImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.key = null; // what is drawn on it
  }

  /** Draw by `draw(pixels)`, unless what `key` names is on it already. */
  show(key, draw) {
    if (this.key === key) return this.canvas;
    draw(this.pixels);
    this.context.putImageData(this.image, 0, 0);
    this.key = key;
    return this.canvas;
  }
}

/** An RGB photograph, three bytes a pixel from `start` on. */
export function drawPhotograph(pixels, rgb, start) {
  for (let i = 0, j = start; i < pixels.length; i++, j += 3) pixels[i] = (0xff000000 | (rgb[j + 2] << 16) | (rgb[j + 1] << 8) | rgb[j]) >>> 0;
}

/** A map through a table. */
export function drawMap(pixels, map, start, table) {
  for (let i = 0; i < pixels.length; i++) pixels[i] = table[map[start + i]];
}

/** Where prediction and truth differ, and how; what concerns only hidden classes is left out. */
export function drawErrors(pixels, truth, prediction, start, hidden) {
  const [missed, alarm, other] = Object.values(ERRORS).map(c => pixel(c));
  for (let i = 0; i < pixels.length; i++) {
    const t = truth[start + i], p = prediction[start + i];
    if (t === p || t === UNKNOWN) { pixels[i] = 0; continue; }
    const seenT = t > 0 && !hidden.has(t), seenP = p > 0 && !hidden.has(p);
    pixels[i] = !seenT && !seenP ? 0 : t === 0 || !seenT ? alarm : p === 0 || !seenP ? missed : other;
  }
}

/** The borders of each class in one eye: class number -> Path2D in pixels of the eye. Straight runs are one line. */
export function outlines(map, start, width, height) {
  const paths = new Map(), at = (x, y) => x < 0 || y < 0 || x >= width || y >= height ? 0 : map[start + y * width + x];
  const path = c => paths.get(c) ?? paths.set(c, new Path2D()).get(c);
  const side = (classAt, along, across, line) => {
    for (let a = 0; a <= across; a++) {
      let from = 0, on = 0; // the class whose border is being followed
      for (let b = 0; b <= along; b++) {
        const now = b < along ? classAt(a, b) : 0;
        if (now === on) continue;
        if (on) line(path(on), a, from, b);
        from = b;
        on = now;
      }
    }
  };
  const lesion = c => c > 0 && c !== UNKNOWN;
  for (const d of [0, 1]) { // the class before a border, then the one behind it
    side((y, x) => { const [u, v] = [at(x, y - 1), at(x, y)], c = d ? v : u; return u !== v && lesion(c) ? c : 0; }, width, height,
      (p, y, x0, x1) => { p.moveTo(x0, y); p.lineTo(x1, y); });
    side((x, y) => { const [u, v] = [at(x - 1, y), at(x, y)], c = d ? v : u; return u !== v && lesion(c) ? c : 0; }, height, width,
      (p, x, y0, y1) => { p.moveTo(x, y0); p.lineTo(x, y1); });
  }
  return paths;
}

// Which pixels of a square of 8 x 8 are full, by class: so that classes differ without their colour. The others are faint.
const HATCHES = [
  (x, y) => ((x + y) & 3) < 2,            // rising lines
  (x, y) => (x & 3) < 2 && (y & 3) < 2,   // dots
  (x, y) => ((x - y) & 3) < 2,            // falling lines
  (x, y) => (y & 3) < 2,                  // level lines
  (x, y) => (x & 3) === 0 || (y & 3) === 0, // a grid
  (x, y) => (x & 3) < 2,                  // upright lines
  (x, y) => ((x ^ y) & 4) === 0,          // checks
];

/** The table for a hatched label map: 64 entries a class, one for each pixel of its square. */
export function hatchTable(colours, hidden) {
  const table = new Uint32Array(256 * 64);
  colours.forEach((colour, c) => {
    if (c === 0 || hidden.has(c)) return;
    const full = HATCHES[(c - 1) % HATCHES.length];
    for (let i = 0; i < 64; i++) table[c * 64 + i] = pixel(colour, full(i & 7, i >> 3) ? 255 : 80);
  });
  return table.fill(pixel([128, 128, 128], 130), UNKNOWN * 64);
}

/**
 * A label map through a hatch table, pixel by pixel of the screen: the hatches keep their size however far one zooms.
 * `place` is [left, top, width, height] of what is seen, in pixels of the map; `fine` is how many screen pixels make one of a hatch.
 */
export function drawHatched(pixels, width, map, start, mapWidth, place, table, fine) {
  const height = pixels.length / width, [left, top, w, h] = place;
  const column = Int32Array.from({ length: width }, (_, x) => Math.floor(left + (x + 0.5) * w / width));
  for (let y = 0, i = 0; y < height; y++) {
    const row = start + Math.floor(top + (y + 0.5) * h / height) * mapWidth, v = (Math.floor(y / fine) & 7) << 3;
    for (let x = 0; x < width; x++, i++) pixels[i] = table[(map[row + column[x]] << 6) | v | (Math.floor(x / fine) & 7)];
  }
}
