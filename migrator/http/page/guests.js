/** Guests: searched, sorted and filtered by the service, one page at a time, as there may be twenty thousand. */
import {html, useEffect, useLayoutEffect, useMemo, useState} from "./ui.js";
import * as actions from "./actions.js";
import {Action, Chips, Empty, Heads, Pages, Search, State, useFirst} from "./parts.js";
import {bytes, guestName, plain, rate, sentence} from "./format.js";
import {filterBy, links, route} from "./router.js";
import {failed, isOperator, store} from "./store.js";
import {guests} from "./lists.js";
import {underWay} from "./words.js";

const SIZE = 100;
const COLUMNS = [["name", "Guest"], ["host", "Host"], ["run_state", "State"], ["memory_bytes", "Memory", "num"], ["vcpus", "vCPUs", "num"], ["dirty_rate_bytes_per_second", "Dirty rate", "num"], ["policy", "Policy"], ["managed_by", "Managed by"], ["", ""]];
/** What is shown, by the name of its chip. */
const SHOWN = {"": {}, "not-movable": {movable: false}, moving: {moving: true}, duplicate: {duplicate: true}, unmonitored: {monitored: false}};

/** The filters of an address, as the service takes them. */
function parametersOf(query) {
  const given = (name) => query.get(name) || undefined;
  return {...SHOWN[query.get("show") || ""], search: given("search"), host: given("host"), state: given("state"), managed_by: given("managed"), policy: given("policy"), sort: given("sort"), duplicate: given("duplicate") || (SHOWN[query.get("show") || ""] || {}).duplicate, monitored: given("monitored") || (SHOWN[query.get("show") || ""] || {}).monitored};
}

/** One page of guests; asked again when something of the site changes, and what was shown stays meanwhile. */
function useGuests(parameters) {
  const [found, set] = useState(null), [error, say] = useState(""), key = JSON.stringify(parameters);
  // Before it is painted that this is asked for: the answer takes longer than a frame.
  useLayoutEffect(() => {
    let here = true, wait = 0;
    const look = () => guests(parameters).then(
      (page) => { if (here) { set({...page, key}); say(""); } },
      (problem) => { if (!here) return; if (problem.status === 401 || problem.status === undefined) failed(problem); say(problem.message); });
    if (found && found.key !== key) wait = setTimeout(look, 120); else look();
    return () => { here = false; clearTimeout(wait); };
  }, [key, store.edition]);
  return [found, error];
}

/** Its run state; of one that is held nobody knows where it runs, whatever was seen last. */
export function RunState({guest}) {
  const one = store.migrations.get(guest.migration);
  if (one && one.state === "held") return html`<${State} of="held" text=${`${guest.run_state} when seen last`} />`;
  return html`<${State} of=${guest.run_state === "running" ? "active" : guest.run_state} text=${guest.run_state === "lost-contact" ? "lost contact" : guest.run_state} />`;
}

function Doing({guest}) {
  if (guest.duplicate) return html`<div class="small bad">Its uuid runs twice.</div>`;
  if (guest.migration) {
    const [words, kind] = underWay(store.migrations.get(guest.migration));
    return html`<div class=${`small ${kind}`}><a class=${kind} href=${links.migration(guest.migration)}>${words}</a></div>`;
  }
  if (!guest.movable) return html`<div class="small warn">Cannot move: ${sentence(guest.obstacle)}</div>`;
  return guest.network_problem ? html`<div class="small warn">${sentence(guest.network_problem)}</div>` : null;
}

/** Drawn anew only when something of it has changed: an event is about one of a hundred. */
function GuestRow({guest, withHost}) {
  return useMemo(() => html`<tr role="row"><td role="cell" class="name"><a data-row href=${links.guest(guest.guest)}>${guestName(guest)}</a><${Doing} guest=${guest} /></td>
    ${withHost ? html`<td role="cell" data-of="Host"><a href=${links.host(guest.host)}>${guest.host}</a></td>` : null}
    <td role="cell" data-of="State"><${RunState} guest=${guest} /></td>
    <td role="cell" class="num" data-of="Memory">${bytes(guest.memory_bytes)}</td><td role="cell" class="num" data-of="vCPUs">${guest.vcpus}</td>
    <td role="cell" class="num" data-of="Dirty rate">${rate(guest.dirty_rate_bytes_per_second)}</td><td role="cell" data-of="Policy">${guest.policy}</td><td role="cell" data-of="Managed by">${plain(guest.managed_by) || "–"}</td>
    <td role="cell"><${Action} label="Move…" about=${guestName(guest)} why=${guest.migration ? `it is ${underWay(store.migrations.get(guest.migration))[0]}` : guest.movable ? "" : "it cannot move"} press=${() => actions.move(guest)} /></td></tr>`, [guest, withHost, store.migrations.get(guest.migration), isOperator()]);
}

