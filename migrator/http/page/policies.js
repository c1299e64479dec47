/** The site's policies: what each allows, as a view, and where one is chosen. */
import {html} from "./ui.js";
import {ask} from "./api.js";
import {Empty, useAsked} from "./parts.js";
import {count, sentence} from "./format.js";
import {href} from "./router.js";

/** All policies; asked for when a view or a dialog opens, as the configuration may have changed. */
export function usePolicies() {
  const asked = useAsked(() => ask("policies"), []);
  return [asked.value ? asked.value.items : [], asked.error];
}

export const Allows = ({of}) => html`<ul class="small allows">${of.allows.map((each) => html`<li key=${each}>${each}</li>`)}</ul>`;

/** A choice of policy. `own`: the policy that a guest has of its own, where it is one guest; `none`: what holds where none is chosen. */
export const PolicyField = ({all, value, change, id = "policy", own = "", none = "each guest's own"}) => html`<div><label for=${id}>Policy</label><select id=${id} value=${value} onChange=${(event) => change(event.target.value)}>
    <option value="">${own ? `its own: ${own}` : none}</option>${all.map((each) => html`<option key=${each.name} value=${each.name}>${each.name}</option>`)}</select></div>`;

/** What the chosen policy allows. */
export function PolicyAllows({all, error, value, own = ""}) {
  const chosen = all.find((each) => each.name === (value || own));
  if (error) return html`<p class="bad small">${sentence(error)}</p>`;
  return chosen ? html`<p class="small"><b>${chosen.name}</b> allows:</p><${Allows} of=${chosen} />` : html`<p class="quiet small">Each guest is moved by its own policy. <a href="#/policies">What each allows</a></p>`;
}

export function Policies() {
  const [all, error] = usePolicies();
  return html`<h1>Policies</h1><p class="quiet small">What may be done to a guest to move it. A guest has one of its own by the configuration, else the default; a command may name another.</p>
    ${error ? html`<p class="bad" role="alert">${sentence(error)}</p>` : null}${all.length || error ? null : html`<${Empty}>Asking…</${Empty}>`}
    <div class="stack">${all.map((each) => html`<article class="card" key=${each.name} id=${`policy-${each.name}`}><div class="row"><h2>${each.name}</h2>
        ${each.default ? html`<span class="state busy">default</span>` : null}<span class="quiet small">${each.built_in ? "built in" : "from the configuration"}</span><span class="grow"></span>
        <a data-row class="small" href=${href(["guests"], {policy: each.name})}>${count(each.guests, "guest")}</a></div><${Allows} of=${each} /></article>`)}</div>`;
}
