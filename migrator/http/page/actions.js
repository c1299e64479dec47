/** What a person may do, each with the question that comes before it. */
import {ask, at, send} from "./api.js";
import {guestName, plain, sentence} from "./format.js";
import {confirm, open} from "./dialogs.js";
import {failed, refresh} from "./store.js";
import {kindOf, subjectOf} from "./words.js";
import {EvacuateDialog} from "./evacuate_dialog.js";
import {MoveDialog} from "./move_dialog.js";
import {RollDialog} from "./roll_dialog.js";

export const evacuate = (host) => open(EvacuateDialog, {host, wide: true});
export const move = (guest) => open(MoveDialog, {guest});
export const roll = () => open(RollDialog, {});

export function restore(host) {
  confirm({title: `Restore ${host}?`, text: "The guests of its last evacuation come home, and it is active again.", yes: `Restore ${host}`, act: () => send(at("hosts", host, "restore"))});
}

export function activate(host) {
  confirm({title: `Activate ${host}?`, text: "Its maintenance ends, and it takes guests again. Nobody is brought home.", yes: `Activate ${host}`, act: () => send(at("hosts", host, "activate"))});
}

export function cordon(host) {
  confirm({title: `Cordon ${host}?`, text: "No new guests come to it. Nobody is moved.", yes: `Cordon ${host}`, act: () => send(at("hosts", host, "cordon"))});
}

export const uncordon = (host) => send(at("hosts", host, "uncordon")).then(refresh, failed);

export function cancelEvacuation(one) {
  const kind = kindOf(one);
  const after = {
    evacuation: one.state === "scheduled" ? "Nothing of it was begun." : `Guests that moved stay moved; ${one.host} is active again.`,
    restore: "Guests that are home stay there.", "group move": "Guests that moved stay moved.",
    roll: "No other host is begun; those under way come to their end.",
  }[kind];
  confirm({title: `Cancel the ${kind} of ${plain(subjectOf(one))}?`, text: after, yes: `Cancel the ${kind}`, kind: "danger", act: () => send(at("evacuations", one.id, "cancel"))});
}

export function cancelMigration(one) {
  confirm({title: "Cancel this migration?", text: `${guestName(one)} stays on ${one.source}, and runs on.`, yes: "Cancel the migration", kind: "danger", act: () => send(at("migrations", one.id, "cancel"))});
}

export function postcopy(one) {
  confirm({
    title: `Switch ${guestName(one)} to postcopy now?`,
    text: [`It stops on ${one.source} for a moment, runs on ${one.destination}, and fetches the rest of its memory from there while it runs.`,
      "From then on it cannot be cancelled: until the last page has come it needs both hosts and the link between them."],
    yes: "Switch to postcopy", act: () => send(at("migrations", one.id, "postcopy")),
  });
}

/** A person's answer on a held migration: what would be done is said first, and only that is done. */
export async function resolve(one, where, label) {
  const path = at("migrations", one.id, "resolve"), who = guestName(one);
  try {
    const answer = await ask(path, {body: {guest_at: where, dry_run: true}});
    if (answer.accepted) confirm({title: `${who}: ${label}?`, text: answer.will.map(sentence), yes: "Do it", kind: answer.ends_process ? "danger" : "main", act: () => send(path, {guest_at: where, agreed: answer.code})});
    else confirm({title: `${who}: refused`, text: [sentence(answer.refused), ...answer.instead.map(sentence)]});
  } catch (error) {
    if (error.status === 401) failed(error);
    else confirm({title: `${who}: not now`, text: sentence(error.message)});
  }
}

export const answersOf = (one) => [
  {label: `It is at ${one.source}`, press: () => resolve(one, "source", `it is at ${one.source}`)},
  {label: `It is at ${one.destination}`, press: () => resolve(one, "destination", `it is at ${one.destination}`)},
  {label: "It is lost", press: () => resolve(one, "lost", "it is lost"), kind: "danger"},
];
