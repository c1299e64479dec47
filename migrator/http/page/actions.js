/** What a person may do, each with the question that comes before it. */
import {at, send} from "./api.js";
import {guestName, plain} from "./format.js";
import {confirm, open} from "./dialogs.js";
import {failed, refresh} from "./store.js";
import {answersTaken, kindOf, subjectOf} from "./words.js";
import {EvacuateDialog} from "./evacuate_dialog.js";
import {MoveDialog} from "./move_dialog.js";
import {RollDialog} from "./roll_dialog.js";
import {ResolveDialog} from "./resolve_dialog.js";
import {RestoreDialog} from "./restore_dialog.js";
import {DiscardDialog, LoadDialog, SaveDialog} from "./file_dialogs.js";

export const evacuate = (host) => open(EvacuateDialog, {host, wide: true});
export const move = (guest) => open(MoveDialog, {guest});
export const roll = (hosts = []) => open(RollDialog, {hosts});
export const save = (guest) => open(SaveDialog, {guest});
export const load = (one) => open(LoadDialog, {one});
export const discard = (one, then) => open(DiscardDialog, {one, then});
export const restore = (host) => open(RestoreDialog, {host});

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

export const resolve = (one, where, label) => open(ResolveDialog, {one, where, label});

export const answersOf = (one) => {
  const taken = answersTaken(one), kind = (label) => (taken.includes(label) ? "main" : "");
  return [["source", one.source], ["destination", one.destination]].map(([word, host]) => ({label: `It is at ${host}`, kind: kind(`It is at ${host}`), press: () => resolve(one, word, `it is at ${host}`)}))
    .concat({label: "It is lost", press: () => resolve(one, "lost", "it is lost"), kind: "danger"});
};
