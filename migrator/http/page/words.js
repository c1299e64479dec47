/** What states are called, which of them are good, and why a button is not offered now. */
import {count, guestName, plain} from "./format.js";

export const ENDED = new Set(["completed", "failed", "cancelled", "guest-ended"]);

const TONES = {
  completed: "good", moved: "good", done: "good", active: "good", running: "good", fits: "good", acting: "good",
  failed: "bad", held: "bad", "set-aside": "bad", incomplete: "bad", "does-not-fit": "bad", "lost-contact": "bad",
  stopped: "warn", cancelled: "warn", draining: "warn", maintenance: "warn", "no-target": "warn", "guest-ended": "warn",
  recovering: "warn", "may-not-fit": "warn", gone: "warn", left: "warn", paused: "warn", saved: "warn", outdated: "warn", unknown: "warn", missing: "bad", unreadable: "bad",
  precopy: "busy", postcopy: "busy", switchover: "busy", mirroring: "busy", preparing: "busy", finishing: "busy",
  migrating: "busy", emptying: "busy", restoring: "busy", "handed-over": "busy", awaited: "busy", "evacuation running": "busy",
};

const NAMES = {
  precopy: "copies", mirroring: "copies disks", preparing: "prepares", finishing: "cleans up", switchover: "switches",
  waiting: "waits", queued: "waits", migrating: "moves", moved: "arrived", "set-aside": "set aside", "no-target": "no target",
  completed: "completed", recovering: "recovers", "guest-ended": "guest ended", "lost-contact": "lost contact",
  "handed-over": "handed over", awaited: "waits to be ready", emptying: "is emptied", restoring: "is filled again",
  "not-begun": "not begun", "may-not-fit": "may be too short", "does-not-fit": "too short", fits: "long enough", unknown: "not forecast yet",
};

export const tone = (state) => TONES[state] || "plain";
export const name = (state) => NAMES[state] || state;

/** What sort of work an evacuation's document is about. */
export const kindOf = (one) => ({restore: "restore", group: "group move", roll: "roll"})[one.kind] || "evacuation";

export function subjectOf(one) {
  if (one.kind === "group") return `group ${one.group}`;
  if (one.kind === "roll") return (one.hosts || []).map((each) => each.host).join(", ");
  return one.host;
}

/** Where guests of one are that it has not moved yet. */
export const stillThere = (one) => (one.kind === "restore" ? "not at home" : one.kind === "group" ? "not moved" : `still on ${one.host}`);

export const titleOf = (one) => `${kindOf(one)[0].toUpperCase()}${kindOf(one).slice(1)} of ${subjectOf(one)}`;

/** What is said of guests that the libvirt of a host, or of one that an evacuation emptied, has shut off; or nothing. */
export function shutOff(one) {
  if (one.guests_shut_off === null) return `The libvirt of ${one.host} could not be asked which guests it has shut off.`;
  if (!one.guests_shut_off) return "";
  return `${count(one.guests_shut_off, "guest")} that libvirt has shut off ${one.guests_shut_off === 1 ? "stays" : "stay"} on ${one.host}: virsh list --inactive names ${one.guests_shut_off === 1 ? "it" : "them"}.`;
}

/** From where to where, a file included. */
export function wayOf(one) {
  if (one.file_use === "save") return `from ${one.source} into ${plain(one.file)}`;
  if (one.file_use === "load") return `from ${plain(one.file)} to ${one.destination}`;
  return `${one.source} to ${one.destination}`;
}

/** Guests of an evacuation that will not leave by themselves. */
export const STAYING = new Set(["held", "set-aside", "no-target"]);

/** Why guests of one that has ended are where they were, the same reasons together; at most so many guests named. */
export function whyLeft(one, named = 3) {
  const left = (one.guests || []).filter((guest) => guest.standing !== "moved"), reasons = new Map();
  if (one.kind === "roll" || !left.length) return plain(one.error || "");
  for (const guest of left) reasons.set(guest.reason || name(guest.standing), [...(reasons.get(guest.reason || name(guest.standing)) || []), guest]);
  return [...reasons].sort((a, b) => a[1].length - b[1].length).map(([reason, guests]) => {
    const names = guests.slice(0, named).map(guestName).join(", "), more = guests.length > named ? ` and ${guests.length - named} more` : "";
    return `${names}${more}: ${plain(reason)}`;
  }).join("; ");
}

/** What a guest's migration under way does with it, said after "it is"; and how bad that is. */
export function underWay(one) {
  if (!one) return ["in a migration", ""];
  if (one.state === "held") return ["held: a person must look", "bad"];
  if (one.state === "recovering") return ["in postcopy, and its stream is broken", "bad"];
  if (one.file_use) return [one.file_use === "save" ? "being saved" : "being loaded", ""];
  return [["queued", "waiting"].includes(one.state) ? "waiting to move" : "moving", ""];
}

export function whyNoCancel(one) {
  if (ENDED.has(one.state)) return "it has ended";
  if (one.state === "held") return "it is held: say where the guest is instead";
  if (one.state === "switchover") return "the guest is being switched over";
  if (one.state === "postcopy" || one.state === "recovering") return "the guest runs at the destination already, and needs the rest of its memory";
  if (one.state === "finishing") return "the guest has arrived";
  return "it is too late";
}

export function whyNoPostcopy(one) {
  if (ENDED.has(one.state)) return "it has ended";
  if (one.state === "held") return "it is held";
  if (one.state === "postcopy" || one.state === "recovering") return "it is in postcopy";
  if (["queued", "waiting", "preparing", "mirroring"].includes(one.state)) return "memory is not copied yet, or its policy or QEMU does not allow postcopy";
  if (["switchover", "finishing"].includes(one.state)) return "it is too late";
  return `policy ${one.policy} or one of the two QEMUs does not allow postcopy`;
}

/** What a held migration waits for, with the names of its hosts. */
export const heldUntil = (one) => (one.held_until || "a person's word").replace("at the source", `at ${one.source}`).replace("at the destination", `at ${one.destination}`);

/** Which of the buttons the controller would follow, as far as it said so: the names of those places. */
export function answersTaken(one) {
  const said = one.held_until || "", places = [["source", `It is at ${one.source}`], ["destination", `It is at ${one.destination}`], ["lost", "It is lost"]];
  return said.includes("a person's word that") ? places.filter(([word]) => said.includes(word === "lost" ? "is lost" : `at the ${word}`) || (word === "lost" && said.includes("or lost"))).map(([, label]) => label) : [];
}

/** What a person is to do about a held migration, and with which button. */
export function heldTodo(one) {
  const taken = answersTaken(one), look = `Look at both QEMUs, on ${one.source} and on ${one.destination}`;
  if (!taken.length) return `${look}, and press the button that says where the guest is. What will be done is said before it is done.`;
  return `${look}. Where you see that it is so, press ${taken.map((label) => `“${label}”`).join(" or ")}: what will be done is said before it is done.`;
}

export function whyNoResolve(one) {
  return ENDED.has(one.state) ? "it has ended" : "it is not held: the controller knows where the guest is";
}

/** What a forecast says besides its seconds. */
export function verdict(forecast) {
  if (!forecast) return "";
  if (forecast.verdict === "cannot") return "its policy does not let it end";
  if (forecast.verdict === "converges-if") {
    return `it takes ${{throttle: "throttling", "start-postcopy": "postcopy", pause: "a pause"}[forecast.rung] || forecast.rung} to end`;
  }
  if (forecast.verdict === "unknown" && forecast.p50_seconds === null) return forecast.waiting_for ? `waits for ${forecast.waiting_for}` : "";
  return "";
}
