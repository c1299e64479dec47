/** How fast a guest writes over the day: by that one knows when to move it. */
import {html} from "./ui.js";
import {roundUp} from "./axis.js";
import {ask, query} from "./api.js";
import {Empty, Section, useAsked} from "./parts.js";
import {count, rate} from "./format.js";
import {store} from "./store.js";

const HEIGHT = 120, WIDTH = 720, LEFT = 70, BOTTOM = 100;

export function DirtyRates({guest, now}) {
  const asked = useAsked(() => ask(`dirty-rates${query({guest})}`), [guest, store.edition]), given = asked.value;
  const hours = given ? given.hours.filter((each) => each.weight > 0) : [];
  if (!hours.length) return html`<${Section} title="Dirty rate over the day" id="dirty"><${Empty}>${asked.error || "Not measured often enough yet."}</${Empty}></${Section}>`;
  const most = roundUp(Math.max(now ?? 0, ...hours.map((each) => each.bytes_per_second))), x = (hour) => LEFT + ((WIDTH - LEFT) / 24) * hour, y = (value) => BOTTOM - (BOTTOM - 8) * (value / most);
  const zone = -new Date().getTimezoneOffset() / 60, here = (hour) => (((hour + zone) % 24) + 24) % 24, present = new Date().getHours();
  const said = `${count(hours.length, "hour")} of the day measured; the most is ${rate(Math.max(...hours.map((each) => each.bytes_per_second)))}`;
  return html`<${Section} title="Dirty rate over the day" id="dirty"><svg class="hours" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${said}>
      ${[0, 1].map((share) => html`<g><line class="grid" x1=${LEFT} x2=${WIDTH} y1=${y(most * share)} y2=${y(most * share)} /><text x=${LEFT - 6} y=${y(most * share) + 4} text-anchor="end">${rate(most * share)}</text></g>`)}
      ${hours.map((each) => html`<rect key=${each.hour} class=${Math.floor(here(each.hour)) === present ? "present" : ""} x=${x(here(each.hour)) + 2} width=${(WIDTH - LEFT) / 24 - 4} y=${y(each.bytes_per_second)} height=${Math.max(1, BOTTOM - y(each.bytes_per_second))}><title>${`${Math.floor(here(each.hour))}:00, ${rate(each.bytes_per_second)}`}</title></rect>`)}
      ${[0, 6, 12, 18].map((hour) => html`<text x=${x(hour)} y=${HEIGHT - 4}>${String(hour).padStart(2, "0")}:00</text>`)}</svg>
    <p class="quiet small">The mean of what was measured at each hour, in your time zone. It is moved most easily when it writes least.</p></${Section}>`;
}
