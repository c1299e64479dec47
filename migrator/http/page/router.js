/** Views by address: #/hosts/alpha?search=…; an address can be sent to a colleague. */

const listeners = new Set();

function read() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return {
    parts: path.split("/").filter(Boolean).map((part) => { try { return decodeURIComponent(part); } catch { return part; } }),
    query: new URLSearchParams(search),
  };
}

export let route = read();

function changed() {
  route = read();
  for (const listener of listeners) listener();
}

addEventListener("hashchange", changed);

export const onRoute = (listener) => listeners.add(listener);

export function href(parts, query = {}) {
  const search = new URLSearchParams(Object.entries(query).filter(([, value]) => value)).toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${search ? `?${search}` : ""}`;
}

export const go = (parts, query) => { location.hash = href(parts, query); };

/** Changes filters of the present view without a new entry in the browser's history. */
export function filterBy(changes) {
  const query = Object.fromEntries(route.query);
  for (const [name, value] of Object.entries(changes)) { if (value) query[name] = value; else delete query[name]; }
  history.replaceState(null, "", href(route.parts, query));
  changed();
}

export const links = {
  host: (name) => href(["hosts", name]),
  guest: (key) => href(["guests", key]),
  migration: (id) => href(["migrations", id]),
  evacuation: (id) => href(["evacuations", id]),
};
