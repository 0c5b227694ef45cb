// The eyes: layers over each photograph, and a time line over the run's masks. The kernel sends what is new; what is
// shown of it, and how, is decided here, so that scrubbing, zooming and switching layers ask nothing of the kernel.

import { bytesOf, followTheme, inflate, listen, make, painted, watchSeen } from './wire.js';
import { Film } from './film.js';
import { colours, ERRORS, hatchTable, labelTable } from './layers.js';
import { Tile } from './tile.js';

// bottom to top; what each is at first
const LAYERS = {
  photograph: { on: true, opacity: 1 },
  probability: { on: false, opacity: 0.75 },
  prediction: { on: true, opacity: 0.55 },
  disagreement: { on: false, opacity: 0.85 },
  truth: { on: true, opacity: 1 },
};
const OPTIONS = { layers: LAYERS, hidden: [], probabilityOf: 1, palette: 'given', patterns: false, truthAs: 'outline', arrangement: 'together', large: false, speed: 10 };
const VIEW = { zoom: 1, x: 0.5, y: 0.5 };

/** What is known about the eyes: one per widget and browser tab, fed by the kernel's messages. */
class Eyes {
  constructor(model) {
    this.model = model;
    this.listeners = new Set();
    this.clear();
    this.greet = listen(model, (words, buffers) => this.take(words, buffers), error => this.tell({ error: String(error) }));
  }

  clear() {
    Object.assign(this, { begun: null, truth: null, photographs: null, film: new Film(), look: null, changes: [], number: 0, seq: 0 });
  }

  tell(news) { for (const f of this.listeners) f(news); }

  /** One message: the beginning of a run, frames of its film, the latest look, or a file to save. */
  async take(words, buffers) {
    const packed = part => bytesOf(buffers[part.buffer]).slice();
    const { begin, gone, frames, look, file } = words;
    if (begin && begin.run !== this.begun?.run) {
      const [photographs, truth] = await Promise.all([begin.photographs, begin.truth].map(p => inflate(packed(p))));
      this.clear();
      Object.assign(this, { begun: begin, photographs, truth });
    }
    if (!this.begun && (frames || look)) return this.greet(); // meant for another tab: what this one has asked for is on its way, or was lost
    if (words.changes) this.changes = words.changes; // knobs that moved: [step, words]
    if (gone) this.film.drop(gone);
    for (const f of frames ?? []) this.film.add({ step: f.step, grades: f.grades, packed: packed(f.masks) });
    if (look) {
      const known = this.film.frames[this.film.at(look.step)];
      const frame = look.masks ? { ...look, packed: packed(look.masks) } : { ...known, ...look };
      const masks = look.masks ? await inflate(frame.packed) : await this.film.unpack(known);
      this.look = { ...frame, masks, probabilities: {} };
      for (const [c, p] of Object.entries(look.probabilities ?? {})) this.look.probabilities[c] = await inflate(packed(p));
    }
    if (words.number) Object.assign(this, { number: words.number, seq: words.seq });
    this.tell({ begin, file, words: words.say, buffer: file ? packed(file) : null });
  }
}

const ICONS = { play: 'M5 3l8 5-8 5z', pause: 'M4 3h3v10H4zM9 3h3v10H9z', plus: 'M7 3h2v4h4v2H9v4H7V9H3V7h4z', minus: 'M3 7h10v2H3z', fit: 'M2 2h4v2H4v2H2zM10 2h4v4h-2V4h-2zM2 10h2v2h2v2H2zM12 10h2v4h-4v-2h2z' };

function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg'), path = document.createElementNS(svg.namespaceURI, 'path');
  svg.setAttribute('viewBox', '0 0 16 16');
  svg.setAttribute('aria-hidden', 'true');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
const percent = v => `${Math.round(100 * v)}%`;

