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
  if (value < 7200) return `${Math.floor(value / 60)} min${value < 600 ? ` ${Math.round(value % 60)} s` : ""}`;
  return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
}

export const percent = (ratio) => `${Math.round((ratio || 0) * 100)} %`;

export const number = (value) => (value ?? 0).toLocaleString("en");

export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;

/** A time of the wall clock; the day is said where it is not today. */
export function clock(time, {day = false} = {}) {
  if (!time) return "";
  const when = new Date(time);
  const today = new Date().toDateString() === when.toDateString();
  const hour = {hour: "2-digit", minute: "2-digit", hourCycle: "h23"};
  if (today && !day) return when.toLocaleTimeString("en-GB", {...hour, second: "2-digit"});
  return when.toLocaleString("en-GB", {...hour, day: "numeric", month: "short"});
}

/** How long ago, or in how long. */
export function relative(time, now = Date.now()) {
  if (!time) return "";
  const away = (Date.parse(time) - now) / 1000;
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

/** A sentence begins with a capital and ends with a full stop. */
export function sentence(text) {
  const given = plain(text).trim();
  if (!given) return "";
  return given[0].toUpperCase() + given.slice(1) + (/[.!?]$/.test(given) ? "" : ".");
}
