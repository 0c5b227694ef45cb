// What the two widgets share: bytes from the kernel, news in the order in which it came, and the theme of the page.

/** The bytes of a message's buffer, whatever the front end wraps them in. */
export function bytesOf(buffer) {
  if (buffer instanceof ArrayBuffer) return new Uint8Array(buffer);
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}

/** What Python's zlib.compress packed, unpacked by the browser itself. */
export async function inflate(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Say hello to the kernel and pass on what it answers, one message after the other.
 * `take(words, buffers)` may be asynchronous; `failed(error)` hears of a message that could not be read.
 * Gives a function that says hello again, unless it was said `patience` ms ago or less: for an answer that was lost.
 */
export function listen(model, take, failed, patience = 3000) {
  let queue = Promise.resolve(), said = -Infinity;
  model.on('msg:custom', (words, buffers) => {
    queue = queue.then(() => take(words, buffers ?? [])).catch(failed);
  });
  const greet = () => {
    if (performance.now() - said <= patience) return;
    said = performance.now();
    model.send({ kind: 'hello' });
  };
  greet();
  return greet;
}

/** Tell the kernel that message `number`, made of snapshot `seq`, is on the screen; `ms` is what drawing it took. */
export function painted(model, number, seq, ms) {
  model.set('painted', { number, seq, ms: Math.round(ms * 100) / 100 });
  model.save_changes();
}

/** Keep `root.dataset.theme` at 'dark' where the page writes in a light colour, else at 'light'. */
export function followTheme(root, changed = () => {}) {
  const look = () => {
    const [r, g, b] = (getComputedStyle(root).color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
    const theme = 0.3 * r + 0.6 * g + 0.1 * b > 128 ? 'dark' : 'light';
    if (root.dataset.theme === theme) return;
    root.dataset.theme = theme;
    changed();
  };
  const later = () => { look(); setTimeout(look, 400); }; // a style sheet may come after the mark on <body>
  const observer = new MutationObserver(later);
  for (const e of [document.documentElement, document.body]) {
    observer.observe(e, { attributes: true, attributeFilter: ['class', 'style', 'theme', 'data-jp-theme-name', 'data-jp-theme-light', 'data-vscode-theme-kind'] });
  }
  const system = matchMedia('(prefers-color-scheme: dark)');
  system.addEventListener('change', later);
  requestAnimationFrame(look);
  return () => { observer.disconnect(); system.removeEventListener('change', later); };
}

/** Is any of `el` on the screen? `changed()` is called when that changes. */
export function watchSeen(el, changed) {
  const state = { seen: true };
  const observer = new IntersectionObserver(entries => {
    state.seen = entries[entries.length - 1].isIntersecting;
    changed();
  });
  observer.observe(el);
  state.stop = () => observer.disconnect();
  return state;
}

/** An element: `make('button', {class: 'x', title: 'y', onclick: f}, child, 'text')`. */
export function make(tag, attributes = {}, ...children) {
  const el = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) {
    if (k.startsWith('on')) el.addEventListener(k.slice(2), v);
    else if (v === true) el.setAttribute(k, '');
    else if (v !== false && v != null) el.setAttribute(k, v);
  }
  el.append(...children);
  return el;
}
