/** Keys for those who do not want to reach for the mouse at night. */
import {html} from "./ui.js";
import {close, open} from "./dialogs.js";
import {go, route} from "./router.js";
import {store, who} from "./store.js";
import {keep, kept} from "./theme.js";

export const VIEWS = [["", "Now"], ["hosts", "Hosts"], ["guests", "Guests"], ["evacuations", "Evacuations"], ["migrations", "Migrations"], ["events", "Events"], ["saved", "Saved"], ["policies", "Policies"]];

const OFF = "migrator-keys-off";
const HELP = [
  ["/", "search in what is shown"], ["j  k", "the next or the previous row"], ["Enter", "open it"],
  ["Esc", "leave the search, close a dialog, go up"], [`1 … ${VIEWS.length}`, VIEWS.map(([, text]) => text).join(", ")], ["?", "this help"],
];

function Help() {
  return html`<div><h2 id="dialog-title">Keys</h2>
    <dl class="keys">${HELP.map(([key, what]) => html`<div><dt>${key.split("  ").map((each) => html`<kbd>${each}</kbd> `)}</dt><dd>${what}</dd></div>`)}</dl>
    <label class="check"><input type="checkbox" checked=${kept(OFF) !== "yes"} onChange=${(event) => keep(OFF, event.target.checked ? "no" : "yes")} /> Single keys do this</label>
    <p class="quiet small">The address of each view can be sent to a colleague. What the page can do the command line can do too: <code>migrator --help</code>.</p>
    <p class="small">Signed in as ${store.session ? who(store.session) : "nobody"}.</p>
    <div class="buttons end"><button type="button" class="main" data-first onClick=${close}>Close</button></div></div>`;
}

export const openHelp = () => open(Help);

function step(direction) {
  const rows = [...document.querySelectorAll("main [data-row]")].filter((each) => each.offsetParent !== null);
  if (!rows.length) return;
  const here = rows.findIndex((each) => each === document.activeElement || each.closest("tr, li, article") === (document.activeElement && document.activeElement.closest("tr, li, article")));
  const next = rows[here < 0 ? (direction > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, here + direction))];
  next.focus();
  next.scrollIntoView({block: "nearest"});
}

function up() {
  if (route.parts.length > 1) go(route.parts.slice(0, -1));
  else if (route.parts.length) go([]);
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest && event.target.closest("input, textarea, select");
  // What is on the screen counts: of a dialog that was left by Escape the page is told a moment later.
  if (document.querySelector("dialog[open]")) return;
  if (typing) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.key === "Escape") { up(); return; }
  if (kept(OFF) === "yes") return;
  const search = document.querySelector("[data-search]");
  if (event.key === "/" && search) search.focus();
  else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "?") openHelp();
  else if (event.key >= "1" && event.key <= String(VIEWS.length)) go(VIEWS[Number(event.key) - 1][0] ? [VIEWS[Number(event.key) - 1][0]] : []);
  else return;
  event.preventDefault();
}

export const watchKeys = () => addEventListener("keydown", pressed);
