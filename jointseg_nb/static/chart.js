// A line chart in SVG: lines, markers, a read-out under the pointer or the arrow keys, a legend whose entries are switches.

import { bytesOf, followTheme, inflate, listen, make, painted, watchSeen } from './wire.js';

const REST = 400; // ms between two drawings at least: the kernel sends nothing before it hears of the last one
const HEIGHT = 210, TOP = 10, BOTTOM = 36;

const svg = (tag, attributes = {}, ...children) => {
  const el = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [k, v] of Object.entries(attributes)) el.setAttribute(k, v);
  el.append(...children);
  return el;
};

/** Round numbers from `low` to `high`, about `n` of them. */
export function ticks(low, high, n) {
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

/** A number as one reads it: 1,200 · 0.53 · 1.2e-5. */
export function words(v) {
  if (v == null || !Number.isFinite(v)) return '–';
  const a = Math.abs(v);
  if (a !== 0 && (a < 0.001 || a >= 1e7)) return v.toExponential(1).replace('e+', 'e');
  return Number(v.toPrecision(a >= 1000 ? Math.max(4, Math.floor(Math.log10(a)) + 1) : 3)).toLocaleString('en');
}

const colour = c => /^\d+$/.test(c ?? '') ? `var(--c${(Number(c) - 1) % 8 + 1})` : c ?? 'var(--c1)';
const known = p => p[1] != null && Number.isFinite(p[1]);

/** The least and the greatest value of the shown series of one side, with some air. */
function range(series, given) {
  if (given) return given;
  const values = series.flatMap(s => s.points.filter(known).map(p => p[1]));
  if (!values.length) return [0, 1];
  let low = Math.min(...values), high = Math.max(...values);
  if (low === high) [low, high] = [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
  const air = 0.06 * (high - low);
  return [low >= 0 && low < 2 * air ? 0 : low - air, high + air];
}

/** The point of a series at `x`, or the last known one before it. */
function pointAt(points, x) {
  let low = 0, high = points.length - 1, best = null;
  while (low <= high) {
    const mid = (low + high) >> 1;
    if (points[mid][0] <= x) { best = mid; low = mid + 1; } else high = mid - 1;
  }
  while (best > 0 && !known(points[best])) best--;
  return best != null && known(points[best]) ? points[best] : null;
}

class ChartView {
  constructor(store, el) {
    Object.assign(this, { store, model: store.model, cursor: null, dirty: false });
    this.legend = make('div', { class: 'jointseg-legend', role: 'group', 'aria-label': 'series' });
    this.plot = make('div', { class: 'jointseg-plot', tabindex: 0, role: 'group', 'aria-label': 'chart', 'aria-description': 'left and right arrow keys read the values' });
    this.read = make('div', { class: 'jointseg-read', hidden: true });
    this.said = make('div', { class: 'jointseg-canvas-hidden', 'aria-live': 'polite' });
    this.title = make('div', { class: 'jointseg-title' });
    this.root = make('div', { class: 'jointseg-chart', 'data-lm-suppress-shortcuts': 'true' }, make('div', { class: 'jointseg-head' }, this.title, this.legend), this.plot, this.said);
    el.append(this.root);
    this.seen = watchSeen(this.root, () => this.later());
    this.sizes = new ResizeObserver(() => this.later());
    this.sizes.observe(this.plot);
    const hidden = () => this.later();
    this.model.on('change:hidden', hidden);
    this.stops = [followTheme(this.root), () => this.seen.stop(), () => this.sizes.disconnect(), () => this.model.off?.('change:hidden', hidden)];
    store.listeners.add(this.heard = () => this.later());
    this.wire();
    this.later();
  }

  stop() {
    this.store.listeners.delete(this.heard);
    for (const s of this.stops) s();
  }

  wire() {
    this.plot.addEventListener('pointermove', e => {
      const box = this.plot.getBoundingClientRect();
      if (this.scale) this.point(this.scale.back(e.clientX - box.left));
    });
    this.plot.addEventListener('pointerleave', () => this.point(null));
    this.plot.addEventListener('blur', () => this.point(null));
    this.plot.addEventListener('keydown', e => {
      const xs = this.xs ?? [], last = xs.length - 1;
      if (!xs.length) return;
      const at = this.cursor == null ? last : Math.max(0, xs.findLastIndex(x => x <= this.cursor)), far = Math.max(1, Math.round(xs.length / 10));
      const to = { ArrowLeft: at - (this.cursor == null ? 0 : 1), ArrowRight: at + 1, PageUp: at - far, PageDown: at + far, Home: 0, End: last }[e.key];
      if (to === undefined && e.key !== 'Escape') return;
      e.preventDefault();
      e.stopPropagation();
      this.point(e.key === 'Escape' ? null : xs[Math.min(last, Math.max(0, to))], true);
    });
  }

  toggle(name) {
    const hidden = new Set(this.model.get('hidden') ?? []);
    if (!hidden.delete(name)) hidden.add(name);
    this.model.set('hidden', [...hidden]);
    this.model.save_changes();
    this.later();
  }

  later() {
    if (this.dirty) return;
    this.dirty = true;
    requestAnimationFrame(() => { this.dirty = false; if (this.seen.seen) this.draw(); });
  }

  draw() {
    const began = performance.now(), { spec } = this.store, width = this.plot.clientWidth;
    if (spec && width) this.drawSpec(spec, width);
    if (spec) this.store.drawn(performance.now() - began);
  }

  drawSpec(spec, width) {
    const hidden = new Set(this.model.get('hidden') ?? []), all = spec.series ?? [], shown = all.filter(s => !hidden.has(s.name));
    const right = shown.filter(s => s.side === 'right'), left = shown.filter(s => s.side !== 'right');
    const yl = range(left, spec.y_range), yr = range(right, spec.y2_range);
    const xs = [...new Set(shown.flatMap(s => s.points.map(p => p[0])))].sort((a, b) => a - b);
    const x0 = spec.x_range?.[0] ?? xs[0] ?? 0, x1 = Math.max(spec.x_range?.[1] ?? xs[xs.length - 1] ?? 1, x0 + 1e-9);
    const from = 46, to = width - (right.length ? 46 : 10), bottom = HEIGHT - BOTTOM;
    const X = x => from + (x - x0) / (x1 - x0) * (to - from), Y = ([a, b]) => v => bottom - (v - a) / (b - a) * (bottom - TOP);
    Object.assign(this, { xs, shown, spec, scale: { X, left: Y(yl), right: Y(yr), back: px => x0 + (px - from) / (to - from) * (x1 - x0), from, to, bottom } });
    const clip = `clip${this.store.id}`;
    const picture = svg('svg', { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img', 'aria-label': this.sentence(spec, shown) },
      svg('clipPath', { id: clip }, svg('rect', { x: from, y: TOP - 2, width: Math.max(1, to - from), height: bottom - TOP + 4 })));
    picture.append(...this.axes(spec, yl, yr, x0, x1, left.length || !right.length, right.length));
    for (const m of spec.markers ?? []) picture.append(this.marker(m, X));
    for (const s of shown) picture.append(this.line(s, clip));
    picture.append(this.pointer = svg('g', { class: 'pointer' }));
    this.plot.replaceChildren(picture, this.read);
    this.plot.setAttribute('aria-label', spec.title || spec.y || 'chart');
    this.showLegend(all, hidden, spec);
    this.point(this.cursor);
  }

  axes(spec, yl, yr, x0, x1, hasLeft, hasRight) {
    const { X, left, right, from, to, bottom } = this.scale, parts = [];
    const text = (x, y, anchor, s, cls = 'tick') => svg('text', { x, y, 'text-anchor': anchor, class: cls }, s);
    const turned = (x, s) => svg('text', { transform: `translate(${x} ${(TOP + bottom) / 2}) rotate(-90)`, 'text-anchor': 'middle', class: 'label' }, s);
    if (hasLeft) for (const v of ticks(...yl, 4)) parts.push(svg('line', { x1: from, x2: to, y1: left(v), y2: left(v), class: 'grid' }), text(from - 6, left(v) + 4, 'end', words(v)));
    if (hasRight) for (const v of ticks(...yr, 4)) parts.push(text(to + 6, right(v) + 4, 'start', words(v)));
    parts.push(svg('line', { x1: from, x2: to, y1: bottom, y2: bottom, class: 'axis' }));
    for (const v of ticks(x0, x1, Math.max(2, (to - from) / 90))) parts.push(text(X(v), bottom + 15, 'middle', words(v)));
    parts.push(text((from + to) / 2, HEIGHT - 5, 'middle', spec.x ?? '', 'label'));
    if (spec.y && hasLeft) parts.push(turned(11, spec.y));
    if (spec.y2 && hasRight) parts.push(turned(to + 42, spec.y2));
    return parts;
  }

  marker({ x, text }, X) {
    const { bottom } = this.scale, px = X(x), title = svg('title', {}, text);
    return svg('g', { class: 'marker' }, title, svg('line', { x1: px, x2: px, y1: TOP, y2: bottom }), svg('path', { d: `M${px - 4} ${TOP - 7}h8l-4 7z` }));
  }

  line(s, clip) {
    const { X } = this.scale, Y = this.scale[s.side === 'right' ? 'right' : 'left'];
    let d = '', pen = 'M';
    for (const p of s.points) {
      if (!known(p)) { pen = 'M'; continue; }
      d += `${pen}${X(p[0]).toFixed(1)} ${Y(p[1]).toFixed(1)}`;
      pen = 'L';
    }
    const g = svg('g', { 'clip-path': `url(#${clip})`, style: `color:${colour(s.colour)}`, class: 'series' });
    g.append(svg('path', { d, opacity: s.opacity ?? 1, 'stroke-width': s.width ?? 1.8, 'stroke-dasharray': s.dash === true ? '5 4' : s.dash || 'none' }));
    const dots = s.points.filter(known);
    if (dots.length <= 30 && (s.opacity ?? 1) === 1) for (const p of dots) g.append(svg('circle', { cx: X(p[0]), cy: Y(p[1]), r: 2.4 }));
    return g;
  }

  showLegend(all, hidden, spec) {
    this.title.textContent = spec.title ?? '';
    const key = JSON.stringify([all.map(s => [s.name, s.colour, s.dash]), [...hidden]]);
    if (this.legend.dataset.key === key) return;
    this.legend.dataset.key = key;
    const at = [...this.legend.children].indexOf(document.activeElement);
    this.legend.replaceChildren(...all.filter(s => s.name).map(s => make('button',
      { type: 'button', 'aria-pressed': String(!hidden.has(s.name)), title: `show or hide ${s.name}`, onclick: () => this.toggle(s.name) },
      svg('svg', { width: 18, height: 8, 'aria-hidden': 'true', style: `color:${colour(s.colour)}` }, svg('path', { d: 'M1 4h16', 'stroke-dasharray': s.dash === true ? '5 4' : s.dash || 'none' })), s.name)));
    this.legend.children[at]?.focus();
  }

  /** Read the values at `x`: a line, dots and a box; by the keys also said aloud. */
  point(x, aloud = false) {
    this.cursor = x;
    if (!this.pointer) return;
    this.pointer.replaceChildren();
    this.read.hidden = x == null || !this.xs.length;
    if (this.read.hidden) return;
    const { X, from, to, bottom } = this.scale, near = this.xs.reduce((a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a), px = X(near);
    this.pointer.append(svg('line', { x1: px, x2: px, y1: TOP, y2: bottom }));
    const rows = this.shown.filter(s => s.name).map(s => [s, pointAt(s.points, near)]).filter(([, p]) => p);
    for (const [s, p] of rows) this.pointer.append(svg('circle', { cx: px, cy: this.scale[s.side === 'right' ? 'right' : 'left'](p[1]), r: 3.4, style: `color:${colour(s.colour)}` }));
    const room = 8 * (this.xs[this.xs.length - 1] - this.xs[0]) / (to - from);
    const moved = (this.spec.markers ?? []).filter(m => Math.abs(m.x - near) <= room).map(m => m.text);
    this.read.replaceChildren(make('b', {}, `${this.spec.x ?? 'x'} ${words(near)}`),
      ...rows.map(([s, p]) => make('div', {}, make('i', { style: `background:${colour(s.colour)}` }), `${s.name} `, make('span', {}, words(p[1])))), ...moved.map(t => make('em', {}, t)));
    const leftSide = px > (from + to) / 2;
    Object.assign(this.read.style, leftSide ? { right: `${this.plot.clientWidth - px + 10}px`, left: 'auto' } : { left: `${px + 10}px`, right: 'auto' });
    if (aloud) this.said.textContent = `${this.spec.x ?? 'x'} ${words(near)}: ${rows.map(([s, p]) => `${s.name} ${words(p[1])}`).join(', ')}${moved.map(t => `; ${t}`).join('')}`;
  }

  /** The chart in a sentence: what it shows, and the latest values. */
  sentence(spec, shown) {
    const latest = shown.filter(s => s.name).map(s => [s.name, s.points.filter(known).pop()]).filter(([, p]) => p).map(([name, p]) => `${name} ${words(p[1])}`);
    const at = this.xs?.[this.xs.length - 1], n = spec.markers?.length;
    const what = [spec.title, spec.y && spec.x && `${spec.y} against ${spec.x}`].filter(Boolean).join(', ');
    return `${what}: ${latest.length ? `${latest.join(', ')} at ${spec.x ?? 'x'} ${words(at)}` : 'no values yet'}${n ? `; ${n} marker${n > 1 ? 's' : ''}` : ''}`;
  }
}

let count = 0;

/** The latest spec of one widget, and when the kernel may send the next. */
class Store {
  constructor(model) {
    Object.assign(this, { model, listeners: new Set(), spec: null, number: 0, acked: 0, last: 0, id: `${++count}-${Math.random().toString(36).slice(2, 8)}` });
    listen(model, (words, buffers) => this.take(words, buffers), error => console.error('jointseg chart:', error));
  }

  async take(words, buffers) {
    if (!words.spec) return;
    this.spec = JSON.parse(new TextDecoder().decode(await inflate(bytesOf(buffers[words.spec.buffer]))));
    this.number = words.number;
    for (const f of this.listeners) f();
  }

  drawn(ms) {
    if (this.acked === this.number) return;
    this.acked = this.number;
    const wait = Math.max(0, this.last + REST - performance.now());
    setTimeout(() => { this.last = performance.now(); painted(this.model, this.acked, 0, ms); }, wait);
  }
}

export default () => {
  let store;
  return {
    initialize({ model }) { store = new Store(model); },
    render({ el }) {
      const view = new ChartView(store, el);
      return () => view.stop();
    },
  };
};
