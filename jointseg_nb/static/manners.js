// What ipywidgets leave out: pressed, unfolded and named for screen readers, and keys that stay with the widget that has the focus.

const name = (node, text) => { if (text && !node.getAttribute("aria-label")) node.setAttribute("aria-label", text); };
function mend(root) {
  for (const b of root.querySelectorAll(".widget-toggle-button, .widget-toggle-buttons .widget-toggle-button, .widget-toggle-buttons button")) {
    const on = String(b.classList.contains("mod-active"));
    if (b.getAttribute("aria-pressed") !== on) b.setAttribute("aria-pressed", on);
  }
  for (const h of root.querySelectorAll(".jointseg-fold")) {
    const on = String(h.classList.contains("mod-active"));
    if (h.getAttribute("aria-expanded") !== on) { h.setAttribute("aria-expanded", on); }
    h.removeAttribute("aria-pressed");
  }
  for (const row of root.querySelectorAll(".widget-inline-hbox")) {
    const label = row.querySelector("label, .widget-label"), text = label && label.textContent;
    for (const f of row.querySelectorAll("input, select, textarea, .noUi-handle, .widget-readout")) name(f, text);
    for (const g of row.querySelectorAll(".widget-toggle-buttons")) { g.setAttribute("role", "group"); name(g, text); }
  }
  for (const p of root.querySelectorAll(".widget-hprogress, .progress")) name(p, "progress of the training");
}
export default { render({ model, el }) {
  el.style.display = "none";
  let watcher, frame, keep, tries = 0;
  const begin = () => {
    const root = el.closest(".jointseg");
    if (!root) { if (tries++ < 200) frame = setTimeout(begin, 25); return; }
    root.setAttribute("role", "region"); name(root, model.get("label"));
    let due = false;
    const soon = () => { if (!due) { due = true; setTimeout(() => { due = false; mend(root); }, 50); } };
    watcher = new MutationObserver(soon);
    watcher.observe(root, { subtree: true, childList: true, attributes: true, attributeFilter: ["class"] });
    keep = e => { if (root.contains(e.target)) e.target.toggleAttribute("data-lm-suppress-shortcuts", !(e.ctrlKey || e.metaKey || e.altKey)); };
    window.addEventListener("keydown", keep, true);
    mend(root);
  };
  begin();
  return () => { clearTimeout(frame); watcher?.disconnect(); if (keep) window.removeEventListener("keydown", keep, true); };
} };
