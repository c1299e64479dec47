/** One guest: what it is, who manages it, how fast it writes, how it was moved before, and moving it. */
import {html} from "./ui.js";
import * as actions from "./actions.js";
import {ask, at, query} from "./api.js";
import {Action, Empty, Facts, Findings, Section, useAsked} from "./parts.js";
import {bytes, clock, guestName, plain, rate, sentence} from "./format.js";
import {links} from "./router.js";
import {store} from "./store.js";
import {MigrationRows, PastMigrations} from "./migrations.js";
import {RunState} from "./guests.js";
import {DirtyRates} from "./dirty_rates.js";
import {underWay} from "./words.js";

export function Guest({id}) {
  const asked = useAsked(() => ask(at("guests", id)), [id, store.edition]), guest = asked.value;
  const past = useAsked(() => ask(`migrations${query({guest: guest ? guest.guest : id, limit: 50})}`), [guest ? guest.guest : id, store.pastMigrations.length && store.pastMigrations[0].id]);
  const moves = past.value ? past.value.items : [], moving = [...store.migrations.values()].filter((one) => one.guest === (guest ? guest.guest : id));
  if (!guest && !moves.length) return html`<${Empty}>${asked.error ? `${sentence(asked.error)} ` : "Asking… "}<a href="#/guests">All guests</a></${Empty}>`;
  const name = guest ? guestName(guest) : guestName(moves[0]), libvirt = guest && guest.libvirt, found = moves.length && (moves[0].findings || []).length ? moves[0] : null, [doing, kind] = underWay(moving[0]), busy = moving.length ? `it is ${doing}` : "";
  return html`<div class="row"><h1>${name}</h1>${guest ? html`<${RunState} guest=${guest} /> <span class="quiet">on <a href=${links.host(guest.host)}>${guest.host}</a></span>` : html`<span class="state warn">not seen now</span>`}</div>
    ${busy ? html`<p class=${kind}>It is <a class=${kind} href=${links.migration(moving[0].id)}>${doing}</a>.</p>` : null}
    ${guest && guest.duplicate ? html`<p class="bad">Its uuid runs twice: both write to its disks. Stop one at once, then look at its disks.</p>` : null}
    ${guest && !guest.movable ? html`<p class="warn">It cannot move: ${sentence(guest.obstacle)}${guest.obstacle_code ? html` <code>${guest.obstacle_code}</code>` : null}</p>` : null}
    ${guest && guest.network_problem ? html`<p class="warn">Network: ${sentence(guest.network_problem)}</p>` : null}
    ${guest ? html`<div class="buttons"><${Action} label="Move…" kind="main" about=${name} why=${busy || (guest.movable ? "" : "see above")} press=${() => actions.move(guest)} /><${Action} label="Save…" about=${name} why=${busy || (guest.monitored ? "" : "it has no monitor")} press=${() => actions.save(guest)} /></div>
    <${Facts} items=${[
      ["Memory", bytes(guest.memory_bytes)], ["vCPUs", guest.vcpus], ["Writes now", rate(guest.dirty_rate_bytes_per_second)], ["Policy", guest.policy], ["Managed by", plain(guest.managed_by) || "nobody else"],
      ["Monitor", guest.monitored ? "yes" : "none where it is looked for", guest.monitored ? "" : "warn"], ["Network", guest.network_state], ["Uuid", html`<code>${guest.uuid || "none"}</code>`], guest.identity && ["Identity", html`<code>${guest.identity}</code>`],
      libvirt && ["libvirt", [libvirt.persistent ? "defined" : "not defined", libvirt.autostart ? "started with its host" : "", libvirt.snapshots ? `${libvirt.snapshots} snapshots` : "", libvirt.managed_save ? "saved" : "", ...libvirt.host_devices].filter(Boolean).join(", ")],
    ]} />` : null}
    ${moving.length ? html`<${Section} title="Under way" id="moving"><${MigrationRows} items=${moving} label="Under way" /></${Section}>` : null}
    ${found ? html`<${Section} title="Findings of its last move" id="findings" aside=${html`<a href=${links.migration(found.id)}>${clock(found.ended_at || found.created_at)}</a>`}><${Findings} items=${found.findings} /></${Section}>` : null}
    <${DirtyRates} guest=${guest ? guest.guest : id} now=${guest ? guest.dirty_rate_bytes_per_second : null} />
    <${Section} title="Moved before" id="moved">${moves.some((one) => one.ended_at) ? html`<${PastMigrations} items=${moves.filter((one) => one.ended_at)} />` : html`<${Empty}>It was not moved yet.</${Empty}>`}</${Section}>`;
}
