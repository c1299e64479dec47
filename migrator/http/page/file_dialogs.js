/** Before a guest is saved into a file or loaded out of one, and before such a file is deleted. */
import {html, useState} from "./ui.js";
import {send} from "./api.js";
import {Form} from "./dialogs.js";
import {bytes, guestName, plain, sentence} from "./format.js";
import {go} from "./router.js";
import {Accept, codesOf} from "./evacuate_dialog.js";
import {Findings} from "./parts.js";

/** Sends a command, keeps what preflight said where it is refused, and shows the migration where it is not. */
function useBegin(path) {
  const [findings, set] = useState([]);
  const begin = async (body) => {
    try {
      const begun = await send(path, body);
      go(["migrations", begun.id]);
    } catch (error) { set(error.findings || []); throw error; }
  };
  return [findings, begin];
}

export function SaveDialog({guest}) {
  const name = guestName(guest), [file, setFile] = useState(`/srv/saved/${(guest.name || guest.guest).replace(/[^A-Za-z0-9._-]/g, "_")}.state`);
  const [accepted, accept] = useState([]), [findings, begin] = useBegin("saves");
  return html`<${Form} title=${`Save ${name} into a file?`} yes=${`Stop and save ${name}`} kind="danger" ready=${file.startsWith("/")} act=${() => begin({guest: guest.guest, file, accept: accepted})}>
    <p>It is stopped, its memory and devices are written into a file on ${guest.host}, and its QEMU is ended. It runs nowhere until somebody loads it. Until the file is whole it can be cancelled, and goes on where it is.</p>
    <label for="save-file">File on ${guest.host}, with its whole path</label><input id="save-file" data-first required value=${file} maxlength="1000" spellcheck="false" autocomplete="off" onInput=${(event) => setFile(event.target.value.trim())} />
    <p class="quiet small">Its directory has to be there. It takes up to ${bytes(guest.memory_bytes)}.</p>
    <${Findings} items=${findings} /><${Accept} codes=${codesOf([{findings}])} accepted=${accepted} change=${accept} /></${Form}>`;
}

export function LoadDialog({one}) {
  const hosts = one.hosts.filter((each) => each.loadable).map((each) => each.host), name = guestName(one);
  const [to, setTo] = useState(hosts.includes(one.host) ? one.host : hosts[0]), [accepted, accept] = useState([]), [findings, begin] = useBegin("loads");
  return html`<${Form} title=${`Load ${name}?`} yes=${`Load ${name} on ${to}`} act=${() => begin({file: one.file, to, accept: accepted})}>
    <p>A QEMU is started that takes it out of <code>${plain(one.file)}</code>, and it goes on where it stood. After that the file cannot be loaded again.</p>
    <label for="load-to">On</label><select id="load-to" data-first value=${to} onChange=${(event) => setTo(event.target.value)}>${hosts.map((host) => html`<option key=${host} value=${host}>${host}</option>`)}</select>
    <${Findings} items=${findings} /><${Accept} codes=${codesOf([{findings}])} accepted=${accepted} change=${accept} /></${Form}>`;
}

/** `then` is called once it is deleted. */
export function DiscardDialog({one, then}) {
  const [sure, setSure] = useState(false), name = guestName(one), last = one.state !== "outdated", gone = one.state === "missing";
  const act = async () => { await send("discards", {file: one.file, host: one.host, ...(last ? {only_copy: true} : {})}); then(); };
  return html`<${Form} title=${gone ? `Take ${name} off this list?` : `Delete the file of ${name}?`} yes=${gone ? `Take ${name} off the list` : `Delete the file of ${name}`} kind="danger" ready=${!last || sure} act=${act}>
    <p><code>${plain(one.file)}</code> on ${one.host}${gone ? " is not there any more." : ", and what is beside it."}</p>
    ${last ? html`<p class="bad">Nobody knows ${name} anywhere else${gone ? "" : ": it is lost with this file"}.</p>
      <label class="check"><input type="checkbox" data-first checked=${sure} onChange=${(event) => setSure(event.target.checked)} /> <span>${gone ? "I have looked for the file, and give it up" : `Delete the last copy of ${name}`}</span></label>` : html`<p>${sentence(one.reason)} Nothing is lost with it.</p>`}</${Form}>`;
}
