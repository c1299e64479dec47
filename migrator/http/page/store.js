/** The one place that keeps what the service said; views read it and are drawn anew when it changes. */
import {ApiError, ask, at, query} from "./api.js";
import {guestName, now, plain, setClock} from "./format.js";
import {ENDED, kindOf, name as word, subjectOf} from "./words.js";

const KEPT_EVENTS = 500;
/** Drawing takes at most this part of the time; with little to draw, what is told is seen in the next frame. */
const DRAWN_AT_MOST = 1 / 3;
/** A tab that slept amid a drawing did not draw for so long. */
const DRAWN_AT_LEAST_EVERY = 250;
const LOOKED_EVERY = 5000;
/** Times what asking took last, before the same is asked again. */
const ASKED_AFTER = 10;
const AWAY_AFTER = 12000;

export const store = {
  session: null,
  /** connecting, live, lost or signed-out; figures are as of `freshAt`. */
  link: "connecting",
  freshAt: 0,
  loaded: false,
  service: null,
  hosts: new Map(),
  guestCounts: null,
  duplicates: [],
  migrations: new Map(),
  evacuations: new Map(),
  pastMigrations: [],
  pastEvacuations: [],
  curves: new Map(),
  events: [],
  said: [],
  /** Grows when lists that are asked for page by page may have changed. */
  edition: 0,
};

// ---- drawing: in the next frame, unless the last drawing took long and was just now

const listeners = new Set();
let drawing = false;
let drawnNext = 0;

export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function changed() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => requestAnimationFrame(() => {
    drawing = false;
    const began = performance.now();
    for (const listener of listeners) listener();
    // After this task the views are made, laid out and painted.
    setTimeout(() => { const over = performance.now(); drawnNext = over + Math.min(DRAWN_AT_LEAST_EVERY, (over - began) * (1 / DRAWN_AT_MOST - 1)); });
  }), Math.max(0, drawnNext - performance.now()));
}

// ---- signing in and out

export async function start() {
  setInterval(lookAgain, LOOKED_EVERY);
  // A device that slept, or a tab that was behind others, may show what was long ago.
  addEventListener("visibilitychange", lookAgain);
  await resume();
}

async function resume() {
  try { enter(await ask("session")); } catch (error) { lost(error); }
}

export async function signIn(token) { enter(await ask("session", {body: {token}})); }

export async function signOut() {
  try { await ask("session", {method: "DELETE"}); } finally { leave(); }
}

function enter(session) {
  store.session = session;
  if (store.link === "signed-out") store.link = "connecting";
  connect();
  changed();
}

function leave() {
  if (source) source.close();
  clearTimeout(retrying);
  Object.assign(store, {
    session: null, link: "signed-out", loaded: false, service: null, guestCounts: null, duplicates: [],
    pastMigrations: [], pastEvacuations: [], events: [], said: [],
  });
  for (const kept of [store.hosts, store.migrations, store.evacuations, store.curves]) kept.clear();
  changed();
}

/** A view asked and failed: signed out, or the connection is gone. */
export function failed(error) { lost(error); }

// ---- the stream

let source = null;
let retrying = 0;
let pause = 500;
let heard = null;
let newest = 0;

function connect() {
  clearTimeout(retrying);
  if (source) source.close();
  source = new EventSource("/api/v1/events");
  source.onopen = () => { pause = 500; snapshot().catch(lost); };
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) lost(); else stale(); };
  for (const kind of ["state", "decision", "progress", "command"]) {
    source.addEventListener(kind, (event) => take(JSON.parse(event.data)));
  }
}

function stale() {
  if (store.link !== "signed-out") store.link = "lost";
  changed();
}

function lost(error) {
  if (error instanceof ApiError && error.status === 401) { leave(); return; }
  stale();
  clearTimeout(retrying);
  retrying = setTimeout(() => (store.session ? reconnect() : resume()), pause);
  pause = Math.min(10000, pause * 2);
}

async function reconnect() {
  try { await ask("session", {seconds: AWAY_AFTER / 1000}); connect(); } catch (error) { lost(error); }
}

