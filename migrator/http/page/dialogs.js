/** The dialog that is open: one at a time. */
import {html, useEffect, useRef, useState} from "./ui.js";
import {plain} from "./format.js";
import {changed, failed, refresh} from "./store.js";

export let opened = null;
let count = 0;

export function open(view, properties = {}) {
  opened = {view, properties, number: ++count};
  changed();
}

export function close() {
  opened = null;
  changed();
}

export function Dialogs() {
  // The browser tells that a dialog was closed a moment after it was: then the next may be open already.
  const place = useRef(null), closed = useRef(0), shown = opened;
  const onClose = () => { if (closed.current > 0) closed.current -= 1; else if (opened) close(); };
  useEffect(() => {
    const dialog = place.current;
    if (shown && !dialog.open) dialog.showModal();
    if (!shown && dialog.open) { closed.current += 1; dialog.close(); }
    if (shown) { const first = dialog.querySelector("[data-first]"); if (first) first.focus(); }
  }, [shown && shown.number]);
  return html`<dialog ref=${place} aria-labelledby="dialog-title" class=${shown && shown.properties.wide ? "wide" : ""} onClose=${onClose}>
    ${shown ? html`<${shown.view} key=${shown.number} ...${shown.properties} />` : null}</dialog>`;
}

/** A form whose answer may be a refusal, which is said in it; it stays open then. */
export function Form({title, yes, kind = "main", act, ready = true, children}) {
  const [busy, wait] = useState(false), [error, say] = useState("");
  const submit = async (event) => {
    event.preventDefault();
    if (busy || !ready) return;
    wait(true); say("");
    try { await act(); close(); refresh(); } catch (problem) {
      if (problem.status === 401) { close(); failed(problem); } else say(problem.message);
    } finally { wait(false); }
  };
  return html`<form onSubmit=${submit}><h2 id="dialog-title">${title}</h2>${children}
    <p class="bad" role="alert">${plain(error)}</p>
    <div class="buttons end"><button type="button" onClick=${close}>Back</button>
      ${yes ? html`<button type="submit" class=${kind} disabled=${busy || !ready}>${busy ? "One moment…" : yes}</button>` : null}</div></form>`;
}

export const Confirm = ({title, text, yes, kind, act}) => html`<${Form} title=${title} yes=${yes} kind=${kind} act=${act}>
  ${[].concat(text).map((each) => html`<p>${each}</p>`)}</${Form}>`;

export const confirm = (properties) => open(Confirm, properties);
