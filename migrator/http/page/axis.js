/** Scales and their ticks. */
import {clock} from "./format.js";

const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

/** Times at round figures between two, at most so many; milliseconds. `since`: labels count from there. */
export function timeTicks(from, to, most, since = null) {
  const span = (to - from) / 1000;
  const step = STEPS.find((each) => span / each <= most) || Math.ceil(span / most / 86400) * 86400;
  const begin = since === null ? 0 : since, found = [];
  const zone = since === null ? new Date(from).getTimezoneOffset() * 60000 : 0;
  for (let at = Math.ceil((from - begin - zone) / 1000 / step) * step * 1000 + begin + zone; at <= to; at += step * 1000) {
    found.push({at, text: since === null ? wall(at, step) : at === begin ? "0" : (at - begin) / 1000 >= 60 && step % 60 === 0 ? `${Math.round((at - begin) / 60000)} min` : step < 1 ? `${((at - begin) / 1000).toFixed(1)} s` : shortSeconds((at - begin) / 1000)});
  }
  return found;
}

const shortSeconds = (value) => (value < 120 ? `${Math.round(value)} s` : `${Math.floor(value / 60)}:${String(Math.round(value % 60)).padStart(2, "0")} min`);

function wall(at, step) {
  const text = clock(at);
  return step % 60 === 0 && /^\d\d:\d\d:\d\d$/.test(text) ? text.slice(0, 5) : text;
}

/** The next round figure above, in steps that people read in bytes. */
export function roundUp(value) {
  if (value <= 0) return 1;
  const unit = 1024 ** Math.floor(Math.log(value) / Math.log(1024)), head = value / unit;
  const nice = [1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 200, 256, 400, 512, 800, 1024].find((each) => each >= head);
  return nice * unit;
}

