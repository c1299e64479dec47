/** Migrations as rows: those under way, and those that have ended. */
import {html, useEffect, useState} from "./ui.js";
import {ask, query} from "./api.js";
import {Empty, Search, Section, State} from "./parts.js";
import {clock, guestName, percent, plain, rate, seconds} from "./format.js";
import {filterBy, links} from "./router.js";
import {failed, store} from "./store.js";
import {ENDED, verdict, wayOf} from "./words.js";
import {matches} from "./lists.js";

/** What is to be said of one that is under way, in a few words. */
export function progressOf(one) {
  const forecast = one.forecast, parts = [];
  if (one.state === "held") return `a person must look${one.error ? `: ${plain(one.error)}` : ""}`;
  if (one.waiting_for) parts.push(`waits for ${plain(one.waiting_for)}`);
  if (one.round > 1) parts.push(`round ${one.round}`);
  if (one.throttle_ratio > 0.01) parts.push(`slowed down by ${percent(one.throttle_ratio)}`);
  if (forecast && forecast.p50_seconds !== null && forecast.p50_seconds !== undefined) parts.push(`${seconds(forecast.p50_seconds)} to go`);
  const said = verdict(forecast);
  if (said) parts.push(said);
  return parts.join(", ");
}

export function MigrationRows({items, label}) {
  const order = [...items].sort((a, b) => (b.state === "held") - (a.state === "held") || a.created_at.localeCompare(b.created_at));
  return html`<ul class="rows" aria-label=${label}>${order.slice(0, 200).map((one) => html`<li key=${one.id} class=${`card moving ${one.state}`}>
    <a data-row href=${links.migration(one.id)}>${guestName(one)}</a> <${State} of=${one.state} />
    <span class="quiet small">${wayOf(one)}</span>
    <progress max="1" value=${one.progress_ratio} aria-label=${`Progress of ${guestName(one)}`}></progress>
    <span class="small figures">${percent(one.progress_ratio)}${one.bandwidth_bytes_per_second && one.state !== "held" ? ` at ${rate(one.bandwidth_bytes_per_second)}` : ""}</span>
    <span class="small why">${progressOf(one)}</span></li>`)}</ul>`;
}

export const stoodStill = (one) => (one.downtime_seconds === null || one.downtime_seconds === undefined ? "not at all" : seconds(one.downtime_seconds));

export function PastMigrations({items}) {
  if (!items.length) return null;
  return html`<div class="scroll"><table role="table" class="blocks"><caption class="unseen">Migrations that have ended</caption>
    <thead role="rowgroup"><tr role="row">${["Guest", "From", "To", "Result", "Took", "Downtime (ceiling)", "Ended"].map((each, n) => html`<th scope="col" role="columnheader" class=${n > 3 ? "num" : ""}>${each}</th>`)}</tr></thead>
    <tbody role="rowgroup">${items.map((one) => html`<tr role="row" key=${one.id}>
      <td role="cell" class="name"><a data-row href=${links.migration(one.id)}>${guestName(one)}</a></td>
      <td role="cell" data-of="From" class="host">${one.source}</td><td role="cell" data-of="To" class="host">${one.file_use === "save" ? html`<code>${plain(one.file)}</code>` : one.destination}</td>
      <td role="cell"><${State} of=${one.state} bad=${one.ceiling_exceeded} />${one.error ? html`<div class="quiet small">${plain(one.error)}</div>` : null}</td>
      <td role="cell" data-of="Took" class="num">${one.duration_seconds === null ? "" : seconds(one.duration_seconds)}</td>
      <td role="cell" data-of="Downtime (ceiling)" class=${`num ${one.ceiling_exceeded ? "bad" : ""}`}>${stoodStill(one)} (${seconds(one.max_downtime_seconds)}${one.ceiling_exceeded ? ", exceeded" : ""})</td>
      <td role="cell" data-of="Ended" class="num">${clock(one.ended_at)}</td></tr>`)}</tbody></table></div>`;
}

export function Migrations({query: given}) {
  const search = given.get("search") || "", state = given.get("state") || "", host = given.get("host") || "", guest = given.get("guest") || "";
  const [older, add] = useState({items: null, next: null, of: null}), key = `${state} ${host} ${guest}`;
  const more = async () => {
    try {
      const page = await ask(`migrations${query({limit: 100, state, host, guest, before: older.of === key ? older.next : undefined})}`);
      const before = older.of === key && older.items ? older.items : [];
      add({items: before.concat(page.items.filter((one) => ENDED.has(one.state))), next: page.next, of: key});
    } catch (error) { failed(error); }
  };
  // Of one host, or guest, all are asked for at once: those that are known without are the last of the site.
  useEffect(() => { if (host || guest) more(); }, [key]);
  const fits = (one) => (!state || one.state === state) && (!host || [one.source, one.destination].includes(host)) && (!guest || one.guest === guest) && matches(search, guestName(one), one.guest, one.source, one.destination, one.id, one.policy, one.error || "");
  const active = [...store.migrations.values()].filter(fits);
  const known = older.of === key && older.items ? older.items : [];
  const seen = new Set(store.pastMigrations.map((one) => one.id));
  const past = [...store.pastMigrations, ...known.filter((one) => !seen.has(one.id))].filter(fits);
  const begun = older.of === key && older.items;
  return html`<h1>Migrations${host ? ` from and to ${host}` : ""}${guest ? ` of ${plain(guest)}` : ""}</h1>
    <div class="tools"><${Search} value=${search} change=${(value) => filterBy({search: value})} label="Guest, host, id or reason" />
      <label class="inline">Result <select value=${state} onChange=${(event) => filterBy({state: event.target.value})}>
        <option value="">any</option>${["completed", "failed", "cancelled", "held", "guest-ended"].map((each) => html`<option value=${each}>${each}</option>`)}</select></label>
      ${host || guest ? html`<button type="button" class="chip" onClick=${() => filterBy({host: "", guest: ""})}>all migrations</button>` : null}</div>
    ${active.length ? html`<${Section} title=${`Under way (${active.length})`} id="active"><${MigrationRows} items=${active} label="Under way" /></${Section}>` : null}
    <${Section} title="Ended" id="past">${past.length ? html`<${PastMigrations} items=${past} />` : html`<${Empty}>None among those that were asked for.</${Empty}>`}
      ${!begun || older.next ? html`<div class="buttons"><button type="button" onClick=${more}>${begun ? "Older ones" : "Show all that ended"}</button></div>` : null}</${Section}>`;
}

