/** What needs a person now, the worst first: what it is, what to do, and the buttons that do it. Asks nothing. */
import * as actions from "./actions.js";
import {clock, count, now as clockNow, guestName, plain, relative, sentence} from "./format.js";
import {href, links} from "./router.js";
import {STAYING, heldTodo, heldUntil, stillThere, subjectOf, titleOf, whyLeft} from "./words.js";

const CERTIFICATE_DAYS = 14;

export function attention(store, now = clockNow()) {
  const found = [
    ...service(store), ...duplicates(store), ...[...store.migrations.values()].flatMap(ofMigration),
    ...together([...store.hosts.values()].flatMap((host) => ofHost(host, now))),
    ...[...store.evacuations.values()].flatMap((one) => ofEvacuation(one, store, now)),
    ...store.pastEvacuations.flatMap((one) => ofPast(one, store, now)),
  ];
  return found.sort((a, b) => (a.level === "bad" ? 0 : 1) - (b.level === "bad" ? 0 : 1));
}

function service(store) {
  const given = store.service;
  if (!given) return [];
  const found = given.complaints.map((each) => ({
    id: `service ${each}`, level: "bad", title: /journal/i.test(each) ? "The journal is away" : "The service complains",
    what: sentence(each), todo: "Guests run on, and what is under way goes on. migrator doctor, on the controller's machine, says what is wrong.", buttons: [],
  }));
  if (given.broker_connected === false) {
    found.push({id: "broker", level: "bad", title: "The broker is away", what: "Schedulers that speak MQTT are not heard, and are told nothing.", todo: "See whether the broker runs, and whether this controller reaches it: migrator doctor says what is wrong. What is under way goes on; commands wait at the broker.", buttons: []});
  }
  if (given.role !== "alone" && !given.acting && !found.length) {
    found.push({id: "acting", level: "bad", title: "No controller acts", what: "Nothing is begun or driven until one takes over.", todo: "See whether the controllers run, and whether they reach the journal's server.", buttons: []});
  }
  return found;
}

function duplicates(store) {
  const twice = new Map();
  for (const host of store.hosts.values()) for (const uuid of host.guests_duplicate || []) twice.set(uuid, [...(twice.get(uuid) || []), host.host]);
  return [...twice].map(([uuid, hosts]) => {
    const known = store.duplicates.find((each) => each.uuid === uuid);
    return {
      id: `twice ${uuid}`, level: "bad", title: `${known ? guestName(known) : uuid} runs twice`,
      what: `The same uuid, ${uuid}, runs ${new Set(hosts).size === 1 ? `twice on ${hosts[0]}` : `on ${[...new Set(hosts)].join(" and ")}`}: both write to its disks.`,
      todo: "Stop one of them at once, and whatever starts it again. Then look at its disks.",
      link: href(["guests"], {duplicate: "true"}), see: "See both", buttons: [],
    };
  });
}

function ofMigration(one) {
  const who = guestName(one), link = links.migration(one.id), between = `${one.source} to ${one.destination}`;
  if (one.state === "held") {
    return [{
      id: one.id, level: "bad", title: `${who} is held`, link, see: "See the migration",
      what: `${sentence(one.error || one.held_code || "")} It waits for ${plain(heldUntil(one))}.`,
      todo: heldTodo(one),
      buttons: actions.answersOf(one),
    }];
  }
  const forecast = one.forecast;
  if (one.state === "recovering") {
    return [{
      id: one.id, level: "bad", title: `${who}: its postcopy stream is broken`, link, see: "See the migration",
      what: `It waits for memory that is still on ${one.source}${one.waiting_for ? `: ${plain(one.waiting_for)}` : ""}.`,
      todo: `Mend the link between ${one.source} and ${one.destination}. The stream goes on by itself. Do not stop either QEMU.`, buttons: [],
    }];
  }
  if (forecast && forecast.verdict === "cannot" && ["precopy", "mirroring"].includes(one.state)) {
    return [{
      id: one.id, level: "warn", title: `${who} is stuck`, link, see: "See the migration",
      what: `Moving from ${between}, it writes faster than its policy, ${one.policy}, lets the migration end.`,
      todo: one.can_postcopy ? "Switch it to postcopy, or cancel it and move it at a quieter time or with another policy." : "Cancel it and move it at a quieter time, or with another policy, must-finish for one.",
      buttons: [
        ...(one.can_postcopy ? [{label: "Postcopy now", press: () => actions.postcopy(one)}] : []),
        ...(one.can_cancel ? [{label: "Cancel", press: () => actions.cancelMigration(one), kind: "danger"}] : []),
      ],
    }];
  }
  return [];
}

