/** A timeline as a picture: one bar a guest, time from left to right, its reason beside it. */
import {html, useState} from "./ui.js";
import {timeTicks} from "./axis.js";
import {Chips, Findings, Said, State, useWidth} from "./parts.js";
import {clock, count, rate, seconds} from "./format.js";

const FIRST = 200;
const LEGEND = [["waits", "waits"], ["prepares", "prepares"], ["copies", "copies"], ["switch", "switch"], ["postcopy", "postcopy"], ["arrived", "arrived"], ["stays", "stays, or needs a person"], ["forecast", "forecast, with its interval"]];
const CHIPS = [["stays", "cannot move, or held", (row) => ["held", "set-aside", "no-target"].includes(row.standing)], ["moves", "moves", (row) => row.standing === "migrating"], ["waits", "waits", (row) => row.standing === "waiting" && row.state !== "not-begun"], ["not-begun", "not begun", (row) => row.state === "not-begun"], ["arrived", "arrived", (row) => row.standing === "moved"]];

/** x of a time, in thousandths of the width. */
const scale = ({from, to}) => (at) => Math.min(1000, Math.max(0, ((at - from) / (to - from)) * 1000));

/** What is the same for every row: lines of the axis, the forecast's interval, now, the deadline. */
function Lines({line, ticks}) {
  const x = scale(line), inside = (at) => at !== null && at !== undefined && at >= line.from && at <= line.to;
  return html`<svg class="lines" viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">
    ${ticks.map((tick) => html`<line class="grid" x1=${x(tick.at)} x2=${x(tick.at)} y1="0" y2="100" />`)}
    ${line.forecast && inside(line.forecast.p10) ? html`<rect class="band" x=${x(line.forecast.p10)} width=${Math.max(1, x(line.forecast.p90 ?? line.to) - x(line.forecast.p10))} y="0" height="100" />` : null}
    ${inside(line.now) ? html`<line class="now" x1=${x(line.now)} x2=${x(line.now)} y1="0" y2="100" />` : null}
    ${inside(line.deadline) ? html`<line class="deadline" x1=${x(line.deadline)} x2=${x(line.deadline)} y1="0" y2="100" />` : null}</svg>`;
}

function Strip({row, line}) {
  const x = scale(line);
  return html`<svg class="strip" viewBox="0 0 1000 24" preserveAspectRatio="none" aria-hidden="true">
    ${row.bars.map((bar, n) => html`<rect key=${n} class=${`bar ${bar.phase} ${bar.forecast ? "guess" : ""}`} x=${x(bar.from)} width=${Math.max(bar.phase === "waits" ? 0 : 3, x(bar.to) - x(bar.from))} y=${bar.phase === "waits" ? 10 : 5} height=${bar.phase === "waits" ? 4 : 14} />`)}
    ${row.whisker ? html`<path class="whisker" d=${`M${x(row.whisker.from)} 12H${x(row.whisker.to ?? line.to)}M${x(row.whisker.from)} 8V16${row.whisker.to === null ? "" : `M${x(row.whisker.to)} 8V16`}`} />` : null}
    ${row.arrived === null ? null : html`<rect class="bar arrived" x=${x(row.arrived)} width="6" y="3" height="18" />`}</svg>`;
}

function Row({row, line}) {
  const times = row.arrived ? `, arrived ${clock(row.arrived)}` : "";
  return html`<li class=${`guest ${row.standing}`}><div class="who">${row.link ? html`<a data-row href=${row.link}>${row.name}</a>` : html`<b>${row.name}</b>`}
      ${row.state === "planned" ? null : html`<${State} of=${row.state} bad=${row.bad || row.standing === "no-target"} />`}<span class="quiet small">${row.target ? ` to ${row.target}` : ""}${row.detail ? `, ${row.detail}` : ""}<span class="unseen">${times}</span></span></div>
    <${Strip} row=${row} line=${line} />
    ${row.reason || (row.findings && row.findings.length) ? html`<div class="reason small"><${Said} text=${row.reason} />${row.findings && row.findings.length ? html`<${Findings} items=${row.findings} />` : null}</div>` : null}</li>`;
}

