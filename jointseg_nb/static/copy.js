// A button that copies a text to the clipboard of whoever presses it.

export default { render({ model, el }) {
  const button = document.createElement("button"), word = "Copy";
  button.className = "jupyter-button widget-button";
  button.textContent = word;
  button.title = "Copy this set-up to the clipboard";
  const say = text => { button.textContent = text; setTimeout(() => { button.textContent = word; }, 1500); };
  const byHand = () => {
    const area = document.createElement("textarea");
    area.value = model.get("text");
    document.body.append(area); area.select();
    const done = document.execCommand("copy");
    area.remove(); button.focus();
    return done;
  };
  button.onclick = async () => {
    try { await navigator.clipboard.writeText(model.get("text")); say("Copied"); }
    catch { say(byHand() ? "Copied" : "Select and copy"); }
  };
  el.append(button);
} };
