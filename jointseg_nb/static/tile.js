// One eye on the page: its layers drawn into one or more panes, each on a sheet that is drawn anew only when it changes.

import { make } from './wire.js';
import { drawErrors, drawHatched, drawMap, drawPhotograph, outlines, probabilityTable, Sheet } from './layers.js';

const CHANCES = probabilityTable();

/** One eye on the page: its canvases, one a pane, and the words under them. */
export class Tile {
  constructor(eyes, index) {
    const { width, height } = eyes.begun;
    Object.assign(this, { eyes, index, start: index * width * height, panes: [] });
    this.unknown = eyes.truth.subarray(this.start, this.start + width * height).every(c => c === 255);
    this.sheets = Object.fromEntries(['photograph', 'truth', 'prediction', 'disagreement', 'probability'].map(k => [k, new Sheet(width, height)]));
    this.sheets.photograph.show('', pixels => drawPhotograph(pixels, eyes.photographs, 3 * this.start));
    this.words = make('figcaption');
    this.box = make('figure', {}, this.words);
    this.outline = null;
    this.cached = new Map(); // what costs most, kept at screen size: key -> canvas
  }

  /** As many canvases as there are panes. */
  arrange(titles, side) {
    const { width, height } = this.eyes.begun, ratio = window.devicePixelRatio || 1;
    while (this.panes.length > titles.length) this.panes.pop().remove();
    while (this.panes.length < titles.length) {
      const canvas = make('canvas', { role: 'img' });
      this.panes.push(canvas);
      this.words.before(canvas);
    }
    for (const canvas of this.panes) {
      const w = Math.max(1, Math.round(side * ratio)), h = Math.max(1, Math.round(side * height / width * ratio));
      if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
      canvas.style.width = `${w / ratio}px`;
      canvas.style.height = `${h / ratio}px`;
    }
    this.box.style.width = `${side}px`;
  }

  /** The layers `names` of `shot` (masks, and probabilities if there are) into pane `i`. */
  draw(i, names, shot, how) {
    const canvas = this.panes[i], context = canvas.getContext('2d'), { width, height } = this.eyes.begun;
    const { zoom, x, y } = how.view, w = width / zoom, h = height / zoom;
    const place = [x * width - w / 2, y * height - h / 2, w, h, 0, 0, canvas.width, canvas.height];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = 1;
    context.fillStyle = '#000';
    context.fillRect(0, 0, canvas.width, canvas.height);
    for (const name of names) {
      context.globalAlpha = how.layers[name].opacity;
      context.imageSmoothingEnabled = name === 'photograph' && canvas.width / w < 12; // closer than that one wants to see pixels
      context.imageSmoothingQuality = 'high';
      const image = this.layer(name, shot, how, canvas, place);
      if (!image) continue;
      if (image.screen) context.drawImage(image, 0, 0);
      else context.drawImage(image, ...place);
    }
    context.globalAlpha = 1;
    if (how.title) this.label(context, how.title);
  }

  /** A word in the corner of a pane. */
  label(context, word) {
    const ratio = window.devicePixelRatio || 1;
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    context.fillStyle = 'rgba(0, 0, 0, 0.55)';
    context.fillRect(0, 0, context.measureText(word).width + 10 * ratio, 17 * ratio);
    context.fillStyle = '#fff';
    context.fillText(word, 5 * ratio, 12.5 * ratio);
  }

  /** One layer as something to draw: a map of the eye's size, or a canvas of the pane's. */
  layer(name, shot, how, canvas, place) {
    const { sheets, start, eyes } = this;
    if (name === 'photograph') return sheets.photograph.canvas;
    if (name === 'truth') {
      if (how.truthAs === 'outline') return this.traced(how, canvas, place);
      if (how.patterns) return this.hatched('truth', eyes.truth, 'truth', how, canvas, place);
      return sheets.truth.show(how.key, pixels => drawMap(pixels, eyes.truth, start, how.table));
    }
    if (!shot) return null;
    if (name === 'prediction') {
      if (how.patterns) return this.hatched('prediction', shot.masks, shot.step, how, canvas, place);
      return sheets.prediction.show(`${how.key} ${shot.step}`, pixels => drawMap(pixels, shot.masks, start, how.table));
    }
    if (name === 'disagreement') {
      return sheets.disagreement.show(`${how.key} ${shot.step}`, pixels => drawErrors(pixels, eyes.truth, shot.masks, start, how.hidden));
    }
    const p = shot.probabilities?.[how.probabilityOf];
    return p ? sheets.probability.show(`${how.probabilityOf} ${shot.step}`, pixels => drawMap(pixels, p, start, CHANCES)) : null;
  }

  /** A canvas of the pane's size, drawn anew when `key` changes. */
  screen(name, key, canvas, draw) {
    let kept = this.cached.get(name);
    if (!kept) this.cached.set(name, kept = Object.assign(document.createElement('canvas'), { screen: true }));
    const full = `${key} ${canvas.width} ${canvas.height}`;
    if (kept.key === full) return kept;
    Object.assign(kept, { width: canvas.width, height: canvas.height, key: full });
    draw(kept.getContext('2d'));
    return kept;
  }

  /** The borders of the true lesions: a dark line under a coloured one, as thin at every zoom. */
  traced(how, canvas, place) {
    const { width, height } = this.eyes.begun, [left, top, w] = place, scale = canvas.width / w, ratio = window.devicePixelRatio || 1;
    this.outline ??= outlines(this.eyes.truth, this.start, width, height);
    return this.screen('truth', `${how.key} ${place}`, canvas, context => {
      context.setTransform(scale, 0, 0, scale, -left * scale, -top * scale);
      context.lineCap = 'square';
      for (const [line, alpha] of [[3.2, 0.5], [1.4, 1]]) {
        context.lineWidth = line * ratio / scale;
        context.globalAlpha = alpha;
        for (const [c, path] of this.outline) {
          if (how.hidden.has(c) || !how.colours[c]) continue;
          context.strokeStyle = alpha < 1 ? '#000' : `rgb(${how.colours[c]})`;
          context.stroke(path);
        }
      }
    });
  }

  /** A map whose classes are hatched, each in its own way. */
  hatched(name, map, version, how, canvas, place) {
    const fine = Math.max(1, Math.round(window.devicePixelRatio || 1));
    return this.screen(name, `${how.key} ${version} ${place}`, canvas, context => {
      const image = context.createImageData(canvas.width, canvas.height);
      drawHatched(new Uint32Array(image.data.buffer), canvas.width, map, this.start, this.eyes.begun.width, place, how.hatches, fine);
      context.putImageData(image, 0, 0);
    });
  }
}
