/** What a timeline is drawn from: of an evacuation that runs or has ended, and of a plan. Asks nothing, draws nothing. */
import {count, guestName, plain, seconds} from "./format.js";
import {links} from "./router.js";
import {STAYING} from "./words.js";

const BINS = 160;
const GROUP = {held: 0, "set-aside": 0, "no-target": 0, migrating: 1, waiting: 2};

/** Phases of one migration: [{phase, from, to}], in milliseconds; those of the past only. */
export function phasesOf(one, begin, now) {
  const created = Date.parse(one.created_at), started = one.started_at ? Date.parse(one.started_at) : null;
  const ended = one.ended_at ? Date.parse(one.ended_at) : null, until = ended ?? now, copying = Math.min(until, started ?? until);
  // Both ends are set up first; then it waits for its turn on the links.
  const prepares = ["queued", "waiting"].includes(one.state) ? created : one.preparation_seconds === null ? copying : Math.min(copying, created + one.preparation_seconds * 1000);
  const found = [{phase: "waits", from: begin, to: created}, {phase: "prepares", from: created, to: prepares}, {phase: "waits", from: prepares, to: copying}].filter((each) => each.to > each.from);
  if (copying >= until) return found;
  const still = (one.downtime_seconds ?? 0) * 1000, made = (one.decisions || []).find((each) => each.action === "start-postcopy");
  if (one.mode === "postcopy" && made) {
    const switched = Math.min(until, Math.max(copying, started + made.at_seconds * 1000));
    found.push({phase: "copies", from: copying, to: switched}, {phase: "switch", from: switched, to: Math.min(until, switched + still)}, {phase: "postcopy", from: Math.min(until, switched + still), to: until});
  } else if (one.state === "completed" || ["switchover", "finishing"].includes(one.state)) {
    const switched = Math.max(copying, until - Math.max(still, 1));
    found.push({phase: "copies", from: copying, to: switched}, {phase: "switch", from: switched, to: until});
  } else found.push({phase: ["failed", "cancelled"].includes(one.state) ? "failed" : "copies", from: copying, to: until});
  return found.filter((each) => each.to > each.from || each.phase === "switch");
}

/** A bar for each guest; past phases left of now, the forecast with its interval right of it. */
export function timelineOf(evacuation, migrations, now) {
  const begin = Date.parse(evacuation.starts_at || evacuation.created_at), ended = evacuation.ended_at ? Date.parse(evacuation.ended_at) : null;
  const byGuest = new Map();
  for (const one of migrations) byGuest.set(one.guest, [...(byGuest.get(one.guest) || []), one]);
  const asOf = evacuation.as_of || now, rows = evacuation.guests.map((guest) => rowOf(guest, byGuest.get(guest.guest) || [], {begin, now: ended ?? now, asOf, ended}));
  const forecast = evacuation.forecast_end_at && !ended ? {p50: Date.parse(evacuation.forecast_end_at), p10: Date.parse(evacuation.forecast_end_p10_at || evacuation.forecast_end_at), p90: evacuation.forecast_end_p90_at ? Date.parse(evacuation.forecast_end_p90_at) : null} : null;
  const deadline = evacuation.deadline || evacuation.window_ends_at, due = deadline ? Date.parse(deadline) : null;
  const known = [ended ?? now + 1000, ...(forecast ? [forecast.p90 ?? forecast.p50] : []), ...rows.flatMap((row) => row.bars.map((bar) => bar.to))];
  let to = Math.max(begin + 1000, ...known);
  if (due && !ended && due < begin + 2 * (to - begin)) to = Math.max(to, due);
  to += (to - begin) * 0.03;
  const order = (row) => GROUP[row.standing] ?? 3;
  rows.sort((a, b) => order(a) - order(b) || (order(a) === 3 && !ended ? b.end - a.end : a.start - b.start));
  return {from: begin, to, now: ended ? null : now, deadline: due, forecast, rows, use: useOf(migrations, begin, ended ?? now), since: null};
}

