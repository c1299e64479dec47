/** What states are called, which of them are good, and why a button is not offered now. */

export const ENDED = new Set(["completed", "failed", "cancelled", "guest-ended"]);

const TONES = {
  completed: "good", moved: "good", done: "good", active: "good", running: "good", fits: "good", acting: "good",
  failed: "bad", held: "bad", "set-aside": "bad", incomplete: "bad", "does-not-fit": "bad", "lost-contact": "bad",
  stopped: "warn", cancelled: "warn", draining: "warn", maintenance: "warn", "no-target": "warn", "guest-ended": "warn",
  recovering: "warn", "may-not-fit": "warn", gone: "warn", left: "warn", paused: "warn", saved: "warn",
  precopy: "busy", postcopy: "busy", switchover: "busy", mirroring: "busy", preparing: "busy", finishing: "busy",
  migrating: "busy", emptying: "busy", restoring: "busy", "handed-over": "busy", awaited: "busy", "evacuation running": "busy",
};

const NAMES = {
  precopy: "copies", mirroring: "copies disks", preparing: "prepares", finishing: "cleans up", switchover: "switches",
  waiting: "waits", queued: "waits", migrating: "moves", moved: "arrived", "set-aside": "set aside", "no-target": "no target",
  completed: "completed", recovering: "recovers", "guest-ended": "guest ended", "lost-contact": "lost contact",
  "handed-over": "handed over", awaited: "waits to be ready", emptying: "is emptied", restoring: "is filled again",
  "may-not-fit": "may be too short", "does-not-fit": "too short", fits: "long enough", unknown: "not forecast yet",
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

export const titleOf = (one) => `${kindOf(one)[0].toUpperCase()}${kindOf(one).slice(1)} of ${subjectOf(one)}`;

/** Guests of an evacuation that will not leave by themselves. */
export const STAYING = new Set(["held", "set-aside", "no-target"]);

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
