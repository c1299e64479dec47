/** A person's answer on a held migration: what would be done is said first, and only that is done. */
import {html, useState} from "./ui.js";
import {ask, at, send} from "./api.js";
import {Form} from "./dialogs.js";
import {guestName, sentence} from "./format.js";
import {useAsked} from "./parts.js";

const BUTTONS = {source: (one) => `It is at ${one.source}`, destination: (one) => `It is at ${one.destination}`, lost: () => "It is lost"};

export function ResolveDialog({one, where, label}) {
  const [off, setOff] = useState(false), path = at("migrations", one.id, "resolve"), who = guestName(one);
  const said = {guest_at: where, ...(off ? {unreachable_is_off: true} : {})};
  const asked = useAsked(() => ask(path, {body: {...said, dry_run: true}, seconds: 60}).then((found) => ({...found, off})), [off]);
  const answer = asked.value && asked.value.off === off ? asked.value : null;
  const taken = Boolean(answer && answer.accepted);
  return html`<${Form} title=${taken || !answer ? `${who}: ${label}?` : `${who}: refused`} yes=${taken ? "Do it" : ""} ready=${taken} kind=${answer && answer.ends_process ? "danger" : "main"}
      act=${() => send(path, {...said, agreed: answer.code})}>
    ${asked.error ? html`<p class="bad">${sentence(asked.error)}</p>` : answer ? null : html`<p class="quiet" role="status">Looking at both ends…</p>`}
    ${taken ? html`<p>This will be done:</p><ol>${answer.will.map((each) => html`<li key=${each}>${sentence(each)}</li>`)}</ol>` : null}
    ${answer && !answer.accepted ? html`<p class="bad">${sentence(answer.refused)}</p>${answer.instead.length ? html`<p>Press instead: ${answer.instead.map((word) => `“${BUTTONS[word](one)}”`).join(" or ")}.</p>` : null}` : null}
    <label class="check"><input type="checkbox" checked=${off} onChange=${(event) => setOff(event.target.checked)} /> <span>A host that cannot be asked is switched off for good: I have seen to that. A guest that runs there after all would run twice.</span></label></${Form}>`;
}
