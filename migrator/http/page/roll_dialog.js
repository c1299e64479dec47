/** Before a rolling evacuation: which hosts, in which order, how many at a time. */
import {html, useState} from "./ui.js";
import {send} from "./api.js";
import {Form} from "./dialogs.js";
import {count} from "./format.js";
import {store} from "./store.js";
import {PolicyField} from "./evacuate_dialog.js";
import {matches, sorted} from "./lists.js";

export function RollDialog() {
  const [chosen, choose] = useState([]), [search, setSearch] = useState(""), [most, setMost] = useState("1"), [policy, setPolicy] = useState(""), [reboots, setReboots] = useState(false);
  const active = sorted([...store.hosts.values()].filter((host) => host.state === "active" && host.up), "host"), shown = active.filter((host) => matches(search, host.host, ...Object.entries(host.labels).map(([name, value]) => `${name}=${value}`)));
  const act = () => send("rolls", {hosts: chosen, max_unavailable: Number(most) || 1, reboots, ...(policy ? {policy} : {})});
  const toggle = (name, on) => choose(on ? [...chosen, name] : chosen.filter((each) => each !== name));
  return html`<${Form} title="Roll through hosts?" yes=${`Begin with ${chosen[0] || "…"}`} ready=${chosen.length > 0} act=${act}>
    <p class="quiet">Each host is emptied, handed over to the site's hooks (patch, reboot), waited for, and filled again. It stops at the first that is not well.</p>
    <fieldset><legend>Hosts, in the order in which you choose them</legend><input type="search" data-first aria-label="Search hosts" placeholder="name, or label=value" value=${search} onInput=${(event) => setSearch(event.target.value)} />
      <div class="choices">${shown.slice(0, 100).map((host) => html`<label class="check" key=${host.host}><input type="checkbox" checked=${chosen.includes(host.host)} onChange=${(event) => toggle(host.host, event.target.checked)} />
        <span>${host.host} <span class="quiet small">${count(host.guests, "guest")}</span>${chosen.includes(host.host) ? html` <b>${chosen.indexOf(host.host) + 1}.</b>` : null}</span></label>`)}</div>
      <div class="buttons"><button type="button" onClick=${() => choose([...chosen, ...shown.map((host) => host.host).filter((name) => !chosen.includes(name))])}>Choose ${shown.length === active.length ? "all" : "these"} (${shown.length})</button><button type="button" onClick=${() => choose([])}>None</button></div></fieldset>
    <div class="fields"><div><label for="most">Away at a time</label><input id="most" type="number" min="1" max="1000" value=${most} onInput=${(event) => setMost(event.target.value)} /></div><div><${PolicyField} value=${policy} change=${setPolicy} id="roll-policy" /></div></div>
    <label class="check"><input type="checkbox" checked=${reboots} onChange=${(event) => setReboots(event.target.checked)} /> <span>The hooks reboot the host: it is ready once it has booted anew</span></label></${Form}>`;
}