/** One showing of the eyes on the page; there may be several of the same widget. */
class EyesView {
  constructor(eyes, model, el) {
    Object.assign(this, { eyes, model, el, tiles: [], step: null, playing: false, dirty: false, draws: 0, acked: -1 });
    this.readOptions();
    this.build();
    this.stops = [followTheme(this.root), () => this.seen.stop(), () => this.sizes.disconnect()];
    this.seen = watchSeen(this.root, () => this.later());
    this.sizes = new ResizeObserver(() => { this.layout(); this.later(); });
    this.sizes.observe(this.root);
    this.on('change:options', () => { this.readOptions(); this.showOptions(); this.layout(); this.later(); });
    this.on('change:view', () => { this.view = { ...VIEW, ...this.model.get('view') }; this.later(); });
    this.on('change:at', () => this.goTo(this.model.get('at'), false));
    this.heard = news => this.hear(news);
    eyes.listeners.add(this.heard);
    this.begin();
    this.goTo(model.get('at') ?? -1, false);
  }

  on(what, f) {
    this.model.on(what, f);
    this.stops.push(() => this.model.off?.(what, f));
  }

  stop() {
    this.playing = false;
    this.eyes.listeners.delete(this.heard);
    for (const s of this.stops) s();
  }

  // ---- options, shared with the kernel (so that they outlive a reload) and with other views

  readOptions() {
    const given = this.model.get('options') ?? {}, layers = given.layers ?? {};
    this.options = { ...OPTIONS, ...given, layers: Object.fromEntries(Object.entries(LAYERS).map(([k, v]) => [k, { ...v, ...layers[k] }])) };
    this.view ??= { ...VIEW, ...this.model.get('view') };
  }

  /** Change some options; what follows from that happens where the change is heard. */
  set(changes) {
    this.share('options', { ...this.options, ...changes });
    const p = this.options.layers.probability.on ? [`probability:${this.options.probabilityOf}`] : [];
    if (JSON.stringify(this.model.get('wanted')) !== JSON.stringify(p)) { this.model.set('wanted', p); this.model.save_changes(); }
  }

  /** A trait that other views in this page see at once, and the kernel when the hand rests. */
  share(name, value) {
    this.model.set(name, value);
    clearTimeout(this.shareTimer);
    this.shareTimer = setTimeout(() => this.model.save_changes(), 250);
  }

  setLayer(name, changes) { this.set({ layers: { ...this.options.layers, [name]: { ...this.options.layers[name], ...changes } } }); }

  // ---- the page

  build() {
    const button = (cls, label, ...inside) => make('button', { type: 'button', class: `jointseg-${cls}`, title: label, 'aria-label': label }, ...inside);
    this.grid = make('div', { class: 'jointseg-grid-of-eyes', tabindex: 0, role: 'group', 'aria-label': 'eyes',
      'aria-description': 'plus and minus zoom, arrow keys move, 0 shows the whole eye; all eyes move together' });
    this.play = button('play', 'play', icon('play'));
    this.time = make('input', { type: 'range', class: 'jointseg-timeline', min: 0, max: 0, value: 0, step: 1, 'aria-label': 'time line: frame of the film' });
    this.frame = make('output', { class: 'jointseg-frame' }, 'no masks yet');
    this.live = make('button', { type: 'button', class: 'jointseg-live', 'aria-pressed': 'true', title: 'follow the run' }, 'live');
    this.speed = make('input', { type: 'range', class: 'jointseg-speed', min: 1, max: 60, 'aria-label': 'speed of the film, frames a second' });
    this.speedWords = make('output', { class: 'jointseg-canvas-words' });
    const line = make('div', { class: 'jointseg-canvas-row jointseg-canvas-times' }, this.play, make('div', { class: 'jointseg-canvas-line' }, this.time, this.ticks = make('div', { class: 'jointseg-ticks' })), this.frame, this.live, make('label', { class: 'jointseg-canvas-quiet' }, this.speed, this.speedWords));
    this.layerRow = make('div', { class: 'jointseg-canvas-row jointseg-layers', role: 'group', 'aria-label': 'layers' }, ...Object.keys(LAYERS).map(n => this.buildLayer(n)));
    this.classRow = make('div', { class: 'jointseg-canvas-row jointseg-classes', role: 'group', 'aria-label': 'lesions' });
    this.said = make('div', { class: 'jointseg-canvas-hidden', 'aria-live': 'polite' });
    this.note = make('div', { class: 'jointseg-canvas-note', role: 'status' });
    this.root = make('div', { class: 'jointseg-canvas', 'data-lm-suppress-shortcuts': 'true' },
      this.grid, line, this.layerRow, this.classRow, this.buildMore(button), this.note, this.said);
    this.el.append(this.root);
    this.wire();
    this.showOptions();
  }

