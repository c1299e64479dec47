/** Asking the service. */

const API = "/api/v1/";

export class ApiError extends Error {
  constructor(message, status, problem) {
    super(message);
    this.status = status;
    this.findings = (problem && problem.findings) || [];
  }
}

function key() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");
}

/** The answer's document; an ApiError with one line for a person where it is refused. */
export async function ask(path, {body, method, seconds = 30} = {}) {
  const given = {
    method: method || (body === undefined ? "GET" : "POST"),
    headers: {Accept: "application/json"},
    credentials: "same-origin",
    signal: AbortSignal.timeout(seconds * 1000),
  };
  if (body !== undefined) {
    given.headers["Content-Type"] = "application/json";
    given.headers["Idempotency-Key"] = key();
    given.body = JSON.stringify(body);
  }
  const answer = await fetch(API + path, given);
  const found = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw new ApiError((found && found.detail) || `status ${answer.status}`, answer.status, found);
  return found;
}

export const send = (path, body = {}) => ask(path, {body});

/** A path whose parts may be anything. */
export const at = (...parts) => parts.map(encodeURIComponent).join("/");

export function query(parameters) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value === undefined || value === null || value === "") continue;
    for (const each of Array.isArray(value) ? value : [value]) found.append(name, each);
  }
  const text = found.toString();
  return text ? `?${text}` : "";
}
