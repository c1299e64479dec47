/** Guests that are saved in files: where, whether each is still there, and loading it again. */
import {html, useState} from "./ui.js";
import * as actions from "./actions.js";
import {ask} from "./api.js";
import {Action, Empty, Search, State, useAsked} from "./parts.js";
import {bytes, clock, guestName, plain, sentence} from "./format.js";
import {filterBy, links} from "./router.js";
import {store} from "./store.js";
import {matches} from "./lists.js";

const TODO = {
  outdated: "The file is of no use any more: delete it.",
  missing: "Nobody knows this guest anywhere. Look for the file in a backup, or start the guest from its disks.",
  unreadable: "What is there is not what was saved. Look for a copy of the file, or start the guest from its disks.",
  unknown: "See whether the host is up.",
};

/** Where it can be loaded, or why nowhere. */
function Where({one}) {
  const fit = one.hosts.filter((each) => each.loadable), others = one.hosts.filter((each) => !each.loadable);
  if (one.state !== "saved") return html`<span class="quiet">–</span>`;
  return html`${fit.length ? fit.map((each) => each.host).join(", ") : html`<span class="bad">nowhere</span>`}
    ${others.length ? html`<details class="small"><summary>why not elsewhere</summary><ul>${others.map((each) => html`<li key=${each.host}>${each.host}: ${sentence(each.reason)}</li>`)}</ul></details>` : null}`;
}

/** Why its file cannot be deleted now. */
function whyKept(one) {
  if (one.state === "saving" || one.state === "loading") return "a migration uses it now";
  return one.state === "unknown" ? "its host cannot be asked" : "";
}

function why(one) {
  if (one.state === "saving" || one.state === "loading") return "a migration does that now";
  if (one.state !== "saved") return "see its state";
  return one.hosts.some((each) => each.loadable) ? "" : "no host can load it";
}

export function Saved({query}) {
  const search = query.get("search") || "", [looks, look] = useState(0);
  const done = store.pastMigrations.find((one) => one.file_use), going = [...store.migrations.values()].filter((one) => one.file_use).map((one) => one.id).join();
  const asked = useAsked(() => ask("saved", {seconds: 60}), [looks, done && done.id, going]), all = asked.value ? asked.value.items : [];
  const rows = all.filter((one) => matches(search, guestName(one), one.guest, one.host, one.file, one.state));
  return html`<div class="row"><h1>Saved guests</h1><span class="grow"></span><button type="button" onClick=${() => look(looks + 1)}>Look again</button></div>
    <p class="quiet small">A guest that is saved is in its file and runs nowhere, until it is loaded. Its disks must not be written to meanwhile. Saving is begun from the guest's own view.</p>
    <div class="tools"><${Search} value=${search} change=${(value) => filterBy({search: value})} label="Guest, host, file or state" /></div>
    ${asked.error ? html`<p class="bad" role="alert">${sentence(asked.error)}</p>` : null}
    ${asked.value ? null : asked.error ? null : html`<${Empty}>Asking every host…</${Empty}>`}
    ${rows.length ? html`<div class="scroll"><table role="table" class="blocks"><caption class="unseen">Saved guests</caption>
      <thead role="rowgroup"><tr role="row">${["Guest", "State", "File", "Saved", "Size", "By QEMU", "Can be loaded on", ""].map((each, n) => html`<th key=${n} scope="col" role="columnheader" class=${n === 4 ? "num" : ""}>${each || html`<span class="unseen">What can be done</span>`}</th>`)}</tr></thead>
      <tbody role="rowgroup">${rows.map((one) => html`<tr role="row" key=${one.migration}><td role="cell" class="name"><a data-row href=${links.migration(one.migration)}>${guestName(one)}</a></td>
        <td role="cell"><${State} of=${one.state} />${one.reason ? html`<div class="small">${sentence(one.reason)}</div>` : null}${TODO[one.state] ? html`<div class="small quiet">${TODO[one.state]}</div>` : null}</td>
        <td role="cell" data-of="File" class="name"><a href=${links.host(one.host)}>${one.host}</a> <code>${plain(one.file)}</code></td>
        <td role="cell" data-of="Saved" class="host">${clock(one.saved_at, {day: true})}</td><td role="cell" data-of="Size" class="num">${bytes(one.size_bytes)}</td><td role="cell" data-of="By QEMU">${one.qemu_version}</td>
        <td role="cell" data-of="Can be loaded on"><${Where} one=${one} /></td>
        <td role="cell"><div class="buttons"><${Action} label="Load…" about=${guestName(one)} why=${why(one)} press=${() => actions.load(one)} />
          <${Action} label=${one.state === "missing" ? "Forget…" : "Delete…"} kind="danger" about=${guestName(one)} why=${whyKept(one)} press=${() => actions.discard(one, () => look(looks + 1))} /></div></td></tr>`)}</tbody></table></div>` : null}
    ${asked.value && !rows.length ? html`<${Empty}>${all.length ? "None that fits." : "No guest is saved in a file."}</${Empty}>` : null}`;
}
