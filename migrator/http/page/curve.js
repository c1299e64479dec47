/** The curve of one migration: what is left, what is sent and what is written, with the decisions marked on it. */
import {html, useState} from "./ui.js";
import {roundUp, timeTicks} from "./axis.js";
import {Empty, useWidth} from "./parts.js";
import {bytes, plain, rate, seconds, sentence} from "./format.js";

const TOP = 26, LEFT = 62, RIGHT = 70;

function Legend({last}) {
  return html`<div class="row legend small">${[["left", "left to send", last && bytes(last.left)], ["stream", "sent", last && rate(last.stream)], ["dirty", "written by the guest", last && rate(last.dirty)]].map(([kind, text, value]) => html`
    <span key=${kind}><i class=${`key ${kind}`} aria-hidden="true"></i>${text}${value ? html` <b>${value}</b>` : null}</span>`)}</div>`;
}

/** Rounds begin where their number grows. */
function roundsOf(samples) {
  return samples.filter((each, n) => n > 0 && each.round > samples[n - 1].round && each.round > 1);
}

function Decisions({made, chosen, choose, x, begin, height}) {
  const places = made.map((each) => x(begin + each.at_seconds * 1000));
  return html`<g>${made.map((each, n) => html`<g key=${n} class=${`decision ${chosen === n ? "chosen" : ""}`} role="button" tabindex="0" aria-label=${`Decision ${n + 1}, after ${seconds(each.at_seconds)}: ${plain(each.action)}. ${sentence(each.reason)}`}
    onMouseEnter=${() => choose(n)} onFocus=${() => choose(n)} onClick=${() => choose(n)} onKeyDown=${(event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(n); } }}>
    <line x1=${places[n]} x2=${places[n]} y1=${TOP - 6} y2=${height} /><rect class="reach" x=${places[n] - 12} width="24" y="0" height=${height} /><circle cx=${places[n]} cy="12" r="10" /><text x=${places[n]} y="16" text-anchor="middle">${n + 1}</text></g>`)}</g>`;
}

export function Curve({one, samples, now}) {
  const [place, width] = useWidth(240), [chosen, choose] = useState(null), made = one.decisions || [];
  const begin = one.started_at ? Date.parse(one.started_at) : null;
  if (begin === null || samples.length < 2) {
    const why = one.ended_at ? "No figures were kept of it." : ["queued", "waiting"].includes(one.state) ? `It waits${one.waiting_for ? ` for ${plain(one.waiting_for)}` : " for its turn"}: nothing is copied yet.` : "It is being prepared: nothing is copied yet.";
    return html`<${Empty}>${why}</${Empty}><${DecisionList} made=${made} chosen=${null} choose=${() => {}} />`;
  }
  const inner = Math.max(160, width - LEFT - RIGHT), height = width > 600 ? 220 : 170, bottom = height - 22;
  const last = samples[samples.length - 1], held = one.state === "held", decided = made.length ? begin + made[made.length - 1].at_seconds * 1000 : 0;
  const end = one.ended_at ? Math.max(last.time, begin + (one.duration_seconds || 0) * 1000) : held ? Math.max(last.time, decided) : Math.max(now, last.time);
  const x = (time) => LEFT + inner * Math.min(1, Math.max(0, (time - begin) / Math.max(1, end - begin)));
  const most = roundUp(Math.max(...samples.map((each) => each.left), 1)), fast = roundUp(Math.max(...samples.map((each) => Math.max(each.stream, each.dirty)), 1));
  const y = (share) => bottom - (bottom - TOP) * Math.min(1, Math.max(0, share));
  const path = (value) => samples.map((each, n) => `${n ? "L" : "M"}${x(each.time).toFixed(1)} ${y(value(each)).toFixed(1)}`).join("");
  const left = path((each) => each.left / most), ticks = timeTicks(begin, end, Math.max(2, Math.floor(inner / 90)), begin);
  const said = `Over ${seconds((end - begin) / 1000)}: ${one.ended_at ? `${bytes(one.transferred_bytes)} sent in ${one.round} rounds` : `${bytes(last.left)} of ${bytes(one.total_bytes)} left, ${rate(last.stream)} sent, ${rate(last.dirty)} written`}; ${made.length} decisions, listed below`;
  return html`<div class="curve" ref=${place}><${Legend} last=${one.ended_at || held ? null : last} />
    <svg width=${width} height=${height} role="group" aria-label=${said}>
      ${[0, 0.5, 1].map((share) => html`<g class="y"><line class="grid" x1=${LEFT} x2=${LEFT + inner} y1=${y(share)} y2=${y(share)} /><text x=${LEFT - 6} y=${y(share) + 4} text-anchor="end">${bytes(most * share)}</text><text x=${LEFT + inner + 6} y=${y(share) + 4}>${rate(fast * share)}</text></g>`)}
      ${ticks.map((tick) => html`<g><line class="tick" x1=${x(tick.at)} x2=${x(tick.at)} y1=${bottom} y2=${bottom + 4} /><text x=${x(tick.at)} y=${height - 4} text-anchor=${x(tick.at) > LEFT + inner - 20 ? "end" : x(tick.at) < LEFT + 10 ? "start" : "middle"}>${tick.text}</text></g>`)}
      ${roundsOf(samples).slice(0, 40).map((each) => html`<line class="round" x1=${x(each.time)} x2=${x(each.time)} y1=${bottom - 8} y2=${bottom}><title>Round ${each.round} begins</title></line>`)}
      <path class="area" d=${`${left}L${x(last.time)} ${bottom}L${x(samples[0].time)} ${bottom}Z`} /><path class="left" d=${left} />
      <path class="stream" d=${path((each) => each.stream / fast)} /><path class="dirty" d=${path((each) => each.dirty / fast)} />
      <${Decisions} made=${made} chosen=${chosen} choose=${choose} x=${x} begin=${begin} height=${bottom} /></svg>
    <p class="said" role="status">${chosen !== null && made[chosen] ? html`<b>${chosen + 1}. After ${seconds(made[chosen].at_seconds)}: ${plain(made[chosen].action)}.</b> ${sentence(made[chosen].reason)}` : made.length ? "Point at a number, or tap it, for the decision taken there." : ""}</p>
    <${DecisionList} made=${made} chosen=${chosen} choose=${choose} /></div>`;
}

