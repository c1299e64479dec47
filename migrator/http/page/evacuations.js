/** Evacuations, restores, group moves and rolls: as cards while they run or are planned, as rows once they have ended. */
import {html, useState} from "./ui.js";
import * as actions from "./actions.js";
import {ask, query} from "./api.js";
import {Action, Empty, Said, Section, State} from "./parts.js";
import {clock, count, number, plain, relative, seconds, sentence} from "./format.js";
import {links} from "./router.js";
import {failed, store} from "./store.js";
import {stillThere, titleOf} from "./words.js";

export const leftOf = (one) => Math.max(one.guests.length, one.guests_left, 1);

/** What is to be known of one at a glance, in one line. */
export function statusOf(one) {
  const parts = [];
  if (one.state === "scheduled") {
    parts.push(`begins ${clock(one.starts_at)}, ${relative(one.starts_at)}`);
    if (one.window_ends_at) parts.push(`must end by ${clock(one.window_ends_at)}`);
  } else if (one.kind === "roll") {
    const done = (one.hosts || []).filter((each) => each.stage === "done").length;
    parts.push(`${done} of ${count((one.hosts || []).length, "host")} done`);
  } else if (one.ended_at && !one.guests_left && one.guests.length) parts.push(`${one.guests.length === 1 ? "its guest" : `all ${count(one.guests.length, "guest")}`} ${one.guests.length === 1 ? "has" : "have"} ${one.kind === "restore" ? "come home" : one.kind === "group" ? "moved" : "left"}`);
  else parts.push(`${number(one.guests_left)} of ${count(leftOf(one), "guest")} ${stillThere(one)}`);
  if (one.forecast_end_at && !one.ended_at) parts.push(`ends about ${clock(one.forecast_end_at)}${one.forecast_end_p90_at ? `, at the latest ${clock(one.forecast_end_p90_at)}` : ""}`);
  if (one.deadline && one.state !== "scheduled") parts.push(`deadline ${clock(one.deadline)}`);
  return parts.join("; ");
}

export function RollHosts({one}) {
  return html`<ol class="steps">${(one.hosts || []).map((each) => html`<li key=${each.host} class=${each.stage}><a href=${links.host(each.host)}>${each.host}</a> <${State} of=${each.stage} />
    <span class="quiet small"><${Said} text=${each.reason ? sentence(each.reason) : ""} />${each.since && each.stage !== "waiting" ? ` Since ${clock(each.since)}.` : ""}
    ${each.evacuation ? html` <a href=${links.evacuation(each.evacuation)}>its evacuation</a>` : null}${each.restore ? html` <a href=${links.evacuation(each.restore)}>its restore</a>` : null}</span></li>`)}</ol>`;
}

export function Risk({one}) {
  if (one.late && one.ended_at && one.deadline) return html`<p class="bad">Late: it ended ${seconds((Date.parse(one.ended_at) - Date.parse(one.deadline)) / 1000)} after its deadline.</p>`;
  if (one.late) return html`<p class="bad">Late: the deadline has passed.</p>`;
  if (one.at_risk && !one.ended_at && one.state !== "scheduled") return html`<p class="warn">At risk: the deadline may be missed.</p>`;
  if (one.state === "scheduled" && one.window_fit) return html`<p><${State} of=${one.window_fit} text=${{fits: "The window will do", "may-not-fit": "The window may not do", "does-not-fit": "The window will not do", unknown: "Not forecast yet"}[one.window_fit]} /> <span class="quiet">${sentence(one.window_forecast)}</span></p>`;
  return null;
}

export function EvacuationCard({one}) {
  const all = leftOf(one), moved = one.kind === "roll" ? null : all - one.guests_left;
  return html`<article class="card evacuation"><div class="row"><h3><a data-row href=${links.evacuation(one.id)}>${plain(titleOf(one))}</a></h3><${State} of=${one.state} />
      <span class="grow"></span><${Action} label="Cancel" kind="danger" about=${plain(titleOf(one))} why=${one.can_cancel ? "" : "it is too late"} press=${() => actions.cancelEvacuation(one)} /></div>
    ${moved === null || one.state === "scheduled" ? null : html`<progress max=${all} value=${moved} aria-label=${`Guests of ${plain(titleOf(one))} that have moved`}></progress>`}
    <p class="small">${statusOf(one)}</p><${Risk} one=${one} />${one.window_note ? html`<p class="small warn">${sentence(one.window_note)}</p>` : null}${one.kind === "roll" ? html`<${RollHosts} one=${one} />` : null}</article>`;
}

export function PastEvacuations({items}) {
  if (!items.length) return null;
  return html`<ul class="rows past">${items.map((one) => html`<li key=${one.id}><a data-row href=${links.evacuation(one.id)}>${plain(titleOf(one))}</a> <${State} of=${one.state} />${" "}
    <span class="quiet small">${clock(one.ended_at)}${one.late ? ", late" : ""}${one.kind === "roll" && one.error ? `, stopped at ${one.hosts.filter((each) => each.stage === "failed").map((each) => each.host).join(", ") || "its own end"}` : one.guests_left && one.kind !== "roll" ? `, ${count(one.guests_left, "guest")} ${stillThere(one)}` : ""}${one.guests_shut_off ? `, ${number(one.guests_shut_off)} more shut off` : ""}</span></li>`)}</ul>`;
}

export function Evacuations() {
  const [older, add] = useState({items: [], next: null, begun: false});
  const more = async () => {
    try {
      const page = await ask(`evacuations${query({limit: 50, before: older.next})}`);
      add({items: older.items.concat(page.items.filter((one) => one.ended_at)), next: page.next, begun: true});
    } catch (error) { failed(error); }
  };
  const all = [...store.evacuations.values()], running = all.filter((one) => one.state !== "scheduled"), planned = all.filter((one) => one.state === "scheduled");
  planned.sort((a, b) => a.starts_at.localeCompare(b.starts_at));
  const seen = new Set(store.pastEvacuations.map((one) => one.id)), past = [...store.pastEvacuations, ...older.items.filter((one) => !seen.has(one.id))];
  return html`<div class="row"><h1>Evacuations, windows and rolls</h1><span class="grow"></span><${Action} label="Roll through hosts…" press=${() => actions.roll()} /></div>
    <p class="quiet small">An evacuation, now or in a window, is begun from <a href="#/hosts">its host</a>.</p>
    <${Section} title="Under way" id="running">${running.length ? html`<div class="stack">${running.map((one) => html`<${EvacuationCard} key=${one.id} one=${one} />`)}</div>` : html`<${Empty}>None.</${Empty}>`}</${Section}>
    <${Section} title="Planned" id="planned">${planned.length ? html`<div class="stack">${planned.map((one) => html`<${EvacuationCard} key=${one.id} one=${one} />`)}</div>` : html`<${Empty}>No window is planned.</${Empty}>`}</${Section}>
    <${Section} title="Ended" id="past">${past.length ? html`<${PastEvacuations} items=${past} />` : html`<${Empty}>None yet.</${Empty}>`}
      ${!older.begun || older.next ? html`<div class="buttons"><button type="button" onClick=${more}>Older ones</button></div>` : null}</${Section}>`;
}