function rowOf(guest, migrations, {begin, now, asOf, ended}) {
  const bars = [], order = [...migrations].sort((a, b) => a.created_at.localeCompare(b.created_at));
  let from = begin, end = begin;
  for (const one of order) {
    const phases = phasesOf(one, from, now);
    bars.push(...phases);
    from = end = one.ended_at ? Date.parse(one.ended_at) : now;
  }
  const last = order[order.length - 1], active = last && !last.ended_at;
  if (!ended && guest.standing === "waiting") {
    if (from < now) bars.push({phase: "waits", from, to: now});
    if (guest.starts_in_seconds !== null && guest.takes_seconds !== null) {
      const starts = Math.max(now, asOf + guest.starts_in_seconds * 1000);
      bars.push({phase: "copies", from: starts, to: starts + guest.takes_seconds * 1000, forecast: true});
      from = starts;
    } else from = Infinity;
  }
  let whisker = null;
  if (active && last.state !== "held" && last.forecast && last.forecast.p50_seconds !== null) {
    const {p10_seconds: p10, p50_seconds: p50, p90_seconds: p90} = last.forecast;
    bars.push({phase: last.state === "postcopy" ? "postcopy" : "copies", from: now, to: now + p50 * 1000, forecast: true});
    whisker = {from: now + (p10 ?? p50) * 1000, to: p90 === null ? null : now + p90 * 1000};
  }
  if (STAYING.has(guest.standing)) bars.push({phase: "stays", from: Math.min(now, end), to: now});
  const first = bars.find((bar) => bar.phase !== "waits");
  return {
    key: guest.guest, name: guestName(guest), link: guest.migration ? links.migration(guest.migration) : links.guest(guest.guest),
    standing: guest.standing, state: active ? last.state : ended && guest.standing === "waiting" ? "not-begun" : guest.standing, bad: guest.ceiling_exceeded, target: guest.target, bars, whisker, start: first ? first.from : from, end,
    arrived: guest.standing === "moved" ? end : null,
    reason: [guest.ceiling_exceeded ? "Downtime above its ceiling." : "", plain(guest.reason), guest.doubt ? plain(guest.doubt) : "", guest.attempts > 1 ? `${count(guest.attempts, "attempt")}` : ""].filter(Boolean).join(" · "),
    detail: active ? activeDetail(last) : last && last.state === "completed" ? `${seconds(last.duration_seconds)}, downtime ${seconds(last.downtime_seconds)}` : "",
    progress: active ? last.progress_ratio : null,
  };
}

function activeDetail(one) {
  if (one.state === "held") return "a person must look";
  const left = one.forecast && one.forecast.p50_seconds !== null ? `, ${seconds(one.forecast.p50_seconds)} to go` : "";
  return `${Math.round(one.progress_ratio * 100)} %${left}`;
}

/** Bytes per second that the migrations sent together, in bins from the beginning to now. */
function useOf(migrations, from, to) {
  const width = (to - from) / BINS, bins = new Array(BINS).fill(0);
  if (width <= 0) return [];
  for (const one of migrations) {
    if (!one.started_at || !one.transferred_bytes) continue;
    const end = one.ended_at ? Date.parse(one.ended_at) : to, begin = Math.min(end - 1, Date.parse(one.started_at));
    const rate = one.transferred_bytes / ((end - begin) / 1000);
    for (let n = Math.max(0, Math.floor((begin - from) / width)); n < BINS && from + n * width < end; n += 1) {
      const share = (Math.min(end, from + (n + 1) * width) - Math.max(begin, from + n * width)) / width;
      if (share > 0) bins[n] += rate * share;
    }
  }
  return bins.map((rate, n) => ({from: from + n * width, to: from + (n + 1) * width, rate}));
}

/** A plan in the same form: time counts from the moment at which one says yes. */
export function timelineOfPlan(plan, deadlineSeconds) {
  const rows = plan.guests.map((guest) => {
    const starts = (guest.starts_in_seconds ?? 0) * 1000, takes = (guest.takes_p50_seconds ?? 0) * 1000, bars = [];
    if (guest.possible) bars.push({phase: "waits", from: 0, to: starts}, {phase: "copies", from: starts, to: starts + takes, forecast: true});
    return {
      key: guest.guest, name: guestName(guest), link: null, standing: guest.possible ? "waiting" : "no-target", state: guest.possible ? "planned" : "stays", target: guest.target, bars,
      whisker: guest.possible && guest.takes_p10_seconds !== null ? {from: starts + guest.takes_p10_seconds * 1000, to: guest.takes_p90_seconds === null ? null : starts + guest.takes_p90_seconds * 1000} : null,
      start: guest.order ?? Infinity, end: 0, arrived: null, progress: null,
      reason: [guest.saved_into ? `It would be saved into ${plain(guest.saved_into)}.` : "", plain(guest.reason), guest.experience ? plain(guest.experience.note) : ""].filter(Boolean).join(" · "),
      detail: guest.possible ? `${guest.policy}, ${seconds(guest.takes_p50_seconds)}${guest.downtime_seconds === null ? "" : `, downtime ${seconds(guest.downtime_seconds)}`}` : "",
      findings: guest.findings,
    };
  });
  rows.sort((a, b) => (GROUP[a.standing] ?? 3) - (GROUP[b.standing] ?? 3) || a.start - b.start);
  const ends = rows.flatMap((row) => [...row.bars.map((bar) => bar.to), ...(row.whisker && row.whisker.to ? [row.whisker.to] : [])]);
  const p = (name) => (plan[name] === null ? null : plan[name] * 1000), due = deadlineSeconds === null ? null : deadlineSeconds * 1000;
  let to = Math.max(1000, ...ends, p("takes_p90_seconds") ?? p("takes_p50_seconds") ?? 0);
  if (due !== null && due > 0 && due < 3 * to) to = Math.max(to, due);
  return {from: 0, to: to * 1.03, now: null, deadline: due, forecast: plan.takes_p50_seconds === null ? null : {p10: p("takes_p10_seconds") ?? p("takes_p50_seconds"), p50: p("takes_p50_seconds"), p90: p("takes_p90_seconds")}, rows, use: [], since: 0};
}