  buildLayer(name) {
    const box = make('input', { type: 'checkbox', class: `jointseg-layer-${name}`, onchange: e => this.setLayer(name, { on: e.target.checked }) });
    const range = make('input', { type: 'range', class: `jointseg-opacity-${name}`, min: 0, max: 1, step: 0.05, 'aria-label': `opacity of the ${name}`,
      oninput: e => this.setLayer(name, { opacity: Number(e.target.value) }) });
    const words = [make('label', {}, box, name)];
    if (name === 'probability') {
      this.ofClass = make('select', { class: 'jointseg-probability-of', 'aria-label': 'probability of which class', onchange: e => this.set({ probabilityOf: Number(e.target.value) }) });
      words.push(this.ofClass);
    }
    return make('div', { class: 'jointseg-layer', 'data-layer': name }, make('div', {}, ...words), range);
  }

  buildMore(button) {
    const choice = (cls, label, of, name) => make('label', {}, label, make('select', { class: `jointseg-${cls}`, onchange: e => this.set({ [name]: e.target.value }) },
      ...Object.entries(of).map(([value, words]) => make('option', { value }, words))));
    this.choices = {
      arrangement: choice('arrangement', 'layers', { together: 'in one picture', apart: 'side by side' }, 'arrangement'),
      truthAs: choice('truth-as', 'truth as', { outline: 'outline', area: 'area' }, 'truthAs'),
      palette: choice('palette', 'colours', { given: 'of the data set', safe: 'colour-blind safe' }, 'palette'),
    };
    this.patterns = make('input', { type: 'checkbox', class: 'jointseg-patterns', onchange: e => this.set({ patterns: e.target.checked }) });
    const zooms = [button('zoom-out', 'zoom out (−)', icon('minus')), button('zoom-in', 'zoom in (+)', icon('plus')), button('zoom-reset', 'the whole eye (0)', icon('fit'))];
    this.large = make('button', { type: 'button', class: 'jointseg-large', title: 'give the eyes more of the page', onclick: () => this.set({ large: !this.options.large }) }, 'larger');
    const save = (kind, words, title) => make('button', { type: 'button', class: `jointseg-export-${kind}`, title, hidden: !!this.model.get('alone'), onclick: () => this.ask(kind) }, words);
    return make('div', { class: 'jointseg-canvas-row jointseg-canvas-more' }, ...zooms, this.large, ...Object.values(this.choices), make('label', {}, this.patterns, 'patterns'),
      make('span', { class: 'jointseg-canvas-push' }), save('gif', 'GIF', 'save the film as an animated GIF'), save('html', 'HTML', 'save the film as a page that needs nothing else'));
  }

  /** Every control shows where its option stands. */
  showOptions() {
    const o = this.options;
    for (const [name, { on, opacity }] of Object.entries(o.layers)) {
      const row = this.layerRow.querySelector(`[data-layer=${name}]`);
      row.querySelector('[type=checkbox]').checked = on;
      row.querySelector('[type=range]').value = opacity;
      row.classList.toggle('jointseg-off', !on);
    }
    for (const [name, label] of Object.entries(this.choices)) label.querySelector('select').value = o[name];
    this.ofClass.value = o.probabilityOf;
    this.patterns.checked = o.patterns;
    this.large.setAttribute('aria-pressed', String(o.large));
    this.speed.value = Math.round(o.speed);
    this.speedWords.textContent = `${Math.round(o.speed)} a second`;
    this.showClasses();
  }

  // ---- a run begins

  begin() {
    const b = this.eyes.begun;
    if (b?.run !== this.run && this.run) this.goTo(-1); // another run: follow it
    this.run = b?.run;
    this.tiles = b ? Array.from({ length: b.n }, (_, i) => new Tile(this.eyes, i)) : [];
    this.grid.replaceChildren(...(b ? this.tiles.map(t => t.box) : [make('div', { class: 'jointseg-waiting' }, 'waiting for photographs')]));
    this.ofClass.replaceChildren(...(b?.classes ?? []).map((name, value) => make('option', { value }, name)));
    this.classButtons = (b?.classes ?? []).slice(1).map((name, i) => make('button',
      { type: 'button', class: `jointseg-class-${i + 1}`, title: `show or hide ${name}`, onclick: () => this.toggleClass(i + 1) }, make('canvas', { width: 12, height: 12, 'aria-hidden': 'true' }), name));
    this.errorWords = make('span', { class: 'jointseg-errors' }, ...Object.entries(ERRORS).map(([name, c]) => make('span', {}, make('i', { style: `background:rgb(${c})` }), name)));
    this.classRow.replaceChildren(...this.classButtons, this.errorWords);
    this.showOptions();
    this.layout();
  }