async function service() {
  const asked = Date.now(), found = await ask("service", {seconds: AWAY_AFTER / 1000});
  setClock(found.now, asked, Date.now());
  return found;
}

async function snapshot() {
  const mine = [];
  heard = mine;
  const [found, hosts, migrations, evacuations, past, ended] = await Promise.all([
    service(), ask("hosts"), ask("migrations?active=true"), ask("evacuations?active=true"),
    ask("migrations?limit=20"), ask("evacuations?limit=10"),
  ]);
  store.service = found;
  store.hosts = new Map(hosts.items.map((host) => [host.host, host]));
  store.migrations = new Map(migrations.items.map((one) => [one.id, one]));
  keepEvacuations(evacuations.items);
  store.pastMigrations = past.items.filter((one) => ENDED.has(one.state)).sort((a, b) => b.ended_at.localeCompare(a.ended_at));
  store.pastEvacuations = ended.items.filter((one) => one.ended_at).sort((a, b) => b.ended_at.localeCompare(a.ended_at));
  for (const curve of store.curves.values()) curve.recalled = false;
  // What was heard while the answers were on their way may be newer than they are.
  if (heard === mine) heard = null;
  mine.forEach((event) => take(event, true));
  Object.assign(store, {link: "live", loaded: true, freshAt: now()});
  store.edition += 1;
  changed();
  // What the view itself asks for comes first.
  soon("counts", countGuests, 150);
}

/** Their forecasts count from when they were asked for. */
function keepEvacuations(items) {
  store.evacuations = new Map(items.map((one) => [one.id, {...one, as_of: now()}]));
}

async function countGuests() {
  const all = await ask("guests?limit=0");
  store.guestCounts = all.counts || null;
  store.duplicates = all.counts && all.counts.duplicate ? (await ask(`guests${query({duplicate: true, limit: 50})}`)).items : [];
  changed();
}

const later = {}, took = {};
/** Do it after so many milliseconds, and later where it takes long; what is asked for meanwhile is done once, then. */
function soon(name, action, wait = 1000) {
  if (later[name]) return;
  later[name] = setTimeout(async () => {
    delete later[name];
    const began = performance.now();
    try { await action(); } catch (error) { lost(error); }
    took[name] = performance.now() - began;
  }, Math.max(wait, Math.min(LOOKED_EVERY, ASKED_AFTER * (took[name] || 0))));
}

async function inventory() {
  const hosts = await ask("hosts");
  store.hosts = new Map(hosts.items.map((host) => [host.host, host]));
  store.edition += 1;
  changed();
  await countGuests();
}

let looking = false;
async function lookAgain() {
  if (!store.session || looking || document.hidden || store.link !== "live") return;
  looking = true;
  try {
    store.service = await service();
    if (store.evacuations.size) keepEvacuations((await ask("evacuations?active=true")).items);
    await inventory();
    store.freshAt = now();
  } catch (error) { lost(error); } finally { looking = false; }
}

/** After a command: what it changed is asked for at once. */
export const refresh = () => snapshot().catch(lost);

// ---- what is told

function take(event, again = false) {
  if (heard && !again) heard.push(event);
  if (!again) { log(event); if (store.link === "live") store.freshAt = now(); }
  const tell = again ? () => {} : announce;
  if (event.subject === "migration") takeMigration(event, tell);
  else if (event.subject === "evacuation" && event.kind === "state") takeEvacuation(event, tell);
  else if (event.subject === "host" && event.kind === "state") { store.hosts.set(event.subject_id, event.body); soon("inventory", inventory); }
  changed();
}

function log(event) {
  if (event.kind === "progress" || event.event_id <= newest) return;
  newest = event.event_id;
  store.events.unshift(event);
  if (store.events.length > KEPT_EVENTS) store.events.length = KEPT_EVENTS;
}

/** The last events before those that this page heard. */
export async function recallEvents() {
  const found = await ask(`events?last=${KEPT_EVENTS / 2}`);
  const seen = new Set(store.events.map((event) => event.event_id));
  store.events = [...store.events, ...found.items.filter((event) => !seen.has(event.event_id)).reverse()];
  store.events.sort((a, b) => b.event_id - a.event_id);
  newest = store.events.length ? store.events[0].event_id : newest;
  changed();
}