function Axis({line, ticks, wide}) {
  const x = scale(line), labels = [], edge = 32000 / Math.max(1, wide);
  // Two labels that would lie over each other stand on either side of their lines.
  const near = line.now !== null && line.deadline !== null && Math.abs(x(line.now) - x(line.deadline)) < 80000 / Math.max(1, wide);
  const mark = (at, text, kind) => { if (at !== null && at !== undefined && at >= line.from && at <= line.to) labels.push({x: x(at) / 10, text, kind}); };
  mark(line.now, "now", "now");
  const due = line.since === null && line.deadline !== null ? `deadline ${clock(line.deadline).slice(0, 5)}` : "deadline";
  mark(line.deadline, due, "deadline");
  if (line.deadline !== null && line.deadline > line.to && (line.now !== null || line.since !== null)) labels.push({x: 100, text: `${due} →`, kind: "deadline"});
  return html`<div class="axis" aria-hidden="true"><div class="marks">${labels.map((each) => html`<span class=${`${each.kind} ${near ? ((each.kind === "now") === (line.now < line.deadline) ? "end" : "start") : each.x > 80 ? "end" : ""}`} style=${{left: `${each.x}%`}}>${each.text}</span>`)}</div>
    <div class="ticks">${ticks.map((tick) => html`<span class=${x(tick.at) > 1000 - edge ? "end" : x(tick.at) < edge ? "start" : ""} style=${{left: `${x(tick.at) / 10}%`}}>${tick.text}</span>`)}</div></div>`;
}

/** The links' use, below the guests; drawn once there is some. */
function Use({line, capacity}) {
  const most = Math.max(0, ...line.use.map((bin) => bin.rate));
  if (!most) return null;
  const x = scale(line), top = Math.max(most, capacity || 0), y = (value) => 46 - (value / top) * 44;
  const path = line.use.map((bin) => `L${x(bin.from).toFixed(1)} ${y(bin.rate).toFixed(1)}H${x(bin.to).toFixed(1)}`).join("");
  const said = `Together they sent up to ${rate(most)}${capacity ? ` of the link's ${rate(capacity)}` : ""}`;
  return html`<div class="guest use"><div class="who"><b>Use of the links</b> <span class="quiet small">${said}</span></div>
    <svg class="strip tall" viewBox="0 0 1000 48" preserveAspectRatio="none" role="img" aria-label=${said}>${capacity && capacity <= top ? html`<line class="capacity" x1="0" x2="1000" y1=${y(capacity)} y2=${y(capacity)} />` : null}
      <path class="used" d=${`M${x(line.use[0].from)} 46${path}V46Z`} /></svg></div>`;
}

export function Timeline({line, capacity, label}) {
  const [place, width] = useWidth(200), [chosen, choose] = useState(""), [all, showAll] = useState(false);
  const wide = width > 760 ? width - 340 : width, ticks = timeTicks(line.from, line.to, Math.max(2, Math.floor(wide / 90)), line.since);
  const items = CHIPS.map(([value, text, fits]) => [value, text, line.rows.filter(fits).length, value === "stays" ? "bad" : ""]).filter((item) => item[2]);
  const fits = CHIPS.find(([value]) => value === chosen), rows = fits ? line.rows.filter(fits[2]) : line.rows, shown = all ? rows : rows.slice(0, FIRST);
  const phases = new Set(line.rows.flatMap((row) => row.bars.map((bar) => (bar.forecast ? "forecast" : bar.phase))));
  if (line.rows.some((row) => row.arrived !== null)) phases.add("arrived");
  return html`<div class="timeline" ref=${place}>
    <div class="row legend small">${LEGEND.filter(([phase]) => phases.has(phase)).map(([phase, text]) => html`<span key=${phase}><i class=${`key ${phase}`} aria-hidden="true"></i>${text}</span>`)}</div>
    ${items.length > 1 ? html`<${Chips} label="Guests" items=${items} chosen=${chosen} choose=${choose} />` : null}
    ${line.forecast ? html`<p class="small quiet">${line.since === null ? `Forecast: all that can leave have left at ${clock(line.forecast.p50)}${line.forecast.p90 ? `, between ${clock(line.forecast.p10)} and ${clock(line.forecast.p90)}` : `, not before ${clock(line.forecast.p10)}; it may take much longer`}.` : `It takes about ${seconds(line.forecast.p50 / 1000)}${line.forecast.p90 ? `, between ${seconds(line.forecast.p10 / 1000)} and ${seconds(line.forecast.p90 / 1000)}` : ""}.`}</p>` : null}
    <${Axis} line=${line} ticks=${ticks} wide=${wide} />
    <div class="field"><${Lines} line=${line} ticks=${ticks} /><ol class="guests" aria-label=${label}>${shown.map((row) => html`<${Row} key=${row.key} row=${row} line=${line} />`)}</ol>
    ${rows.length > shown.length ? html`<div class="buttons"><button type="button" onClick=${() => showAll(true)}>Show ${count(rows.length - shown.length, "other guest")}</button></div>` : null}
    <${Use} line=${line} capacity=${capacity} /></div></div>`;
}