  toggleClass(c) {
    const hidden = new Set(this.options.hidden);
    if (!hidden.delete(c)) hidden.add(c);
    this.set({ hidden: [...hidden] });
  }

  showClasses() {
    const b = this.eyes.begun, o = this.options;
    if (!b || !this.classButtons) return;
    const table = colours(b.colours, o.palette), none = new Set(), plain = labelTable(table, none), hatches = hatchTable(table, none);
    table.forEach((_, c) => {
      const button = this.classButtons[c - 1];
      if (!button) return;
      button.setAttribute('aria-pressed', String(!o.hidden.includes(c)));
      const context = button.firstChild.getContext('2d'), image = context.createImageData(12, 12), pixels = new Uint32Array(image.data.buffer);
      pixels.forEach((_, i) => { pixels[i] = o.patterns ? hatches[c * 64 + (i / 12 & 7) * 8 + (i % 12 & 7)] : plain[c]; });
      context.putImageData(image, 0, 0);
    });
    this.errorWords.hidden = !o.layers.disagreement.on;
  }

  /** Which layers go into which pane. */
  panes() {
    const on = Object.keys(LAYERS).filter(n => this.options.layers[n].on);
    if (this.options.arrangement === 'together' || on.length < 2) return [on];
    const base = on.includes('photograph') ? ['photograph'] : [];
    return [base, ...['truth', 'prediction', 'disagreement', 'probability'].filter(n => on.includes(n)).map(n => [...base, n])].filter(p => p.length);
  }

  /** The largest tiles with which all eyes fit in the width and in half of the window's height: charts below are to be seen too. */
  layout() {
    const b = this.eyes.begun, width = this.grid.clientWidth, panes = this.panes().length, { large } = this.options;
    if (!b || !width) return;
    const tall = window.parent === window ? window.innerHeight : 0.8 * screen.availHeight; // a frame may be as high as what is in it
    const gap = 6, words = 24, most = tall * (large ? 0.95 : panes > 1 ? 0.6 : 0.45), least = panes > 1 ? 96 : large ? 320 : 150;
    const byWidth = c => (width - (c - 1) * gap) / c, byHeight = c => (most / Math.ceil(b.n / c) - words) / panes * b.width / b.height;
    const counts = Array.from({ length: b.n }, (_, i) => i + 1), fit = c => Math.min(byWidth(c), byHeight(c));
    let columns = counts.reduce((a, c) => fit(c) > fit(a) + 0.5 ? c : a), best = fit(columns);
    if (best < least) { // then higher than that, in as few rows as there are eyes of the least size in the width
      columns = counts.filter(c => byWidth(c) >= least).pop() ?? 1;
      best = Math.min(byWidth(columns), least);
    }
    best = Math.floor(best);
    this.columns = columns;
    this.grid.classList.toggle('jointseg-narrow', best < 175);
    this.grid.style.gridTemplateColumns = `repeat(${columns}, ${best}px)`;
    for (const t of this.tiles) t.arrange(this.panes().map(p => p[p.length - 1] ?? 'nothing'), best);
  }

  // ---- what the hand does

