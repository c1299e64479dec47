/** Figures, times and names as people read them. */

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(value) < 1024) return `${value < 10 && unit !== "B" ? value.toFixed(1) : value.toFixed(0)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

export const rate = (value) => (value === null || value === undefined ? "–" : `${bytes(value)}/s`);

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0) return `-${seconds(-value)}`;
  if (value < 1) return `${(value * 1000).toFixed(0)} ms`;
  if (value < 120) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  const whole = Math.round(value), minutes = Math.round(value / 60), hours = Math.round(value / 3600);
  if (whole < 600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  if (minutes < 120) return `${minutes} min`;
  if (hours < 48) return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
  return `${Math.floor(hours / 24)} days${hours % 24 ? ` ${hours % 24} h` : ""}`;
}

let skew = 0;

/** The time by the service's clock, which its documents are written by: this device's may be minutes off. */
export const now = () => Date.now() + skew;

/** By how much this device's clock is behind the service's, in milliseconds. */
export const clockSkew = () => skew;

/** Take a time of the service over, which it said between these two of ours. */
export function setClock(time, asked, answered) {
  const off = Date.parse(time) - (asked + answered) / 2, unsure = (answered - asked) / 2;
  if (Number.isFinite(off) && (Math.abs(off - skew) > unsure + 200)) skew = Math.abs(off) <= unsure + 200 ? 0 : off;
}

export const percent = (ratio) => `${Math.round((ratio || 0) * 100)} %`;

const grouped = new Intl.NumberFormat("en");

export const number = (value) => grouped.format(value ?? 0);

export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;

/** A time of the wall clock; the day is said where it is not today. */
export function clock(time, {day = false} = {}) {
  if (!time) return "";
  const when = new Date(time);
  const today = new Date(now()).toDateString() === when.toDateString();
  const hour = {hour: "2-digit", minute: "2-digit", hourCycle: "h23"};
  if (today && !day) return when.toLocaleTimeString("en-GB", {...hour, second: "2-digit"});
  return when.toLocaleString("en-GB", {...hour, day: "numeric", month: "short"});
}

/** How long ago, or in how long. */
export function relative(time, at = now()) {
  if (!time) return "";
  const away = (Date.parse(time) - at) / 1000;
  const amount = Math.abs(away) < 120 ? `${Math.round(Math.abs(away))} s` : seconds(Math.abs(away));
  return away < 0 ? `${amount} ago` : `in ${amount}`;
}

/** A forecast's interval; where nothing bounds it, in words. */
export function interval(forecast) {
  if (!forecast || forecast.p10_seconds === null || forecast.p10_seconds === undefined) return "";
  return forecast.p90_seconds === null
    ? `at least ${seconds(forecast.p10_seconds)}, it may take much longer`
    : `${seconds(forecast.p10_seconds)} to ${seconds(forecast.p90_seconds)}`;
}

/** A name as people may read it: what would turn the line around or hide in it is shown as a box. */
export const plain = (text) => String(text ?? "").replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "\u25a1");

/** A guest's name, or its key where it has none. */
export const guestName = (one) => plain(one.guest_name || one.name || one.guest);

/** A sentence begins with a capital, unless that is a name ("host-9: …"), and ends with a full stop. */
export function sentence(text) {
  const given = plain(text).trim();
  if (!given) return "";
  const first = /^[a-z']+(?=[ ,;.]|$)/.test(given) ? given[0].toUpperCase() + given.slice(1) : given;
  return first + (/[.!?]$/.test(given) ? "" : ".");
}
