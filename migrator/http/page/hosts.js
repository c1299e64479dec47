/** All hosts: searched, sorted and filtered in the page, which has them all. */
import {html, useMemo} from "./ui.js";
import * as actions from "./actions.js";
import {Action, Chips, Empty, Heads, Pages, Search, State, useFirst} from "./parts.js";
import {bytes, clock, number, plain, rate} from "./format.js";
import {filterBy, href, links} from "./router.js";
import {isOperator, store} from "./store.js";
import {matches, sorted} from "./lists.js";

const SIZE = 100;
const COLUMNS = [["host", "Host"], ["state", "State"], ["guests", "Guests", "num"], ["memory_free_bytes", "Free memory", "num"], ["cpus", "CPUs", "num"], ["link_bytes_per_second", "Link", "num"], ["", ""]];

/** Filters by name: which hosts they mean. */
const FILTERS = {
  active: (host) => host.state === "active", draining: (host) => host.state === "draining", maintenance: (host) => host.state === "maintenance",
  down: (host) => !host.up, cordoned: (host) => host.cordoned, planned: (host) => Boolean(host.scheduled),
};

export function HostState({host}) {
  const twice = (host.guests_duplicate || []).length;
  return html`<${State} of=${host.state} />${host.cordoned ? html` <span class="state warn">cordoned</span>` : null}${host.up ? null : html` <span class="state bad">unreachable</span>`}${twice ? html` <span class="state bad">${twice} run twice</span>` : null}`;
}

/** The evacuation or restore that works on it now. */
const goingOn = (host) => [...store.evacuations.values()].find((one) => one.host === host.host && one.state !== "scheduled");

/** Why it takes no guests though nothing empties it any more; empty where that is not so. */
export const leftDraining = (host) => (host.state === "draining" && !goingOn(host) ? `Its last evacuation ended with guests still here${host.guests ? "" : ", which have gone since"}: it takes no others. Evacuate it again, restore it, or activate it.` : "");

/** What can be done with a host. `home`: bringing its guests home is offered though it is active. */
export function HostButtons({host, home = false}) {
  const about = host.host, going = goingOn(host), busy = going ? (going.kind === "restore" ? "it is being filled again" : "it is being emptied") : "", away = host.up ? "" : "it cannot be reached";
  const restore = host.state === "maintenance" || (host.state === "draining" && !going) || home;
  return html`<div class="buttons">${host.state === "maintenance" ? null : html`<${Action} label="Evacuate…" about=${about} why=${busy || away} press=${() => actions.evacuate(about)} />`}
    ${restore ? html`<${Action} label="Restore" about=${about} why=${busy || away || (host.cordoned ? "it is cordoned" : "")} press=${() => actions.restore(about)} />` : null}
    ${host.state === "maintenance" || (host.state === "draining" && !going) ? html`<${Action} label="Activate" about=${about} why=${busy} press=${() => actions.activate(about)} />` : null}
    ${host.cordoned ? html`<${Action} label="Uncordon" about=${about} press=${() => actions.uncordon(about)} />` : host.state === "active" ? html`<${Action} label="Cordon" about=${about} press=${() => actions.cordon(about)} />` : null}</div>`;
}

/** Drawn anew only when something of it has changed: an event is about one of a hundred. */
function HostRow({host}) {
  return useMemo(() => html`<tr role="row"><td role="cell" class="name"><a data-row href=${links.host(host.host)}>${host.host}</a>${host.error ? html`<div class="small bad">${plain(host.error)}</div>` : null}${leftDraining(host) ? html`<div class="small warn">${leftDraining(host)}</div>` : null}${host.scheduled ? html`<div class="small"><a href=${links.evacuation(host.scheduled)}>to be emptied from ${clock(host.scheduled_at)}</a></div>` : null}</td>
    <td role="cell"><${HostState} host=${host} /></td><td role="cell" class="num" data-of="Guests"><a href=${href(["guests"], {host: host.host})} aria-label=${`${host.guests} guests of ${host.host}`}>${number(host.guests)}</a>${host.guests_not_movable ? html` <a class="warn small" href=${href(["guests"], {host: host.host, show: "not-movable"})}>${host.guests_not_movable} cannot move</a>` : null}</td>
    <td role="cell" class="num" data-of="Free memory">${bytes(host.memory_free_bytes)} <span class="quiet">of ${bytes(host.memory_total_bytes)}</span></td><td role="cell" class="num" data-of="CPUs">${host.cpus}</td><td role="cell" class="num" data-of="Link">${host.link_bytes_per_second ? rate(host.link_bytes_per_second) : "–"}</td>
    <td role="cell"><${HostButtons} host=${host} /></td></tr>`, [host, goingOn(host), isOperator()]);
}

export function Hosts({query}) {
  const search = query.get("search") || "", state = query.get("state") || "", sort = query.get("sort") || "host", offset = Number(query.get("offset")) || 0;
  const found = [...store.hosts.values()].filter((host) => matches(search, host.host, host.address, host.error, ...Object.entries(host.labels).map(([name, value]) => `${name}=${value}`), ...Object.values(host.qemus)));
  const chips = Object.entries(FILTERS).map(([name, fits]) => [name, name === "down" ? "unreachable" : name, found.filter(fits).length, name === "down" ? "bad" : ""]).filter(([name, , n]) => n || name === state);
  const fitting = sorted(FILTERS[state] ? found.filter(FILTERS[state]) : found, sort), rows = fitting.slice(offset, offset + SIZE), drawn = useFirst(rows);
  return html`<h1>Hosts</h1><div class="tools"><${Search} value=${search} change=${(value) => filterBy({search: value, offset: ""})} label="Name, address, label=value, QEMU" />
      <${Chips} label="State" items=${chips} chosen=${state} choose=${(value) => filterBy({state: value, offset: ""})} /></div>
    <div class="scroll"><table role="table" class="blocks"><caption class="unseen">Hosts</caption><${Heads} columns=${COLUMNS} sort=${sort} change=${(value) => filterBy({sort: value, offset: ""})} />
      <tbody role="rowgroup">${drawn.map((host) => html`<${HostRow} key=${host.host} host=${host} />`)}</tbody></table></div>
    ${rows.length ? null : html`<${Empty}>No host fits.</${Empty}>`}<${Pages} offset=${offset} shown=${rows.length} total=${fitting.length} size=${SIZE} what="host" go=${(next) => filterBy({offset: next ? String(next) : ""})} />`;
}
