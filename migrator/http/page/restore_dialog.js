/** Before guests come home: how many, by which policy, and what that allows. */
import {html, useState} from "./ui.js";
import {ask, at, send} from "./api.js";
import {Form} from "./dialogs.js";
import {count, sentence} from "./format.js";
import {useAsked} from "./parts.js";
import {Allows, PolicyField, usePolicies} from "./policies.js";

export function RestoreDialog({host}) {
  const [policy, setPolicy] = useState(""), [policies] = usePolicies(), path = at("hosts", host, "restore"), said = policy ? {policy} : {};
  const asked = useAsked(() => ask(path, {body: {...said, dry_run: true}}).then((found) => ({...found, policy})), [policy]);
  const plan = asked.value && asked.value.policy === policy ? asked.value : null;
  return html`<${Form} title=${`Restore ${host}?`} yes=${`Restore ${host}`} ready=${Boolean(plan)} act=${() => send(path, said)}>
    <div role="status">${asked.error ? html`<p class="bad">${sentence(asked.error)}</p>` : plan ? null : html`<p class="quiet">Asking who comes home…</p>`}
    ${plan ? html`<p>${plan.guests ? `${count(plan.guests, "guest")} ${plan.guests === 1 ? "comes" : "come"} home, and it takes guests again.` : "No guest is away from it: only its maintenance ends."}</p>
      ${plan.policies.map((each) => each.policy ? html`<p class="small">${count(each.guests, "guest")} by the policy <b>${each.policy}</b>, which allows:</p><${Allows} of=${each} />` : html`<p class="small">${count(each.guests, "guest")} by ${each.guests === 1 ? "its" : "their"} own policy.</p>`)}` : null}</div>
    <${PolicyField} all=${policies} value=${policy} change=${setPolicy} id="restore-policy" none="the one that each left by" /></${Form}>`;
}