export function GuestTable({filters, columns = [], sort = "", change = null, offset = 0, go = null, tell}) {
  const [own, setOwn] = useState({sort: "name", offset: 0});
  const order = change ? sort || "host" : own.sort, from = go ? offset : own.offset, [found, error] = useGuests({...filters, sort: order, limit: SIZE, offset: from || undefined});
  useEffect(() => { if (found && tell) tell(found); }, [found]);
  const rows = found ? found.items.slice(0, SIZE) : [], drawn = useFirst(rows);
  if (error) return html`<p class="bad" role="status">${error}</p>`;
  if (!found) return html`<${Empty}>Asking…</${Empty}>`;
  const shown = COLUMNS.filter(([field]) => !columns.includes(field));
  return html`<div class="scroll"><table role="table" class="blocks"><caption class="unseen">Guests</caption><${Heads} columns=${shown} sort=${order} change=${change || ((value) => setOwn({sort: value, offset: 0}))} />
    <tbody role="rowgroup">${drawn.map((guest) => html`<${GuestRow} key=${`${guest.guest} ${guest.host}`} guest=${guest} withHost=${!columns.includes("host")} />`)}</tbody></table></div>
    ${rows.length ? null : html`<${Empty}>No guest fits.</${Empty}>`}
    <${Pages} offset=${from} shown=${rows.length} total=${found.total ?? found.items.length} size=${SIZE} what="guest" go=${go || ((next) => setOwn({...own, offset: next}))} />`;
}

export function Guests({query}) {
  const [counts, setCounts] = useState(store.guestCounts), search = query.get("search") || "", show = query.get("show") || "", state = query.get("state") || "", managed = query.get("managed") || "", host = query.get("host"), policy = query.get("policy");
  const set = (changes) => filterBy({...changes, offset: ""}), of = counts || {};
  const states = Object.entries(of.run_state || {}).map(([name, n]) => [name, name === "lost-contact" ? "lost contact" : name, n, name === "lost-contact" ? "bad" : ""]);
  const shown = [["not-movable", "cannot move", of.not_movable], ["moving", "in a migration", of.moving], ["duplicate", "run twice", of.duplicate, "bad"], ["unmonitored", "without a monitor", of.unmonitored]].filter(([name, , n]) => n || name === show);
  const managers = Object.entries(of.managed_by || {}).filter(([name]) => name).map(([name, n]) => [name, plain(name), n]);
  return html`<h1>Guests${host ? ` of ${host}` : ""}${policy ? ` with the policy ${policy}` : ""}</h1><div class="tools"><${Search} value=${search} change=${(value) => set({search: value})} label="Name, uuid or host" />
      <${Chips} label="State" items=${states} chosen=${state} choose=${(value) => set({state: value})} /><${Chips} label="Only those" items=${shown} chosen=${show} choose=${(value) => set({show: value})} />
      ${managers.length ? html`<${Chips} label="Managed by" items=${managers} chosen=${managed} choose=${(value) => set({managed: value})} />` : null}
      ${host ? html`<button type="button" class="chip" onClick=${() => set({host: ""})}>all hosts</button>` : null}${policy ? html`<button type="button" class="chip" onClick=${() => set({policy: ""})}>all policies</button>` : null}</div>
    <${GuestTable} filters=${parametersOf(route.query)} sort=${query.get("sort") || ""} change=${(value) => set({sort: value})} offset=${Number(query.get("offset")) || 0} go=${(next) => filterBy({offset: next ? String(next) : ""})} tell=${(page) => page.counts && setCounts(page.counts)} />`;
}

