/** Trading a token for a session. */
import {html, useEffect, useRef, useState} from "./ui.js";
import {signIn} from "./store.js";

export function SignIn() {
  const field = useRef(null), [error, say] = useState("");
  useEffect(() => field.current.focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    say("");
    try { await signIn(field.current.value.trim()); } catch (problem) { say(problem.message); if (field.current) field.current.select(); }
  };
  return html`<form class="card signin" onSubmit=${submit} aria-labelledby="signin-title"><h1 id="signin-title">Sign in</h1>
    <p class="quiet">With a token, made on the controller's machine by <code>migrator token create</code>.</p>
    <label for="token">Token</label><input ref=${field} id="token" type="password" autocomplete="current-password" required maxlength="512" />
    <p class="bad" role="alert">${error}</p><div class="buttons"><button class="main" type="submit">Sign in</button></div></form>`;
}