  wire() {
    const grid = this.grid, press = { id: null };
    const inEye = e => {
      const box = e.target.closest?.('canvas')?.getBoundingClientRect();
      return box ? { x: (e.clientX - box.left) / box.width, y: (e.clientY - box.top) / box.height, box } : { x: 0.5, y: 0.5, box: grid.getBoundingClientRect() };
    };
    grid.addEventListener('wheel', e => {
      if (!e.ctrlKey && !e.metaKey && !grid.contains(document.activeElement)) { // the page scrolls, until an eye is clicked
        this.hint('click an eye first, or hold Ctrl, to zoom by the wheel');
        return;
      }
      e.preventDefault();
      this.zoomBy(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.0016)), inEye(e));
    }, { passive: false });
    grid.addEventListener('pointerdown', e => {
      if (!e.target.closest('canvas') || e.button) return;
      grid.focus({ preventScroll: true });
      Object.assign(press, { id: e.pointerId, x: e.clientX, y: e.clientY, box: inEye(e).box });
      grid.setPointerCapture(e.pointerId);
    });
    grid.addEventListener('pointermove', e => {
      if (press.id !== e.pointerId) return;
      this.moveBy((press.x - e.clientX) / press.box.width, (press.y - e.clientY) / press.box.height);
      Object.assign(press, { x: e.clientX, y: e.clientY });
    });
    for (const end of ['pointerup', 'pointercancel']) grid.addEventListener(end, () => { press.id = null; });
    grid.addEventListener('dblclick', e => this.zoomBy(2, inEye(e)));
    const keys = { '+': () => this.zoomBy(1.5), '=': () => this.zoomBy(1.5), '-': () => this.zoomBy(1 / 1.5), 0: () => this.setView(VIEW),
      ArrowLeft: () => this.moveBy(-0.1, 0), ArrowRight: () => this.moveBy(0.1, 0), ArrowUp: () => this.moveBy(0, -0.1), ArrowDown: () => this.moveBy(0, 0.1), ' ': () => this.togglePlay() };
    grid.addEventListener('keydown', e => {
      if (!keys[e.key] || e.ctrlKey || e.metaKey || e.altKey) return;
      e.preventDefault();
      e.stopPropagation();
      keys[e.key]();
    });
    const click = (cls, f) => this.root.querySelector(`.jointseg-${cls}`).addEventListener('click', f);
    click('zoom-in', () => this.zoomBy(1.5));
    click('zoom-out', () => this.zoomBy(1 / 1.5));
    click('zoom-reset', () => this.setView(VIEW));
    click('play', () => this.togglePlay());
    click('live', () => { this.pause(); this.goTo(-1); });
    this.time.addEventListener('input', () => { this.pause(); this.goToFrame(Number(this.time.value)); });
    this.time.addEventListener('change', () => this.say(0));
    this.speed.addEventListener('input', () => this.set({ speed: Number(this.speed.value) }));
  }

  /** A word under the eyes, for some seconds. */
  hint(words) {
    this.hinted = words;
    clearTimeout(this.hintTimer);
    this.hintTimer = setTimeout(() => { this.hinted = null; this.later(); }, 3000);
    this.later();
  }

  setView(view) {
    const zoom = clamp(view.zoom, 1, 40), half = 0.5 / zoom;
    this.view = { zoom, x: clamp(view.x, half, 1 - half), y: clamp(view.y, half, 1 - half) };
    this.later();
    this.share('view', this.view);
  }

  /** Zoom about a point of the picture, given as fractions of what is seen. */
  zoomBy(factor, { x, y } = { x: 0.5, y: 0.5 }) {
    const v = this.view, zoom = clamp(v.zoom * factor, 1, 40), moved = 1 / v.zoom - 1 / zoom;
    this.setView({ zoom, x: v.x + (x - 0.5) * moved, y: v.y + (y - 0.5) * moved });
  }

  moveBy(dx, dy) { this.setView({ ...this.view, x: this.view.x + dx / this.view.zoom, y: this.view.y + dy / this.view.zoom }); }

  // ---- time: `step` is null while following the run

  /** The masks to show: the latest look, or a frame of the film. */
  now() {
    const { film, look } = this.eyes;
    return this.step === null ? look : film.length ? film.frames[film.at(this.step)] : look;
  }

  goTo(step, tell = true) {
    this.step = step == null || step < 0 ? null : step;
    this.later();
    if (tell) this.share('at', this.step ?? -1);
  }

  goToFrame(i) {
    const { film } = this.eyes;
    if (film.length) this.goTo(film.frames[clamp(i, 0, film.length - 1)].step);
  }

  togglePlay() {
    if (this.playing) return this.pause();
    const { film } = this.eyes;
    if (film.length < 2) return;
    this.playing = true;
    let at = this.step === null || film.at(this.step) >= film.length - 1 ? 0 : film.at(this.step), last = performance.now();
    this.goToFrame(at);
    const tick = now => {
      if (!this.playing) return;
      at += Math.max(0, now - last) / 1000 * this.options.speed; // the screen's clock may start a little before ours
      last = now;
      if (at >= film.length - 1) { this.pause(); this.goToFrame(film.length - 1); return; }
      if (film.frames[Math.floor(at)].step !== this.step) this.goToFrame(Math.floor(at));
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    this.later();
  }

  pause() {
    this.playing = false;
    this.later();
  }

  // ---- drawing: at most once a frame of the screen, and only what is seen

  later() {
    if (this.dirty) return;
    this.dirty = true;
    requestAnimationFrame(() => { this.dirty = false; if (this.seen.seen) this.draw(); });
  }

  draw() {
    const began = performance.now(), { eyes } = this, shot = this.ready();
    if (shot === undefined) return; // drawn as soon as it is unpacked
    const panes = this.panes();
    if (this.tiles.some(t => t.panes.length !== panes.length)) return; // not laid out while there was no room: drawn once there is
    if (eyes.begun) {
      const o = this.options, table = colours(eyes.begun.colours, o.palette), hidden = new Set(o.hidden);
      const how = { ...o, view: this.view, colours: table, hidden, table: labelTable(table, hidden), hatches: o.patterns ? hatchTable(table, hidden) : null, key: `${o.palette} ${[...hidden]} ${o.patterns}` };
      panes.forEach((names, i) => {
        const title = panes.length > 1 ? names[names.length - 1] : '';
        this.tiles.forEach((t, k) => t.draw(i, names, shot, { ...how, title: k % this.columns ? '' : title }));
      });
      this.describe(shot);
    }
    const ms = performance.now() - began;
    this.draws++;
    if (this.acked !== eyes.number) painted(this.model, this.acked = eyes.number, eyes.seq, ms);
    this.root.dispatchEvent(new CustomEvent('jointseg-painted', { bubbles: true, detail: { step: shot?.step ?? -1, seq: eyes.seq, ms } }));
  }

  /** The shot to draw with its masks unpacked; undefined if they are not yet, then it will be drawn once they are. */
  ready() {
    const frame = this.now();
    if (!frame) return null;
    if (frame === this.eyes.look || frame.masks?.length) return frame;
    const { film } = this.eyes, masks = film.masks(frame), next = film.frames[film.at(frame.step) + 1];
    if (next && !film.masks(next)) film.unpack(next);
    if (masks) return { ...frame, masks, probabilities: this.eyes.look?.step === frame.step ? this.eyes.look.probabilities : {} };
    film.unpack(frame).then(() => this.later());
    return undefined;
  }

  /** Words: which step, how far, the grades under each eye. */
  describe(shot) {
    const { film, begun } = this.eyes, live = this.step === null, at = shot && film.length ? film.at(shot.step) : 0;
    const last = Math.max(0, film.length - 1);
    if (Number(this.time.max) !== last) this.time.max = last;
    if (Number(this.time.value) !== (live ? last : at)) this.time.value = live ? last : at;
    this.showTicks();
    const words = shot ? `step ${shot.step}` : 'no masks yet';
    if (this.frame.textContent !== words) this.frame.textContent = words;
    this.time.setAttribute('aria-valuetext', `${words}${live ? ', live' : `, frame ${at + 1} of ${film.length}`}`);
    this.live.setAttribute('aria-pressed', String(live));
    if (this.play.dataset.shows !== String(this.playing)) {
      this.play.dataset.shows = String(this.playing);
      this.play.replaceChildren(icon(this.playing ? 'pause' : 'play'));
      this.play.setAttribute('aria-label', this.playing ? 'pause the film' : 'play the film');
    }
    const lacking = this.options.layers.probability.on && shot && !shot.probabilities?.[this.options.probabilityOf];
    this.note.textContent = this.problem ?? this.hinted ?? (lacking ? (live ? 'probabilities come with the next look' : 'probabilities are kept of the latest look only: press live') : '');
    for (const [i, tile] of this.tiles.entries()) this.caption(tile, begun.grades[i], shot?.grades?.[i], shot?.sure?.[i]);
    this.say(live && !this.playing ? 10000 : 1500);
  }

  /** A tick under the time line where a knob moved: its title says which. */
  showTicks() {
    const { film, changes } = this.eyes, key = `${film.length} ${film.frames[0]?.step} ${film.frames[film.length - 1]?.step} ${changes.length}`;
    if (this.ticks.dataset.key === key) return;
    this.ticks.dataset.key = key;
    this.ticks.replaceChildren(...(film.length < 2 ? [] : changes.map(([step, title]) => make('i', { title, style: `left: ${100 * film.at(step) / (film.length - 1)}%` }))));
  }

  caption(tile, truth, said, sure) {
    const key = `${truth} ${said} ${sure}`;
    if (tile.words.dataset.key === key) return;
    tile.words.dataset.key = key;
    const mark = truth == null || said == null || said === '–' ? '' : truth === said ? '✓' : '✗';
    const right = make('b', { class: mark === '✓' ? 'jointseg-right' : mark ? 'jointseg-wrong' : '' }, said == null ? '' : `${mark} ${said}`.trim());
    tile.words.replaceChildren(make('span', {}, truth ?? 'grade unknown'), right, ...(tile.unknown ? [make('small', {}, 'no true mask')] : []), ...(sure == null ? [] : [make('small', {}, percent(sure))]));
  }

  /** A sentence for those who listen, at most every `wait` ms; and one on each eye. */
  say(wait) {
    if (this.sayTimer && wait) return;
    clearTimeout(this.sayTimer);
    this.sayTimer = setTimeout(() => { this.sayTimer = null; }, wait);
    const shot = this.ready(), { begun } = this.eyes;
    if (!begun) return;
    const layers = Object.keys(LAYERS).filter(n => this.options.layers[n].on).join(', ');
    const known = begun.grades.filter((g, i) => g != null && shot?.grades?.[i] != null && shot.grades[i] !== '–').length;
    const right = begun.grades.filter((g, i) => g != null && g === shot?.grades?.[i]).length;
    const words = `${begun.n} eyes ${shot ? `at step ${shot.step}` : 'before the first step'}; shown: ${layers || 'nothing'}${known ? `; ${right} of ${known} grades right` : ''}`;
    this.grid.setAttribute('aria-label', words);
    this.said.textContent = words;
    this.tiles.forEach((t, i) => t.panes.forEach(p => p.setAttribute('aria-label', `eye ${i + 1}: grade ${begun.grades[i] ?? 'unknown'}${shot ? `, predicted ${shot.grades[i]}; ${this.found(shot, i)}` : ''}`)));
  }

  /** Which lesions are predicted in an eye, and how much of it is each: 'haemorrhage 1.2% (truth 1.0%)'. */
  found(shot, i) {
    const { begun, truth } = this.eyes, size = begun.width * begun.height, count = map => {
      const n = new Uint32Array(256);
      for (let k = i * size; k < (i + 1) * size; k++) n[map[k]]++;
      return n;
    };
    const said = count(shot.masks), is = count(truth), share = v => `${(100 * v / size).toFixed(1)}%`;
    const parts = begun.classes.map((name, c) => c && (said[c] || is[c]) ? `${name} ${share(said[c])} (truth ${share(is[c])})` : '').filter(Boolean);
    return parts.join(', ') || 'no lesions';
  }

  // ---- news, and files

  hear({ begin, file, buffer, error, words }) {
    if (error !== undefined) this.problem = error;
    if (words !== undefined) this.problem = words || null;
    if (begin) this.begin();
    if (file && this.asked) this.save(file, buffer);
    this.later();
  }

  ask(kind) {
    this.asked = kind;
    this.problem = `making the ${kind.toUpperCase()} …`;
    this.model.send({ kind: 'export', as: kind, options: this.options });
    this.later();
  }

  save({ name, mime }, bytes) {
    this.asked = null;
    this.problem = null;
    const link = make('a', { href: URL.createObjectURL(new Blob([bytes], { type: mime })), download: name });
    this.root.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
}

/** anywidget calls this once for each widget in a tab; `render` once for each place where it is shown. */
export default () => {
  let eyes;
  return {
    initialize({ model }) { eyes = new Eyes(model); },
    render({ model, el }) {
      const view = new EyesView(eyes, model, el);
      return () => view.stop();
    },
  };
};
