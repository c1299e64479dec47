/** Lists that the service sorts, filters and cuts into pages; the small ones are sorted and filtered here. */
import {ask, query} from "./api.js";

/** Guests, one page of them: {items, total, counts}. */
export const guests = (parameters) => ask(`guests${query(parameters)}`);

/** Made once: a comparison that names its language makes one each time. */
const byText = new Intl.Collator("en", {numeric: true});

export function sorted(items, sort, texts = {}) {
  const down = sort.startsWith("-"), field = down ? sort.slice(1) : sort, value = texts[field] || ((one) => one[field]);
  const missing = (x) => x === null || x === undefined;
  return [...items].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    const order = typeof x === "string" ? byText.compare(x, y) : x - y;
    return down ? -order : order;
  });
}

/** Whether every word is somewhere in one of the texts. */
export function matches(search, ...texts) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const all = texts.join("\n").toLowerCase();
  return words.every((each) => all.includes(each));
}