function ofHost(host, now) {
  const name = host.host, link = links.host(name), see = "See the host", found = [];
  if (!host.up) {
    found.push({
      id: `down ${name}`, level: "bad", title: `${name} cannot be reached`, link, see,
      what: `${sentence(host.error)} ${host.guests ? `${count(host.guests, "guest")} ${host.guests === 1 ? "was" : "were"} there ${host.looked_at ? relative(host.looked_at, now) : "when it was seen last"}.` : ""}`,
      todo: "Guests on it may well run. See whether the machine is up and takes migrator's connection; it is asked again all the time.", buttons: [],
    });
  }
  if (host.guests_undriven) found.push({id: `undriven ${name}`, level: "bad", title: `${name}: ${count(host.guests_undriven, "guest")} in a migration that nobody drives`, what: "A migration was begun by something that is gone.", todo: "migrator direct --rescue, with the monitors of both ends, brings it to an end.", link, see, buttons: []});
  if (host.libvirt_error) found.push({id: `libvirt ${name}`, level: "warn", title: `${name}: its libvirt does not answer`, what: sentence(host.libvirt_error), todo: "Its guests of libvirt cannot be moved until it does. See whether libvirtd runs there.", link, see, buttons: []});
  if (host.guests_unmonitored) found.push({id: `unmonitored ${name}`, level: "warn", title: `${name}: ${count(host.guests_unmonitored, "guest")} without a monitor`, what: "They cannot be asked, nor moved.", todo: "Add their sockets to the host's configuration, or give them a QMP monitor.", link: href(["guests"], {search: name, monitored: "false"}), see: "See the guests", buttons: []});
  const days = host.certificates_expire_at ? (Date.parse(host.certificates_expire_at) - now) / 86400000 : Infinity;
  if (days < CERTIFICATE_DAYS) found.push({id: `certificate ${name}`, level: days < 2 ? "bad" : "warn", title: `${name}: its certificate ${days < 0 ? "has expired" : `expires ${relative(host.certificates_expire_at, now)}`}`, what: "Encrypted streams to and from it will be refused.", todo: `migrator pki renew ${name}`, link, see, buttons: []});
  return found;
}

function ofEvacuation(one, store, now) {
  const title = titleOf(one), link = links.evacuation(one.id), see = "See it", found = [];
  const cancel = one.can_cancel ? [{label: "Cancel", press: () => actions.cancelEvacuation(one), kind: "danger"}] : [];
  if (one.state === "scheduled") {
    if (one.window_fit !== "may-not-fit" && one.window_fit !== "does-not-fit") return [];
    return [{id: one.id, level: "warn", title: `${title}: its window ${one.window_fit === "does-not-fit" ? "will not do" : "may not do"}`, what: `${sentence(one.window_forecast)} It begins ${relative(one.starts_at, now)}.`, todo: "Cancel it and plan a longer window, or one with another policy; its host shows what it would do now.", link, see, buttons: cancel}];
  }
  if (one.late) found.push({id: `late ${one.id}`, level: "bad", title: `${title} is late`, what: `Its deadline was ${clock(one.deadline)}; ${count(one.guests_left, "guest")} ${one.guests_left === 1 ? "is" : "are"} ${stillThere(one)}.`, todo: "See which guests hold it up.", link, see, buttons: cancel});
  else if (one.at_risk) found.push({id: `risk ${one.id}`, level: "warn", title: `${title}: the deadline is at risk`, what: `${one.deadline ? `It must end by ${clock(one.deadline)}, ${relative(one.deadline, now)}` : "A guest will stay"}${one.forecast_end_at ? `; it is expected to end at ${clock(one.forecast_end_at)}${one.forecast_end_p90_at ? `, at the latest at ${clock(one.forecast_end_p90_at)}` : ""}` : ""}.`, todo: "See which guests hold it up: those that are stuck can be switched to postcopy.", link, see, buttons: []});
  const staying = one.guests.filter((guest) => STAYING.has(guest.standing) && guest.standing !== "held");
  if (staying.length) {
    const first = staying[0];
    found.push({id: `staying ${one.id}`, level: "bad", title: `${title}: ${count(staying.length, "guest")} cannot move`, what: `${sentence(`${guestName(first)}: ${first.reason}`)}${staying.length > 1 ? ` And ${count(staying.length - 1, "other")}.` : ""}`, todo: "Mend what its reason names, and it is tried again; or move it by itself with another policy.", link, see: "See every guest", buttons: staying.length === 1 ? [{label: `Move ${guestName(first)}`, press: () => actions.move(first)}] : []});
  }
  if (one.kind === "roll") found.push(...ofFailedHosts(one, store));
  return found;
}

