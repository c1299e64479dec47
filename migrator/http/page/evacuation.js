/** One evacuation, restore, group move or roll: its timeline, and what can be done about it. */
import {html} from "./ui.js";
import * as actions from "./actions.js";
import {ask, at, query} from "./api.js";
import {HostButtons} from "./hosts.js";
import {Action, Empty, Facts, Said, State, useAsked} from "./parts.js";
import {clock, now, plain, relative, sentence} from "./format.js";
import {links} from "./router.js";
import {store} from "./store.js";
import {Risk, RollHosts, statusOf} from "./evacuations.js";
import {Timeline} from "./timeline_view.js";
import {timelineOf} from "./timeline.js";
import {shutOff, titleOf, whyLeft} from "./words.js";

/** All migrations of one, ended ones too; at most a few thousand. */
async function migrationsOf(id) {
  let items = [], next;
  for (let page = 0; page < 8; page += 1) {
    const found = await ask(`migrations${query({evacuation: id, limit: 500, before: next})}`);
    items = items.concat(found.items);
    next = found.next;
    if (!next) break;
  }
  return items;
}

/** What can be done about one that has ended without doing all. */
function Afterwards({one}) {
  if (!["incomplete", "stopped", "cancelled"].includes(one.state) || (one.kind !== "evacuate" && one.kind !== "restore" && one.kind !== "roll")) return null;
  const host = store.hosts.get(one.host), rest = (one.hosts || []).filter((each) => each.stage === "left").map((each) => each.host);
  if (one.kind === "roll") return rest.length ? html`<div class="buttons"><${Action} label="Roll through the rest…" press=${() => actions.roll(rest)} /></div>` : null;
  return host ? html`<${HostButtons} host=${host} home=${true} />` : null;
}

export function Evacuation({id}) {
  const active = store.evacuations.get(id), ended = store.pastEvacuations.find((one) => one.id === id);
  const standings = active ? active.guests.map((guest) => `${guest.standing}${guest.attempts}`).join() : "ended";
  const asked = useAsked(() => (active ? Promise.resolve(active) : ask(at("evacuations", id))), [id, Boolean(active), store.edition && !active && ended ? ended.ended_at : ""]);
  const before = useAsked(() => migrationsOf(id), [id, standings]);
  const one = active || asked.value;
  if (!one) return asked.error ? html`<${Empty}>${sentence(asked.error)} <a href="#/evacuations">All evacuations</a></${Empty}>` : html`<${Empty}>Asking…</${Empty}>`;
  const live = [...store.migrations.values()].filter((each) => each.evacuation === id), running = new Set(live.map((each) => each.id));
  const moved = (before.value || []).filter((each) => !running.has(each.id)).map((each) => store.pastMigrations.find((past) => past.id === each.id) || each);
  const migrations = [...moved, ...live], host = store.hosts.get(one.host);
  return html`<div class="row"><h1>${plain(titleOf(one))}</h1><${State} of=${one.state} /><span class="grow"></span>
      <${Action} label="Cancel" kind="danger" about=${plain(titleOf(one))} why=${one.can_cancel ? "" : one.ended_at ? "it has ended" : "it is too late"} press=${() => actions.cancelEvacuation(one)} /></div>
    <p>${statusOf(one)}${one.ended_at ? `; ended ${clock(one.ended_at)}, ${relative(one.ended_at)}` : ""}</p><${Risk} one=${one} />
    ${one.error ? html`<p class="bad"><${Said} text=${one.kind === "roll" ? "" : sentence(whyLeft(one))} /></p>` : null}${one.ended_at && shutOff(one) ? html`<p class="warn">${shutOff(one)}</p>` : null}<${Afterwards} one=${one} />
    <${Facts} items=${[
      one.host && ["Host", html`<a href=${links.host(one.host)}>${one.host}</a>`], one.policy && ["Policy", one.policy], ["Asked for by", one.requested_by],
      ["Began", clock(one.starts_at || one.created_at)], one.window_ends_at && ["Window ends", clock(one.window_ends_at)],
      one.deadline && ["When the deadline passes", one.on_deadline === "stop" ? "nothing more is begun, and what can be is cancelled" : "it goes on, late"],
      one.max_unavailable && ["Hosts away at a time", one.max_unavailable], ["Id", html`<code>${one.id}</code>`]]} />
    ${one.kind === "roll" ? html`<${RollHosts} one=${one} />` : one.guests.length ? html`<${Timeline} line=${timelineOf(one, migrations, now())} capacity=${host && host.link_bytes_per_second} label="Guests" />`
    : html`<${Empty}>${one.state === "scheduled" ? "Its guests are looked at when it begins." : "It has no guests."}</${Empty}>`}
    ${one.state === "scheduled" && one.kind === "evacuate" && host ? html`<div class="buttons"><${Action} label="See what it would do now" press=${() => actions.evacuate(one.host)} /></div>` : null}`;
}
