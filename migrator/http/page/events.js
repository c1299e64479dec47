/** What happens, live, and what has just happened. */
import {html, useEffect} from "./ui.js";
import {Chips, Empty, Search, State} from "./parts.js";
import {clock, count, guestName, plain, sentence} from "./format.js";
import {filterBy, links} from "./router.js";
import {failed, recallEvents, store} from "./store.js";
import {matches} from "./lists.js";
import {kindOf, stillThere, subjectOf, wayOf} from "./words.js";

const SHOWN = 200;
const KINDS = [["migration", "migrations"], ["decision", "decisions"], ["evacuation", "evacuations"], ["host", "hosts"], ["command", "commands"]];

const kindOfEvent = (event) => (event.kind === "decision" ? "decision" : event.subject);

/** What an event says: its subject, a link to it, its state, and a sentence. */
function told(event) {
  const {body, subject, subject_id: id} = event;
  if (event.kind === "decision") {
    const one = store.migrations.get(id) || store.pastMigrations.find((each) => each.id === id);
    return {who: one ? guestName(one) : id, link: links.migration(id), state: body.action, plainState: true, text: sentence(body.reason)};
  }
  if (subject === "migration") return {who: guestName(body), link: links.migration(id), state: body.state, bad: body.ceiling_exceeded, text: `${wayOf(body)}. ${sentence(body.error || body.waiting_for || "")}`};
  if (subject === "evacuation") return {who: `${kindOf(body)} of ${plain(subjectOf(body))}`, link: links.evacuation(id), state: body.state, bad: body.late, text: `${body.kind === "roll" ? "" : `${count(body.guests_left, "guest")} ${stillThere(body)}. `}${body.late ? "Late. " : body.at_risk ? "At risk. " : ""}${sentence((body.error || "").replace(/^\d+ guests? [^:]*: /, ""))}`};
  if (subject === "host") return {who: id, link: links.host(id), state: body.state, bad: !body.up, text: `${body.up ? "" : "Unreachable. "}${count(body.guests, "guest")}. ${sentence(body.error || "")}`};
  return {who: `${body.user}: ${body.verb}`, link: body.subject === "migration" && body.subject_id ? links.migration(body.subject_id) : body.subject === "evacuation" && body.subject_id ? links.evacuation(body.subject_id) : null, state: body.answer, bad: body.answer === "refused", text: `by ${body.interface}. ${sentence(body.message || "")}`};
}

export function Events({query}) {
  const search = query.get("search") || "", kind = query.get("kind") || "";
  useEffect(() => { recallEvents().catch(failed); }, []);
  const all = store.events.map((event) => ({event, ...told(event)})), fitting = all.filter((each) => matches(search, each.who, each.state, each.text, each.event.subject_id));
  const chips = KINDS.map(([value, text]) => [value, text, fitting.filter((each) => kindOfEvent(each.event) === value).length]), rows = kind ? fitting.filter((each) => kindOfEvent(each.event) === kind) : fitting;
  return html`<h1>Events</h1><div class="tools"><${Search} value=${search} change=${(value) => filterBy({search: value})} label="Guest, host, id or words" /><${Chips} label="About" items=${chips} chosen=${kind} choose=${(value) => filterBy({kind: value})} /></div>
    <ol class="events" aria-label="Events, the newest first">${rows.slice(0, SHOWN).map(({event, who, link, state, bad, text, plainState}) => html`<li key=${event.event_id}><time class="num small quiet" datetime=${event.time}>${clock(event.time)}</time>
      <span class="who">${link ? html`<a data-row href=${link}>${who}</a>` : who}</span> ${plainState ? html`<span class="state plain">${plain(state)}</span>` : html`<${State} of=${state} bad=${bad} text=${event.subject === "host" ? state : undefined} />`}<span class="small">${text}</span></li>`)}</ol>
    ${rows.length ? html`<p class="quiet small">The last ${Math.min(rows.length, SHOWN)} of those that were heard; <code>migrator events</code> has all.</p>` : html`<${Empty}>Nothing that fits has happened yet.</${Empty}>`}`;
}
