/** One migration: its curve, its downtime, both ends, and what may be done now. */
import {html, useEffect} from "./ui.js";
import * as actions from "./actions.js";
import {ask, at} from "./api.js";
import {Curve, Downtime} from "./curve.js";
import {Action, Empty, Facts, Findings, Said, State, useAsked} from "./parts.js";
import {bytes, clock, guestName, interval, now, percent, plain, rate, relative, seconds, sentence} from "./format.js";
import {links} from "./router.js";
import {isOperator, recallCurve, store} from "./store.js";
import {progressOf} from "./migrations.js";
import {ENDED, heldTodo, heldUntil, wayOf, whyNoCancel, whyNoPostcopy, whyNoResolve} from "./words.js";

function Buttons({one}) {
  if (!isOperator()) return null;
  const held = one.state === "held", about = `of ${guestName(one)}`;
  return html`<div class="buttons" role="group" aria-label=${`What may be done with ${guestName(one)}`}>
    ${held ? actions.answersOf(one).map((each) => html`<${Action} key=${each.label} ...${each} />`) : null}
    <${Action} label="Postcopy now" why=${one.can_postcopy ? "" : whyNoPostcopy(one)} press=${() => actions.postcopy(one)} />
    <${Action} label="Cancel" kind="danger" about=${`migration ${about}`} why=${one.can_cancel && !ENDED.has(one.state) ? "" : whyNoCancel(one)} press=${() => actions.cancelMigration(one)} />
    ${held ? null : html`<${Action} label="Resolve" why=${whyNoResolve(one)} press=${() => {}} />`}
    ${ENDED.has(one.state) && one.state !== "guest-ended" ? html`<${Action} label="Move it again" press=${() => actions.move({guest: one.guest, name: one.guest_name, host: one.state === "completed" ? one.destination : one.source})} />` : null}</div>`;
}

const End = ({title, host, socket, text}) => html`<div class="card end"><h2>${title}</h2><p><a href=${links.host(host)}>${host}</a> ${text}</p>${socket ? html`<p class="small quiet"><code>${plain(socket)}</code></p>` : null}</div>`;

/** Where the guest runs, as far as its state says. */
function ends(one) {
  const arrived = ["postcopy", "recovering", "finishing", "completed"].includes(one.state), unsure = ["held", "switchover"].includes(one.state);
  if (one.state === "guest-ended") return ["the guest ended", ""];
  if (unsure) return [one.state === "held" ? "is the guest here?" : "the guest stands still", one.state === "held" ? "or here?" : ""];
  return arrived ? [["postcopy", "recovering"].includes(one.state) ? "still has a part of its memory" : "the guest has left", "the guest runs here"] : ["the guest runs here", ["failed", "cancelled"].includes(one.state) ? "nothing of it is left" : "waits for it"];
}

export function Migration({id}) {
  const live = store.migrations.get(id), past = store.pastMigrations.find((each) => each.id === id);
  // Events have no decisions: of one that has ended the document has them all.
  const asked = useAsked(() => ask(at("migrations", id)), [id, Boolean(live), past && past.state]);
  const known = live || past, one = known ? {...asked.value, ...known, decisions: longest(known.decisions, asked.value && asked.value.decisions), findings: longest(known.findings, asked.value && asked.value.findings)} : asked.value;
  const curve = one ? recallCurve(one) : null;
  useEffect(() => { if (one && curve && !curve.recalled) recallCurve(one); }, [id]);
  if (!one) return asked.error ? html`<${Empty}>${sentence(asked.error)} <a href="#/migrations">All migrations</a></${Empty}>` : html`<${Empty}>Asking…</${Empty}>`;
  const [atSource, atTarget] = ends(one), forecast = one.forecast, running = !ENDED.has(one.state) && one.state !== "held";
  return html`<div class="row"><h1><a href=${links.guest(one.guest)}>${guestName(one)}</a></h1><${State} of=${one.state} bad=${one.ceiling_exceeded} />
      <span class="quiet">${wayOf(one)}</span></div>
    ${one.state === "held" ? html`<div class="card need bad"><h2>A person must look</h2><p>${sentence(one.error || one.held_code)} It waits for ${plain(heldUntil(one))}.</p>
      <p class="todo">${heldTodo(one)}</p></div>` : one.error ? html`<p class="bad"><${Said} text=${sentence(one.error)} /></p>` : null}
    ${one.ceiling_exceeded ? html`<p class="bad">It stood still for longer than its policy allows.</p>` : null}
    ${running ? html`<progress max="1" value=${one.progress_ratio} aria-label=${`Progress of ${guestName(one)}`}></progress>
      <p>${[percent(one.progress_ratio), progressOf(one), interval(forecast) ? `between ${interval(forecast)}` : ""].filter(Boolean).join(", ")}</p>` : null}
    <${Buttons} one=${one} /><${Downtime} one=${one} />
    <${Curve} one=${one} samples=${curve.samples} now=${now()} />
    <div class="ends"><${End} title="Source" host=${one.source} socket=${one.source_socket} text=${atSource} /><${End} title="Destination" host=${one.destination} socket=${one.destination_socket} text=${atTarget} /></div>
    ${one.findings && one.findings.length ? html`<h2>Findings</h2><${Findings} items=${one.findings} />` : null}
    <h2>Figures</h2><${Facts} items=${figures(one)} />`;
}

const longest = (a, b) => ((a || []).length >= (b || []).length ? a || [] : b);

function figures(one) {
  return [
    ["Policy", one.policy], ["Mode", one.mode], one.evacuation && ["Part of", html`<a href=${links.evacuation(one.evacuation)}>an evacuation</a>`], one.moved_with && ["Moved with", plain(one.moved_with)],
    ["Began", `${clock(one.started_at || one.created_at)}, ${relative(one.started_at || one.created_at)}`], one.ended_at && ["Ended", clock(one.ended_at)],
    one.duration_seconds !== null && [one.mode === "postcopy" && one.state === "completed" ? "Ran there after" : "Took", seconds(one.duration_seconds)], one.preparation_seconds !== null && ["Preparation", seconds(one.preparation_seconds)],
    ["Rounds", one.round], ["Sent", bytes(one.transferred_bytes)], one.total_bytes && ["Memory", bytes(one.total_bytes)], one.disk_bytes ? ["Disks copied", bytes(one.disk_bytes)] : null,
    one.bandwidth_bytes_per_second && !one.ended_at && ["Bandwidth", rate(one.bandwidth_bytes_per_second)], one.dirty_rate_bytes_per_second && !one.ended_at && ["Dirty rate", rate(one.dirty_rate_bytes_per_second)],
    ["Slowed down by at most", percent(Math.max(one.max_throttle_ratio, one.throttle_ratio))], one.recoveries ? ["Streams mended", one.recoveries] : null,
    ["Encrypted", one.tls ? "yes" : "no"], one.streams > 1 && ["Streams", one.streams], one.compression !== "none" && ["Compression", one.compression],
    one.forecast_error_ratio !== null && ["Forecast was off by", percent(Math.abs(one.forecast_error_ratio))], one.network_problem && ["Network", plain(one.network_problem), "bad"],
    ["Asked for by", one.requested_by], one.controller && ["Controller", one.controller], ["Id", html`<code>${one.id}</code>`],
  ];
}