function DecisionList({made, chosen, choose}) {
  if (!made.length) return null;
  return html`<ol class="decisions small" aria-label="Decisions">${made.map((each, n) => html`<li key=${n} class=${chosen === n ? "chosen" : ""} onMouseEnter=${() => choose(n)}><span class="num">${seconds(each.at_seconds)}</span> <b>${plain(each.action)}</b> ${sentence(each.reason)}</li>`)}</ol>`;
}

/** Downtime against its ceiling: over it is red, never green. */
export function Downtime({one}) {
  const ceiling = one.max_downtime_seconds, measured = one.downtime_seconds, expected = one.expected_downtime_seconds, value = measured ?? expected;
  const over = one.ceiling_exceeded || (value !== null && value !== undefined && value > ceiling), top = Math.max(ceiling, value ?? 0) * 1.15 || 1;
  const kind = value === null || value === undefined ? "plain" : over ? "bad" : measured === null ? "busy" : "good";
  const what = measured !== null ? `${seconds(measured)}${one.downtime_uncertainty_seconds >= 0.0005 ? ` (± ${seconds(one.downtime_uncertainty_seconds)})` : ""} of downtime` : expected !== null && expected !== undefined ? `${seconds(expected)} expected` : one.ended_at ? "no downtime" : one.state === "held" ? "Downtime not known" : "Downtime not known yet";
  return html`<div class="gauge"><p><b class=${kind}>${what}</b>, ceiling ${seconds(ceiling)}${one.downtime_limit_seconds ? html`<span class="quiet">, QEMU was given ${seconds(one.downtime_limit_seconds)}</span>` : null}${over ? html` <b class="bad">${measured !== null ? "Above its ceiling." : "It would be above its ceiling."}</b>` : null}</p>
    <svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true"><rect class="back" x="0" y="1" width="100" height="6" /><rect class=${`fill ${kind}`} x="0" y="1" height="6" width=${value ? Math.max(0.6, (value / top) * 100) : 0} /><line x1=${(ceiling / top) * 100} x2=${(ceiling / top) * 100} y1="0" y2="8" /></svg>
    ${one.postcopy_stall_seconds !== null && one.postcopy_stall_seconds !== undefined ? html`<p class=${one.max_postcopy_stall_seconds && one.postcopy_stall_seconds > one.max_postcopy_stall_seconds ? "bad" : "quiet"}>It waited for pages for ${seconds(one.postcopy_stall_seconds)} after the switch${one.max_postcopy_stall_seconds ? `, ceiling ${seconds(one.max_postcopy_stall_seconds)}` : ""}.</p>` : null}</div>`;
}
