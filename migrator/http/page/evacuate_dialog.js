/** Before a host is emptied: what would happen, as a picture, with the questions that change it. */
import {html, useEffect, useRef, useState} from "./ui.js";
import {ask, at, send} from "./api.js";
import {Form} from "./dialogs.js";
import {count, guestName, now, rate, seconds} from "./format.js";
import {PolicyAllows, PolicyField, usePolicies} from "./policies.js";
import {Timeline} from "./timeline_view.js";
import {timelineOfPlan} from "./timeline.js";

/** Codes of findings that a person may take upon himself, with how many guests have them. */
export function Accept({codes, accepted, change}) {
  if (!codes.size && !accepted.length) return null;
  const all = new Map([...accepted.map((code) => [code, {n: 0, message: "accepted"}]), ...codes]);
  return html`<fieldset><legend>Findings that you accept</legend>${[...all].map(([code, {n, message}]) => html`<label class="check" key=${code}>
    <input type="checkbox" checked=${accepted.includes(code)} onChange=${(event) => change(event.target.checked ? [...accepted, code] : accepted.filter((each) => each !== code))} />
    <span><code>${code}</code>${n ? ` (${count(n, "guest")})` : ""}: ${message}</span></label>`)}<p class="quiet small">Some cannot be accepted: the plan then stays as it is.</p></fieldset>`;
}

export function codesOf(guests) {
  const found = new Map();
  for (const guest of guests) for (const each of guest.findings.filter((finding) => finding.severity === "error")) found.set(each.code, {n: (found.get(each.code)?.n || 0) + 1, message: each.message});
  return found;
}

function Plan({host, policy, accepted, deadline, tell}) {
  const [state, set] = useState({plan: null, error: ""}), latest = useRef(0);
  useEffect(() => {
    const mine = latest.current += 1;
    set({plan: null, error: ""});
    ask("plans", {body: {host, ...(policy ? {policy} : {}), accept: accepted}, seconds: 120}).then(
      (plan) => { if (mine === latest.current) { set({plan, error: ""}); tell(plan); } },
      (error) => { if (mine === latest.current) { set({plan: null, error: error.message}); tell(null); } });
  }, [host, policy, accepted.join()]);
  const {plan, error} = state;
  if (error) return html`<p class="bad" role="status">${error}</p>`;
  if (!plan) return html`<p class="quiet" role="status">Making the plan: both ends of every guest are looked at…</p>`;
  const goes = plan.guests.length - plan.cannot_move, stay = plan.guests.filter((guest) => !guest.possible);
  const worst = Math.max(0, ...plan.guests.map((guest) => guest.downtime_seconds ?? 0)), late = deadline !== null && plan.takes_p90_seconds !== null && plan.takes_p90_seconds > deadline;
  return html`<div role="status"><p><b>${goes === 0 ? "No guest would leave." : `${count(goes, "guest")} would leave${plan.takes_p50_seconds === null ? "" : ` in about ${seconds(plan.takes_p50_seconds)}`}, each with ${seconds(worst)} of downtime at most, as expected.`}</b>
      ${stay.length ? html` <b class="bad">${count(stay.length, "guest stays", "guests stay")}: ${stay.slice(0, 5).map(guestName).join(", ")}${stay.length > 5 ? "…" : ""}.</b>` : null}
      ${late ? html` <b class="warn">The deadline may be missed.</b>` : null}</p>
    ${plan.paths.length ? html`<p class="small quiet">${plan.paths.map((path) => `${path.source} to ${path.target}: ${rate(path.bytes_per_second)} (${path.basis})`).join("; ")}</p>` : null}</div>
    ${plan.guests.length ? html`<${Timeline} line=${timelineOfPlan(plan, deadline)} label="Plan" />` : html`<p>There is no guest on ${host}.</p>`}`;
}

const local = (value) => new Date(value).getTime();

export function EvacuateDialog({host}) {
  const [policy, setPolicy] = useState(""), [accepted, accept] = useState([]), [when, setWhen] = useState("now"), [minutes, setMinutes] = useState(""), [onDeadline, setOnDeadline] = useState("continue");
  const [from, setFrom] = useState(""), [until, setUntil] = useState(""), [plan, tell] = useState(null), [policies, unknown] = usePolicies();
  const deadline = when === "now" ? (Number(minutes) > 0 ? Number(minutes) * 60 : null) : from && until ? (local(until) - local(from)) / 1000 : null;
  const act = () => {
    const body = {on_deadline: onDeadline, accept: accepted, ...(policy ? {policy} : {})};
    if (when === "window") Object.assign(body, {at: from, time_zone: Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC"}, until ? {until} : {});
    else if (deadline !== null) body.deadline = new Date(now() + deadline * 1000).toISOString();
    return send(at("hosts", host, "evacuate"), body);
  };
  const field = (id, label, input) => html`<div><label for=${id}>${label}</label>${input}</div>`;
  return html`<${Form} title=${`Evacuate ${host}?`} yes=${when === "window" ? `Plan the evacuation of ${host}` : `Evacuate ${host}`} ready=${when === "now" || Boolean(from)} act=${act}>
    <p class="quiet">Every guest is moved to another host; then ${host} is in maintenance and takes no guests until it is restored or activated.</p>
    <div class="fields"><${PolicyField} all=${policies} value=${policy} change=${setPolicy} />
      ${field("when", "Begin", html`<select id="when" value=${when} onChange=${(event) => setWhen(event.target.value)}><option value="now">now</option><option value="window">in a maintenance window</option></select>`)}
      ${when === "now" ? field("minutes", "Deadline, minutes from now", html`<input id="minutes" type="number" inputmode="numeric" min="1" max="100000" placeholder="none" value=${minutes} onInput=${(event) => setMinutes(event.target.value)} />`)
    : [field("from", "Window begins", html`<input id="from" type="datetime-local" required value=${from} onInput=${(event) => setFrom(event.target.value)} />`), field("until", "Window ends", html`<input id="until" type="datetime-local" value=${until} onInput=${(event) => setUntil(event.target.value)} />`)]}
      ${field("on-deadline", "When that passes", html`<select id="on-deadline" value=${onDeadline} onChange=${(event) => setOnDeadline(event.target.value)}><option value="continue">go on, and be late</option><option value="stop">stop: begin nothing more, cancel what can be</option></select>`)}</div>
    <${PolicyAllows} all=${policies} error=${unknown} value=${policy} />
    <${Accept} codes=${plan ? codesOf(plan.guests) : new Map()} accepted=${accepted} change=${accept} />
    <${Plan} host=${host} policy=${policy} accepted=${accepted} deadline=${deadline} tell=${tell} /></${Form}>`;
}
