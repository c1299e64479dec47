/** One host: what it is, who is on it, what was done with it, and what can be. */
import {html} from "./ui.js";
import {ask, query} from "./api.js";
import {Empty, Facts, Section, useAsked} from "./parts.js";
import {bytes, clock, count, plain, rate, relative, sentence} from "./format.js";
import {href} from "./router.js";
import {store} from "./store.js";
import {EvacuationCard, PastEvacuations} from "./evacuations.js";
import {GuestTable} from "./guests.js";
import {HostButtons, HostState, leftDraining} from "./hosts.js";
import {MigrationRows, PastMigrations} from "./migrations.js";
import {shutOff} from "./words.js";

export function Host({id}) {
  const host = store.hosts.get(id);
  const past = useAsked(() => Promise.all([ask(`evacuations${query({host: id, limit: 10})}`), ask(`migrations${query({host: id, limit: 10})}`)]), [id, store.pastMigrations.length && store.pastMigrations[0].id, store.pastEvacuations.length && store.pastEvacuations[0].id]);
  if (!host) return html`<${Empty}>There is no host ${id}. <a href="#/hosts">All hosts</a></${Empty}>`;
  const evacuations = [...store.evacuations.values()].filter((one) => one.host === id || (one.hosts || []).some((each) => each.host === id));
  const migrations = [...store.migrations.values()].filter((one) => one.source === id || one.destination === id);
  const [runs, moves] = past.value || [{items: []}, {items: []}], twice = host.guests_duplicate || [];
  return html`<div class="row"><h1>${id}</h1><${HostState} host=${host} /></div><${HostButtons} host=${host} home=${true} />${leftDraining(host) ? html`<p class="warn">${leftDraining(host)}</p>` : null}
    ${host.error ? html`<p class="bad">${sentence(host.error)}</p>` : null}${twice.length ? html`<p class="bad">${count(twice.length, "guest")} of it ${twice.length === 1 ? "runs" : "run"} twice: ${twice.join(", ")}. Stop one of each at once, then look at its disks.</p>` : null}
    ${host.guests_undriven ? html`<p class="bad">${count(host.guests_undriven, "guest")} in a migration that nobody drives: <code>migrator direct --rescue</code>.</p>` : null}
    <${Facts} items=${[
      ["Memory", `${bytes(host.memory_free_bytes)} of ${bytes(host.memory_total_bytes)} free`], ["CPUs", `${host.cpus}${host.kvm ? "" : ", without KVM"}`], ["Link", host.link_bytes_per_second ? rate(host.link_bytes_per_second) : "not known"], ["Address", host.address || "–"],
      ["QEMU", [...new Set(Object.values(host.qemus))].join(", ") || "–"], Object.keys(host.labels).length ? ["Labels", Object.entries(host.labels).map(([name, value]) => `${name}=${value}`).join(", ")] : null,
      host.certificates_expire_at && ["Certificate expires", clock(host.certificates_expire_at, {day: true})], Object.keys(host.slowest_paths || {}).length ? ["Slowest paths", Object.entries(host.slowest_paths).map(([to, speed]) => `${to} ${rate(speed)}`).join(", ")] : null,
      host.libvirt_error && ["libvirt", plain(host.libvirt_error), "bad"], host.guests_shut_off ? ["Shut off", shutOff(host), "warn"] : null, ["Looked at", host.looked_at ? relative(host.looked_at) : "not yet"],
    ]} />
    ${evacuations.length ? html`<${Section} title="Under way and planned" id="evacuations"><div class="stack">${evacuations.map((one) => html`<${EvacuationCard} key=${one.id} one=${one} />`)}</div></${Section}>` : null}
    ${migrations.length ? html`<${Section} title="Migrations under way" id="moving"><${MigrationRows} items=${migrations} label="Migrations from or to it" /></${Section}>` : null}
    <${Section} title="Guests" id="guests" aside=${html`<a href=${href(["guests"], {host: id})}>search them</a>`}><${GuestTable} filters=${{host: id}} columns=${["host"]} /></${Section}>
    <${Section} title="Before" id="before">${past.error ? html`<p class="bad">${past.error}</p>` : null}<${PastEvacuations} items=${runs.items.filter((one) => one.ended_at)} /><${PastMigrations} items=${moves.items.filter((one) => one.ended_at)} />
      ${runs.items.length + moves.items.length ? html`<p class="small"><a href=${href(["migrations"], {host: id})}>all its migrations</a></p>` : html`<${Empty}>Nothing was moved from or to it yet.</${Empty}>`}</${Section}>`;
}

