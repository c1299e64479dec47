"""How long the page takes with a large site: until it is first shown, until a list is, and until something new is.

    python -m bench.page [--hosts 1000] [--guests 20000] [--json FILE]

The site is simulated; the engine, the HTTP entrance and the page are those of the service, and the browser is Chromium.
Both are on this machine: what a network adds is not in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright import sync_api

from bench.page_site import TOKEN, served, site_of
from migrator.api.events import HostStateChanged
from migrator.testing.simulated_service import RunningEngine

#: Aims, in milliseconds.
SHOWN, UPDATED = 1000, 100
#: A view is there when this is drawn.
_VIEWS = {
    "#/": "main h2",
    "#/hosts": "tbody tr:nth-child(20)",
    "#/guests": "tbody tr:nth-child(3)",
    "#/guests?search=web-9&sort=-memory_bytes": "tbody tr:nth-child(3)",
    "#/hosts/host-20": "tbody tr",
}
_REPEATS = 5


class _Site:
    """A served site in a thread of its own."""

    def __init__(self, hosts: int, guests: int, directory: Path) -> None:
        self._size, self._directory = (hosts, guests), directory
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self.running: RunningEngine
        self.url = ""

    @contextlib.contextmanager
    def served(self) -> Iterator[_Site]:
        """Serve while the block lasts."""
        ready = threading.Event()

        async def serve() -> None:
            hosts, guests = self._size
            async with served(site_of(hosts=hosts, guests=guests), self._directory) as (
                self.running,
                self.url,
            ):
                ready.set()
                await self._over.wait()

        thread = threading.Thread(target=self._loop.run_until_complete, args=(serve(),), name="site")
        thread.start()
        ready.wait(300)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._over.set)
            thread.join(30)

    def change_host(self, name: str, guests: int) -> None:
        """Say of a host that it has so many guests now."""

        def say() -> None:
            host = self.running.queries.host(name)
            self.running.bus.publish(HostStateChanged(host=host.model_copy(update={"guests": guests})))

        self._loop.call_soon_threadsafe(say)


#: Milliseconds from the beginning of the navigation until what is waited for has been painted.
_PAINTED = """(wanted) => new Promise((done) => {
  const painted = () => setTimeout(() => done(performance.now()));
  const look = () => requestAnimationFrame(document.querySelector(wanted) ? painted : look);
  look();
})"""
#: Milliseconds from now until a row says something; nothing but the stream of events brings it.
_UPDATED = """([row, text]) => new Promise((done) => {
  const began = performance.now();
  const there = () => document.querySelector(row)?.textContent.includes(text);
  const look = () => there() ? done(performance.now() - began) : requestAnimationFrame(look);
  look();
})"""
#: Milliseconds that drawing the view anew takes, and handing one progress event to the page.
_DRAWN = """async (base) => {
  const {changed, subscribe} = await import(`${base}/store.js`);
  const times = [];
  for (let n = 0; n < 10; n += 1) {
    await new Promise((done) => setTimeout(done, 250));
    const began = await new Promise((done) => {
      const off = subscribe(() => { off(); done(performance.now()); });
      changed();
    });
    await new Promise((done) => setTimeout(done));
    times.push(performance.now() - began);
  }
  return times;
}"""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(hosts: int, guests: int) -> dict[str, Any]:
    """Return milliseconds by what was measured; the median of a few."""
    program = shutil.which("chromium")
    if program is None:
        sys.exit("there is no chromium here")
    found: dict[str, Any] = {"hosts": hosts, "guests": guests}
    with (
        tempfile.TemporaryDirectory() as directory,
        _Site(hosts, guests, Path(directory)).served() as site,
        sync_api.sync_playwright() as playwright,
    ):
        _say(f"the site is at {site.url}")
        browser = playwright.chromium.launch(executable_path=program)
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto(site.url)
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("main h2")
        for view, wanted in _VIEWS.items():
            times = []
            for _ in range(_REPEATS):
                page.goto("about:blank")
                page.goto(f"{site.url}/{view}", wait_until="commit")
                times.append(page.evaluate(_PAINTED, wanted))
            found[f"shown {view}"] = statistics.median(times)
            _say(f"{view}: {', '.join(f'{each:.0f}' for each in times)}")
        page.goto(f"{site.url}/#/hosts")
        page.wait_for_selector("tbody tr")
        page.wait_for_timeout(1500)
        base = page.evaluate("document.querySelector('script[type=module]').src").rpartition("/")[0]
        found["drawn anew #/hosts"] = statistics.median(page.evaluate(_DRAWN, base))
        times = []
        for n in range(_REPEATS):
            page.wait_for_timeout(1200)
            site.change_host("host-1", 777_000 + n)
            times.append(page.evaluate(_UPDATED, ["tbody tr", f"777,{n:03}"]))
        found["updated #/hosts"] = statistics.median(times)
        browser.close()
    return found


def main() -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--guests", type=int, default=20_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    found = measure(given.hosts, given.guests)
    print(f"{given.hosts} hosts, {given.guests} guests; milliseconds, median of {_REPEATS}")
    for what, value in found.items():
        if what in ("hosts", "guests"):
            continue
        aim = UPDATED if what.startswith("updated") else SHOWN
        print(f"  {what:48} {value:7.0f}   aim {aim}{'' if value <= aim else '   missed'}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
