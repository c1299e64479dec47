/** Dark, light, or as the system says; kept in this browser. */

const KEY = "migrator-theme", ORDER = ["system", "light", "dark"];

export function kept(name) { try { return localStorage.getItem(name); } catch { return null; } }
export function keep(name, value) { try { localStorage.setItem(name, value); } catch { /* A private window keeps nothing. */ } }

export const theme = () => (ORDER.includes(kept(KEY)) ? kept(KEY) : "system");

export function applyTheme() {
  if (theme() === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme();
}

export function nextTheme() {
  keep(KEY, ORDER[(ORDER.indexOf(theme()) + 1) % ORDER.length]);
  applyTheme();
}