/** One that ended with guests still there, as long as its host still is half empty. */
function ofPast(one, store, now) {
  if (!["incomplete", "stopped"].includes(one.state) || now - Date.parse(one.ended_at) > 86400000) return [];
  if (one.kind === "roll") return ofFailedHosts(one, store);
  const host = store.hosts.get(one.host);
  if (one.kind === "evacuate" && (!host || host.state !== "draining" || !host.guests)) return [];
  if ([...store.evacuations.values()].some((other) => other.host === one.host && other.state !== "scheduled" && other.kind !== "roll")) return [];
  if (store.pastEvacuations.some((other) => subjectOf(other) === subjectOf(one) && other.ended_at > one.ended_at)) return [];
  const evacuates = one.kind === "evacuate", again = evacuates ? "evacuate again" : "begin again";
  return [{
    id: `past ${one.id}`, level: "bad", title: `${titleOf(one)} ended with ${count(one.guests_left, "guest")} ${stillThere(one)}`,
    what: `${sentence(whyLeft(one))} It ended ${relative(one.ended_at, now)}.`,
    todo: `Mend what keeps them, and ${again}.${evacuates ? ` Until then ${one.host} takes no guests: it is draining. Activate it to leave it as it is, or restore it to have those back that have left.` : ""}`,
    link: links.evacuation(one.id), see: "See every guest",
    buttons: evacuates ? [{label: `Evacuate ${one.host}`, press: () => actions.evacuate(one.host)}, {label: `Restore ${one.host}`, press: () => actions.restore(one.host)}, {label: `Activate ${one.host}`, press: () => actions.activate(one.host)}] : one.kind === "restore" ? [{label: `Restore ${one.host}`, press: () => actions.restore(one.host)}] : [],
  }];
}

/** Where a roll stopped, until the hosts that were not well are in use again. */
function ofFailedHosts(one, store) {
  const failed = one.hosts.filter((each) => each.stage === "failed" && (store.hosts.get(each.host) || {}).state !== "active"), rest = one.hosts.filter((each) => each.stage === "left").map((each) => each.host);
  return failed.map((each) => ({
    id: `roll ${one.id} ${each.host}`, level: "bad", title: `The roll stopped at ${each.host}`, what: sentence(each.reason),
    todo: `Mend it, then restore ${each.host}, or activate it to leave its guests where they are${rest.length ? `, and roll through the rest: ${rest.join(", ")}` : ""}.`,
    link: links.evacuation(one.id), see: "See the roll",
    buttons: [{label: `Restore ${each.host}`, press: () => actions.restore(each.host)}, {label: `Activate ${each.host}`, press: () => actions.activate(each.host)}, ...(rest.length ? [{label: "Roll through the rest…", press: () => actions.roll(rest)}] : [])],
  }));
}

/** Of the same trouble of many hosts one item: a rack that is off is one thing to look at. */
const MANY = 4, TOGETHER = {
  down: (n) => `${n} hosts cannot be reached`, libvirt: (n) => `The libvirt of ${n} hosts does not answer`, unmonitored: (n) => `${n} hosts have guests without a monitor`, certificate: (n) => `The certificates of ${n} hosts expire`,
};

function together(found) {
  const kinds = new Map();
  for (const each of found) { const kind = each.id.split(" ")[0]; if (TOGETHER[kind]) kinds.set(kind, [...(kinds.get(kind) || []), each]); }
  const merged = new Map([...kinds].filter(([, items]) => items.length > MANY).map(([kind, items]) => [kind, {
    id: kind, level: items.some((each) => each.level === "bad") ? "bad" : "warn", title: TOGETHER[kind](items.length), what: items.length > 12 ? `${items.slice(0, 12).map(hostOf).join(", ")} and ${items.length - 12} more.` : `${items.map(hostOf).join(", ")}.`,
    todo: items[0].todo.replace(hostOf(items[0]), "HOST"), link: href(["hosts"], kind === "down" ? {state: "down"} : {}), see: "See the hosts", buttons: [],
  }]));
  const said = new Set();
  return found.flatMap((each) => {
    const kind = each.id.split(" ")[0], one = merged.get(kind);
    if (!one) return [each];
    if (said.has(kind)) return [];
    said.add(kind);
    return [one];
  });
}

const hostOf = (item) => item.id.slice(item.id.indexOf(" ") + 1);
