/** Small pieces that every view is made of. */
import {html, useEffect, useLayoutEffect, useMemo, useRef, useState} from "./ui.js";
import {count, number, plain} from "./format.js";
import {name, tone} from "./words.js";
import {links} from "./router.js";
import {failed, store} from "./store.js";

export const State = ({of, bad, text}) => html`<span class=${`state ${bad ? "bad" : tone(of)}`}>${text || name(of)}</span>`;

const COMMAND = /migrator (restore|activate|evacuate|uncordon|cordon|cancel|status|resolve) ([A-Za-z0-9._-]*[A-Za-z0-9_-])/;

/** A sentence of the service: a command that it names is a link to the view with that button. */
export function Said({text}) {
  const given = String(text ?? ""), found = COMMAND.exec(given);
  if (!found) return given;
  const [command, verb, subject] = found, after = given.slice(found.index + command.length);
  const kind = store.hosts.has(subject) ? "host" : store.evacuations.has(subject) || store.pastEvacuations.some((one) => one.id === subject) ? "evacuation" : "migration";
  const label = kind === "host" ? `${verb[0].toUpperCase()}${verb.slice(1)} ${subject}` : verb === "cancel" ? `cancel ${subject}` : `see ${subject}`;
  return html`${given.slice(0, found.index)}<a href=${links[kind](subject)}>${label}</a><${Said} text=${after} />`;
}

/** A button that says why it cannot be pressed; only operators have any. */
export function Action({label, why = "", kind = "", press, about = ""}) {
  const [told, tell] = useState(false), title = why ? `Not now: ${why}` : "";
  if (store.session === null || store.session.role !== "operator") return null;
  return html`<span class=${`action ${told ? "told" : ""}`}><button type="button" class=${kind} aria-label=${about ? `${label} ${about}` : undefined}
    aria-disabled=${why ? "true" : undefined} title=${title} onClick=${() => { if (why) tell(!told); else press(); }}>${label}</button>${
    why ? html`<span class="why" role=${told ? "status" : undefined}>${why}</span>` : null}</span>`;
}

export function Section({title, id, aside, children}) {
  return html`<section aria-labelledby=${id}><div class="row"><h2 id=${id}>${title}</h2>${aside}</div>${children}</section>`;
}

export const Facts = ({items}) => html`<dl class="facts">${items.filter(Boolean).map(([term, value, kind]) => html`
  <div><dt>${term}</dt><dd class=${kind || ""}>${value}</dd></div>`)}</dl>`;

export const Findings = ({items}) => html`<ul class="findings">${items.map((each) => html`
  <li><span class=${`state ${each.severity === "error" ? "bad" : "warn"}`}>${each.severity}</span> <code>${each.code}</code>${" "}
    <span><${Said} text=${plain(each.message)} /></span>${each.remedy ? html` <span class="quiet">What to do: <${Said} text=${plain(each.remedy)} />.</span>` : null}</li>`)}</ul>`;

/** What an asked-for document is, or why it cannot be had; asked again when `again` changes. */
export function useAsked(action, again) {
  const [found, set] = useState({value: null, error: ""});
  useLayoutEffect(() => {
    let here = true;
    action().then((value) => here && set({value, error: ""}), (error) => {
      if (!here) return;
      if (error.status === 401 || error.status === undefined) failed(error);
      set((old) => ({...old, error: error.message}));
    });
    return () => { here = false; };
  }, again);
  return found;
}

/** The width that an element has, in pixels. */
export function useWidth(least = 280) {
  const [width, set] = useState(0), watcher = useRef(null);
  const place = useMemo(() => (element) => {
    if (watcher.current) watcher.current.disconnect();
    watcher.current = element && new ResizeObserver((entries) => set(Math.max(least, Math.floor(entries[0].contentRect.width))));
    if (element) watcher.current.observe(element);
  }, []);
  return [place, width];
}

/** Chips, each with its count; one is pressed at a time. */
export function Chips({label, items, chosen, choose}) {
  return html`<div class="chips" role="group" aria-label=${label}>${items.map(([value, text, n, kind]) => html`
    <button type="button" key=${value} class=${`chip ${kind || ""}`} aria-pressed=${String(chosen === value)} onClick=${() => choose(chosen === value ? "" : value)}>${text}${
      n === undefined ? null : html` <b>${number(n)}</b>`}</button>`)}</div>`;
}

export function Search({value, change, label}) {
  return html`<input type="search" class="search" data-search aria-label=${label} placeholder=${`${label}  ( / )`} value=${value}
    onInput=${(event) => change(event.target.value)} spellcheck="false" autocomplete="off" maxlength="200" />`;
}

/** Column headings that sort; `columns`: [field, text, kind]. */
export function Heads({columns, sort, change}) {
  return html`<thead role="rowgroup"><tr role="row">${columns.map(([field, text, kind]) => {
    const down = sort === `-${field}`, up = sort === field;
    const order = down ? "descending" : up ? "ascending" : "none";
    return html`<th scope="col" role="columnheader" class=${kind || ""} aria-sort=${field ? order : undefined}>${field ? html`
      <button type="button" class="sort" onClick=${() => change(up ? `-${field}` : field)}>${text}<span aria-hidden="true">${down ? " ▾" : up ? " ▴" : ""}</span></button>` : text || html`<span class="unseen">What can be done</span>`}</th>`;
  })}</tr></thead>`;
}

/** So many rows fill a screen. */
const SCREEN = 30;

/** Rows to draw of a list: those of the first screen, and once they are painted all. */
export function useFirst(rows) {
  const [painted, set] = useState(false);
  useEffect(() => { const wait = rows.length ? setTimeout(() => set(true)) : 0; return () => clearTimeout(wait); }, [rows.length > 0]);
  return painted ? rows : rows.slice(0, SCREEN);
}

/** Which rows are shown, of how many, and the way to the others. */
export function Pages({offset, shown, total, size, go, what}) {
  if (total <= size) return html`<p class="quiet small pages">${count(total, what)}</p>`;
  return html`<nav class="pages" aria-label="Pages"><span class="quiet small">${`${number(offset + 1)} to ${number(offset + shown)} of ${count(total, what)}`}</span>
    <button type="button" disabled=${offset === 0} onClick=${() => go(Math.max(0, offset - size))}>Previous</button>
    <button type="button" disabled=${offset + shown >= total} onClick=${() => go(offset + size)}>Next</button></nav>`;
}

export const Empty = ({children}) => html`<p class="quiet empty">${children}</p>`;
