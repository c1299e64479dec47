/** The frame: who is signed in, whether what is shown is fresh, where one can go, and the view of the address. */
import {html, render, useEffect, useState} from "./ui.js";
import {close, Dialogs, opened} from "./dialogs.js";
import {Events} from "./events.js";
import {Evacuation} from "./evacuation.js";
import {Evacuations} from "./evacuations.js";
import {Guest} from "./guest.js";
import {Guests} from "./guests.js";
import {Host} from "./host.js";
import {Hosts} from "./hosts.js";
import {Migration} from "./migration.js";
import {Migrations} from "./migrations.js";
import {Now} from "./now.js";
import {Policies} from "./policies.js";
import {Saved} from "./saved.js";
import {SignIn} from "./sign_in.js";
import {clock, clockSkew, now, relative, seconds} from "./format.js";
import {openHelp, VIEWS, watchKeys} from "./keyboard.js";
import {attention} from "./attention.js";
import {href, onRoute, route} from "./router.js";
import {changed, signOut, start, store, subscribe, who} from "./store.js";
import {applyTheme, nextTheme, theme} from "./theme.js";

const LISTS = {"": Now, hosts: Hosts, guests: Guests, evacuations: Evacuations, migrations: Migrations, events: Events, saved: Saved, policies: Policies};
const SINGLE = {hosts: Host, guests: Guest, evacuations: Evacuation, migrations: Migration};

function Link() {
  const words = {connecting: "Connecting", live: "Live", lost: store.freshAt ? `Stale: as of ${clock(store.freshAt)}` : "Not connected", "signed-out": "Signed out"};
  return html`<span role="status" class=${`link ${store.link}`}><i aria-hidden="true"></i>${words[store.link]}</span>`;
}

function Header({urgent}) {
  const here = route.parts[0] || "";
  return html`<header class="top">
    <a class="brand" href="#/"><svg viewBox="0 0 16 16" aria-hidden="true"><path d="M1 5h9V2l5 5-5 5V9H1z" /></svg>migrator</a>
    <nav aria-label="Views">${VIEWS.map(([path, text]) => html`<a key=${path} href=${href(path ? [path] : [])} aria-current=${here === path ? "page" : undefined}>${text}${
      path === "" && urgent ? html` <b class="badge" aria-label=${`${urgent} need a person`}>${urgent}</b>` : null}</a>`)}</nav>
    <span class="grow"></span><${Link} />
    <span class="who">${store.session ? who(store.session) : ""}</span>
    <button type="button" class="plain" onClick=${() => { nextTheme(); changed(); }} aria-label=${`Colours: ${theme()}`} title="Colours: as the system, light, dark">${{system: "◐", light: "☀", dark: "☾"}[theme()]}</button>
    <button type="button" class="plain" onClick=${openHelp} aria-label="Keys and help" title="Keys and help ( ? )">?</button>
    ${store.session && !store.session.user.startsWith("unix") ? html`<button type="button" class="plain wide" onClick=${signOut}>Sign out</button>` : null}
  </header>`;
}

/** Minutes before its end in which a session says so. */
const SAYS_END_MINUTES = 10;

function Ending() {
  const ends = store.session && store.session.ends_at ? (Date.parse(store.session.ends_at) - now()) / 60000 : Infinity;
  if (ends > SAYS_END_MINUTES) return null;
  return html`<p class="banner" role="status">This session ends ${relative(store.session.ends_at)}. <button type="button" onClick=${signOut}>Sign in again</button></p>`;
}

/** This device's clock is this much off before it is said. */
const SAID_SKEW = 5000;

function Skew() {
  const off = clockSkew();
  if (Math.abs(off) < SAID_SKEW || !store.session) return null;
  return html`<p class="quiet small" role="status">This device's clock is ${seconds(Math.abs(off) / 1000)} ${off > 0 ? "behind" : "ahead of"} the service's. Times here are by the service's.</p>`;
}

function Stale() {
  if (store.link !== "lost" || !store.session) return null;
  return html`<p class="banner bad" role="alert">The connection to the service is lost. What is shown is as of ${clock(store.freshAt)}; migrations go on without this page. Trying again.</p>`;
}

function View() {
  const [kind = "", ...rest] = route.parts, id = rest.length ? rest.join("/") : undefined;
  const view = id === undefined ? LISTS[kind] : SINGLE[kind];
  if (!view) return html`<p class="empty">There is no such view. <a href="#/">What is now</a></p>`;
  if (!store.loaded) return html`<p class="quiet empty">${store.link === "lost" ? "The service does not answer yet." : "Asking the service…"}</p>`;
  return html`<${view} key=${route.parts.join("/")} id=${id} query=${route.query} />`;
}

function App() {
  const [, draw] = useState(0);
  useEffect(() => subscribe(() => draw((n) => n + 1)), []);
  useEffect(() => { document.title = store.session ? titleFor(urgent) : "migrator"; });
  const urgent = store.loaded ? attention(store).filter((each) => each.level === "bad").length : 0;
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>Skip to the content</a>
    <${Header} urgent=${urgent} />
    <main id="main" tabindex="-1"><${Stale} /><${Ending} /><${Skew} />${store.link === "signed-out" ? html`<${SignIn} />` : html`<${View} />`}</main>
    <div class="unseen" role="log" aria-live="polite" aria-label="What happens">${store.said.map((each, n) => html`<p key=${n}>${each}</p>`)}</div>
    <${Dialogs} />`;
}

function titleFor(urgent) {
  const where = route.parts.length ? `${route.parts[route.parts.length - 1]} · ` : "";
  return `${urgent ? `(${urgent}) ` : ""}${where}migrator`;
}

applyTheme();
onRoute(() => { if (opened) close(); changed(); });
addEventListener("hashchange", () => scrollTo(0, 0));
watchKeys();
// Elapsed times and forecasts go on, also while nothing is told.
setInterval(() => { if (!document.hidden && store.session) changed(); }, 1000);
const root = document.createElement("div");
root.id = "root";
document.body.append(root);
render(html`<${App} />`, root);
start();
