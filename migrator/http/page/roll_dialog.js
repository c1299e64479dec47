/** Before a rolling evacuation: which hosts, in which order, how many at a time, and which hooks are run for each. */
import {html, useState} from "./ui.js";
import {ask, send} from "./api.js";
import {Form} from "./dialogs.js";
import {count, seconds, sentence} from "./format.js";
import {useAsked} from "./parts.js";
import {store} from "./store.js";
import {PolicyAllows, PolicyField, usePolicies} from "./policies.js";
import {matches, sorted} from "./lists.js";

const POINTS = [["after-drain", "Once it is empty", "It is handed over to nobody, and is filled again as soon as it is ready: tick below to have it wait for a reboot."], ["ready", "Before it is filled again", "It is filled again as soon as it answers."]];

/** Hooks of both points, each with a tick; `off` has those that are not to be run, as "point name". */
function Hooks({all, off, change}) {
  const toggle = (key, on) => change(on ? off.filter((each) => each !== key) : [...off, key]);
  return html`<fieldset><legend>Hooks that are run for each host</legend>${POINTS.map(([point, title, none]) => {
    const there = all.filter((each) => each.point === point), run = there.filter((each) => !off.includes(`${point} ${each.name}`));
    return html`<div key=${point}><b class="small">${title} <span class="quiet">(${point})</span></b>${there.map((each) => html`<label class="check" key=${each.name}>
      <input type="checkbox" checked=${!off.includes(`${point} ${each.name}`)} onChange=${(event) => toggle(`${point} ${each.name}`, event.target.checked)} />
      <span>${each.name} <span class="quiet small">on the ${each.where}, ${seconds(each.timeout_seconds)} at most</span></span></label>`)}
      ${run.length ? null : html`<p class="warn small">${there.length ? "None is chosen." : "None is configured ([[hooks]])."} ${none}</p>`}</div>`;
  })}</fieldset>`;
}

export function RollDialog({hosts = []}) {
  const [chosen, choose] = useState(hosts), [search, setSearch] = useState(""), [most, setMost] = useState("1"), [policy, setPolicy] = useState(""), [reboots, setReboots] = useState(false), [off, setOff] = useState([]), [policies, unknown] = usePolicies();
  const asked = useAsked(() => ask("hooks"), []), hooks = asked.value ? asked.value.items : [], run = (point) => hooks.filter((each) => each.point === point && !off.includes(`${point} ${each.name}`));
  const active = sorted([...store.hosts.values()].filter((host) => host.state === "active" && host.up), "host"), shown = active.filter((host) => matches(search, host.host, ...Object.entries(host.labels).map(([name, value]) => `${name}=${value}`)));
  const some = off.length ? {hooks: Object.fromEntries(POINTS.map(([point]) => [point, run(point).map((each) => each.name)]))} : {};
  const act = () => send("rolls", {hosts: chosen, max_unavailable: Number(most) || 1, reboots, ...some, ...(policy ? {policy} : {})});
  const toggle = (name, on) => choose(on ? [...chosen, name] : chosen.filter((each) => each !== name));
  return html`<${Form} title="Roll through hosts?" yes=${`Begin with ${chosen[0] || "…"}`} ready=${chosen.length > 0 && asked.value !== null} act=${act}>
    <p class="quiet">Each host is emptied, ${run("after-drain").length ? "handed over to the hooks below, " : ""}waited for, and filled again. It stops at the first that is not well.</p>
    <fieldset><legend>Hosts, in the order in which you choose them</legend><input type="search" data-first aria-label="Search hosts" placeholder="name, or label=value" value=${search} onInput=${(event) => setSearch(event.target.value)} />
      <div class="choices">${shown.slice(0, 100).map((host) => html`<label class="check" key=${host.host}><input type="checkbox" checked=${chosen.includes(host.host)} onChange=${(event) => toggle(host.host, event.target.checked)} />
        <span>${host.host} <span class="quiet small">${count(host.guests, "guest")}</span>${chosen.includes(host.host) ? html` <b>${chosen.indexOf(host.host) + 1}.</b>` : null}</span></label>`)}</div>
      ${shown.length > 100 ? html`<p class="quiet small">And ${shown.length - 100} more: search for them.</p>` : null}
      <div class="buttons"><button type="button" onClick=${() => choose([...chosen, ...shown.map((host) => host.host).filter((name) => !chosen.includes(name))])}>Choose ${shown.length === active.length ? "all" : "these"} (${shown.length})</button><button type="button" onClick=${() => choose([])}>None</button></div></fieldset>
    ${asked.error ? html`<p class="bad">${sentence(asked.error)}</p>` : html`<${Hooks} all=${hooks} off=${off} change=${setOff} />`}
    <label class="check"><input type="checkbox" checked=${reboots} onChange=${(event) => setReboots(event.target.checked)} /> <span>The host is rebooted meanwhile, ${run("after-drain").length ? "by these hooks" : "by a person"}: it is ready once it has booted anew</span></label>
    <div class="fields"><div><label for="most">Away at a time</label><input id="most" type="number" min="1" max="1000" value=${most} onInput=${(event) => setMost(event.target.value)} /></div><${PolicyField} all=${policies} value=${policy} change=${setPolicy} id="roll-policy" /></div><${PolicyAllows} all=${policies} error=${unknown} value=${policy} /></${Form}>`;
}