function takeMigration(event, tell) {
  const id = event.subject_id, body = event.body, one = store.migrations.get(id);
  if (event.kind === "decision") {
    const made = (one && one.decisions) || [];
    if (one && !made.some((old) => old.at_seconds === body.at_seconds && old.action === body.action)) {
      store.migrations.set(id, {...one, decisions: made.concat([body])});
      tell(`${guestName(one)}: ${body.action}, ${body.reason}`);
    }
    return;
  }
  const next = {decisions: [], findings: [], ...one, ...body};
  if (!one || one.state !== next.state) tell(`${guestName(next)} ${next.state === "held" ? "is held: a person must look" : word(next.state)}`);
  if (ENDED.has(next.state)) {
    store.migrations.delete(id);
    store.pastMigrations = [next, ...store.pastMigrations.filter((old) => old.id !== id)].slice(0, 50);
    soon("inventory", inventory);
  } else store.migrations.set(id, next);
  sample(next, Date.parse(event.time));
}

function takeEvacuation(event, tell) {
  const id = event.subject_id, one = {guests: [], ...store.evacuations.get(id), ...event.body};
  const old = store.evacuations.get(id);
  // The event has no list of guests: it is asked for below.
  if (old && !(event.body.guests || []).length) one.guests = old.guests;
  if (one.ended_at) {
    tell(`${kindOf(one)} of ${subjectOf(one)} ${word(one.state)}`);
    store.evacuations.delete(id);
    store.pastEvacuations = [one, ...store.pastEvacuations.filter((each) => each.id !== id)].slice(0, 20);
  } else {
    store.evacuations.set(id, one);
    soon(`evacuation ${id}`, async () => {
      const found = await ask(at("evacuations", id));
      if (!found.ended_at) store.evacuations.set(id, {...found, as_of: now()});
      changed();
    });
  }
  soon("inventory", inventory);
}

function announce(text) { store.said = [...store.said.slice(-4), plain(text)]; }

// ---- curves

function curveOf(id) {
  if (!store.curves.has(id)) store.curves.set(id, {samples: [], recalled: false, asked: false});
  return store.curves.get(id);
}

function sample(one, time) {
  if (one.remaining_bytes === null || one.remaining_bytes === undefined || one.ended_at) return;
  const curve = curveOf(one.id), kept = curve.samples, last = kept[kept.length - 1];
  if (last && time <= last.time) return;
  kept.push({
    time, state: one.state, round: one.round, left: one.remaining_bytes, stream: one.bandwidth_bytes_per_second || 0,
    dirty: one.dirty_rate_bytes_per_second || 0, throttle: one.throttle_ratio || 0,
  });
  // Every other one of the older half goes: the line keeps its shape, the page its memory.
  if (kept.length > 900) curve.samples = kept.filter((_, n) => n > 450 || n % 2 === 0);
}

let recalling = Promise.resolve();
/** The curve of a migration, which is asked for once; of one after the other, as there may be hundreds. */
export function recallCurve(one) {
  const curve = curveOf(one.id);
  if (curve.recalled || curve.asked) return curve;
  curve.asked = true;
  recalling = recalling.then(async () => {
    const found = await ask(`${at("migrations", one.id)}/samples`), begin = Date.parse(one.started_at || one.created_at);
    const before = found.items.map((each) => ({
      time: begin + each.at_seconds * 1000, state: each.state, round: each.round, left: each.remaining_bytes,
      stream: each.bandwidth_bytes_per_second, dirty: each.dirty_rate_bytes_per_second, throttle: each.throttle_ratio,
    }));
    const last = before.length ? before[before.length - 1].time : 0;
    curve.samples = before.concat(curve.samples.filter((each) => each.time > last));
    curve.recalled = true;
    changed();
  }).catch(() => {}).finally(() => { curve.asked = false; });
  return curve;
}

/** Who is signed in, and what that may do, in a few words. */
export const who = ({user, role, hosts}) => `${user === role ? role : `${user}, ${role}`}${hosts ? ` of ${hosts.join(", ")}` : ""}`;

export const isOperator = () => store.session !== null && store.session.role === "operator";
