/** The first view: what needs a person, what is under way, what is planned, what has just ended. */
import {html} from "./ui.js";
import * as actions from "./actions.js";
import {attention} from "./attention.js";
import {EvacuationCard, PastEvacuations} from "./evacuations.js";
import {MigrationRows, PastMigrations} from "./migrations.js";
import {Action, Empty, Said, Section} from "./parts.js";
import {clock, count, number, plain, seconds} from "./format.js";
import {href} from "./router.js";
import {isOperator, store} from "./store.js";

function Item({item}) {
  return html`<li class=${`card need ${item.level}`}><h3>${item.title}</h3><p><${Said} text=${item.what} /></p>
    <p class="todo"><span class="unseen">What to do: </span>${item.todo}</p>
    ${item.link || (isOperator() && item.buttons.length) ? html`<div class="buttons">${item.buttons.map((each) => html`<${Action} key=${each.label} ...${each} about=${""} />`)}
      ${item.link ? html`<a class="button" data-row href=${item.link}>${item.see}</a>` : null}</div>` : null}</li>`;
}

function Needs() {
  const found = attention(store), moving = store.migrations.size, down = [...store.hosts.values()].filter((host) => !host.up).length;
  const guests = store.guestCounts ? Object.values(store.guestCounts.run_state || {}).reduce((sum, n) => sum + n, 0) : [...store.hosts.values()].reduce((sum, host) => sum + host.guests, 0);
  if (!found.length) {
    return html`<section class="card well" aria-labelledby="needs"><h2 id="needs"><svg viewBox="0 0 16 16" aria-hidden="true"><path d="M2.5 8.5l3.5 3.5 7.5-8" /></svg>All is well</h2>
      <p>${count(store.hosts.size, "host")} up, ${count(guests, "guest")}. ${moving ? `${count(moving, "guest is moving", "guests are moving")}, as they should.` : "No guest is moving."}</p></section>`;
  }
  const bad = found.filter((each) => each.level === "bad").length;
  return html`<section aria-labelledby="needs"><h2 id="needs">${bad ? `${count(bad, "thing needs", "things need")} a person now` : "Worth a look"}</h2>
    <ul class="needs">${found.slice(0, 30).map((item) => html`<${Item} key=${item.id} item=${item} />`)}</ul>
    ${found.length > 30 ? html`<p class="quiet">And ${number(found.length - 30)} more: ${down ? html`<a href=${href(["hosts"], {state: "down"})}>hosts that cannot be reached</a>` : "see hosts and evacuations"}.</p>` : null}</section>`;
}

function Controllers() {
  const given = store.service;
  if (!given || given.role === "alone") return null;
  const old = given.role === "standby" ? `; this one, ${plain(given.instance)}, stands by, and shows what is ${given.stale_seconds === null ? "of unknown age" : `${seconds(given.stale_seconds)} old at most`}` : "";
  const site = given.leases.find((lease) => lease.name === "site");
  const rest = (each) => [
    `${plain(each.instance)}${each.url ? ` at ${plain(each.url)}` : ""}, version ${plain(each.version)}, heard ${seconds(each.age_seconds)} ago, drives ${count(each.migrations, "migration")}`,
    site && site.owner === each.name ? `, plans the site (lease renewed ${seconds(site.age_seconds)} ago)` : "", each.detail ? `: ${plain(each.detail)}` : "",
  ].join("");
  return html`<${Section} title="Controllers" id="controllers"><p class=${given.acting ? "" : "bad"}>${given.acting ? `${plain(given.acting)} acts` : "Nobody acts: nothing is begun"}${old}.</p>
    <ul class="small">${given.controllers.map((each) => html`<li key=${each.name}><span class=${`state ${each.present ? (each.role === "acting" ? "good" : "plain") : "bad"}`}>${each.present ? each.role : "gone"}</span>${` ${rest(each)}`}</li>`)}</ul></${Section}>`;
}

export function Now() {
  const evacuations = [...store.evacuations.values()];
  const running = evacuations.filter((one) => one.state !== "scheduled"), planned = evacuations.filter((one) => one.state === "scheduled");
  const single = [...store.migrations.values()].filter((one) => !one.evacuation);
  return html`<h1 class="unseen">Now</h1><${Needs} />
    ${running.length || single.length ? html`<${Section} title="Under way" id="under-way">
      <div class="stack">${running.map((one) => html`<${EvacuationCard} key=${one.id} one=${one} />`)}</div>
      ${single.length ? html`<${MigrationRows} items=${single} label="Migrations" />` : null}</${Section}>` : null}
    ${planned.length ? html`<${Section} title="Planned" id="planned"><div class="stack">${planned.map((one) => html`<${EvacuationCard} key=${one.id} one=${one} />`)}</div></${Section}>` : null}
    <${Section} title="Ended last" id="ended" aside=${html`<a href=${href(["migrations"])}>All migrations</a>`}>
      ${store.pastEvacuations.length || store.pastMigrations.length ? null : html`<${Empty}>Nothing was moved yet. <a href="#/hosts">Choose a host</a> to empty, or <a href="#/guests">a guest</a> to move.</${Empty}>`}
      <${PastEvacuations} items=${store.pastEvacuations.slice(0, 5)} /><${PastMigrations} items=${store.pastMigrations.slice(0, 10)} /></${Section}>
    <${Controllers} />
    <p class="quiet small">${isOperator() ? html`<button type="button" onClick=${() => actions.roll()}>Roll through hosts…</button>` : null} As of ${clock(store.freshAt)}.</p>`;
}
