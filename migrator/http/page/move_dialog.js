/** Before one guest is moved: where to, by which policy, and what preflight says of that. */
import {html, useEffect, useRef, useState} from "./ui.js";
import {ask, send} from "./api.js";
import {Form} from "./dialogs.js";
import {bytes, count, guestName} from "./format.js";
import {Findings} from "./parts.js";
import {PolicyAllows, PolicyField, usePolicies} from "./policies.js";
import {store} from "./store.js";
import {Accept, codesOf} from "./evacuate_dialog.js";
import {sorted} from "./lists.js";

/** Preflight of a guest to one host; only asked once a host was chosen. */
function useCheck(guest, to, policy, accepted) {
  const [state, set] = useState({}), latest = useRef(0);
  useEffect(() => {
    const mine = latest.current += 1;
    set({});
    if (!to) return;
    set({busy: true});
    ask("checks", {body: {guest: guest.guest, to, ...(policy ? {policy} : {}), accept: accepted}, seconds: 60}).then(
      (found) => mine === latest.current && set({found}), (error) => mine === latest.current && set({found: {possible: false, findings: error.findings || []}, error: error.message}));
  }, [to, policy, accepted.join()]);
  return state;
}

export function MoveDialog({guest}) {
  const [to, setTo] = useState(""), [policy, setPolicy] = useState(""), [accepted, accept] = useState([]), [policies, unknown] = usePolicies();
  const {busy, found, error} = useCheck(guest, to, policy, accepted), here = guest.host || (store.migrations.get(guest.migration) || {}).source;
  const hosts = sorted([...store.hosts.values()].filter((host) => host.up && host.state === "active" && !host.cordoned && host.host !== here), "-memory_free_bytes");
  const act = () => send("migrations", {guest: guest.guest, accept: accepted, ...(to ? {to} : {}), ...(policy ? {policy} : {})});
  const errors = found ? found.findings.filter((each) => each.severity === "error").length : 0;
  return html`<${Form} title=${`Move ${guestName(guest)}?`} yes=${`Move ${guestName(guest)}`} ready=${!found || found.possible} act=${act}>
    ${here ? html`<p class="quiet">It runs on ${here}, and runs on while it is copied.</p>` : null}
    <label for="to">To</label><select id="to" data-first value=${to} onChange=${(event) => setTo(event.target.value)}><option value="">the host that suits it best</option>
      ${hosts.slice(0, 1000).map((host) => html`<option value=${host.host}>${`${host.host}, ${bytes(host.memory_free_bytes)} free`}</option>`)}</select>
    <${PolicyField} all=${policies} value=${policy} change=${setPolicy} id="move-policy" own=${guest.policy} /><${PolicyAllows} all=${policies} error=${unknown} value=${policy} own=${guest.policy} />
    <div role="status">${busy ? html`<p class="quiet">Looking at both ends…</p>` : null}
      ${found ? html`<p class=${found.possible ? "good" : "bad"}>${found.possible ? `It can move to ${to}${found.findings.length ? `, with ${count(found.findings.length, "remark")}` : ""}.` : `It cannot move to ${to}${errors ? `: ${count(errors, "finding")}` : error ? `: ${error}` : ""}.`}</p><${Findings} items=${found.findings} />` : null}</div>
    <${Accept} codes=${found ? codesOf([found]) : new Map()} accepted=${accepted} change=${accept} /></${Form}>`;
}
