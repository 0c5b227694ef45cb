// A page without a kernel: stands in for the model that Jupyter gives a widget. The saved film and the tests use it.

const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));

/** A model of `traits`; what the widget sends goes to `answer(words)`, what it is to receive goes to `hear`. */
export function lonely(traits, answer) {
  const listeners = {}, fire = (what, ...news) => { for (const f of listeners[what] ?? []) f(...news); };
  return {
    get: name => traits[name],
    set(name, value) { traits[name] = value; fire(`change:${name}`); },
    on(what, f) { (listeners[what] ??= new Set()).add(f); },
    off(what, f) { listeners[what]?.delete(f); },
    save_changes: () => answer({ kind: 'traits', traits }),
    send: words => answer(words),
    hear: (words, buffers) => fire('msg:custom', words, buffers.map(b => new DataView(bytes(b).buffer))),
  };
}

/** Show `widget` in `el`, with `messages` as the answer to its hello. */
export function start(widget, el, traits, messages) {
  const model = lonely(traits, words => {
    if (words.kind === 'hello') setTimeout(() => { for (const m of messages) model.hear(m.words, m.buffers); });
  });
  const made = widget();
  made.initialize({ model });
  made.render({ model, el });
  return model;
}
