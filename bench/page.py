"""How long the page takes with a large site: until it is first shown, until a view is, until something new is, and how
even its frames are while one searches, sorts and scrolls.

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
from migrator.api.commands import Evacuate
from migrator.api.events import HostStateChanged
from migrator.testing.simulated_service import RunningEngine

#: Aims, in milliseconds.
SHOWN, UPDATED = 1000, 100
#: A frame of a screen of 60 Hz, and what still counts as one where the browser draws with no screen behind it.
FRAME = 18
#: A view is there when this is drawn.
_VIEWS = {
    "#/": "main h2",
    "#/hosts": "tbody tr:nth-child(20)",
    "#/guests": "tbody tr:nth-child(3)",
    "#/guests?search=web-9&sort=-memory_bytes": "tbody tr:nth-child(3)",
    "#/hosts/host-20": "tbody tr",
    "#/evacuations": "main h1",
    "#/migrations": "main h1",
    "#/events": "main h1",
    "#/saved": "main .tools ~ .empty",
    "#/policies": "main article",
}
#: Hosts that are emptied at once for what is measured beside that.
_EMPTIED = 20
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

    def empty(self, hosts: int) -> None:
        """Begin to empty that many hosts."""

        async def begin() -> None:
            for number in range(hosts):
                await self.running.ask(Evacuate(host=f"host-{100 + number}"))

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(120)


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
#: Milliseconds between frames, from now on until it is called again.
_FRAMES = """() => {
  if (window.framesSeen) { const seen = window.framesSeen; window.framesSeen = null; return seen; }
  const seen = window.framesSeen = [];
  let last = null;
  const look = (now) => {
    if (last !== null) seen.push(now - last);
    last = now;
    if (window.framesSeen === seen) requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""
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
        found["updated #/hosts"] = _updated(page, site, 777)
        frames = _frames(page, site.url)
        found["frame, the median"] = statistics.median(frames)
        found["frame, 95 of 100"] = statistics.quantiles(frames, n=20)[-1]
        _say(f"frames: {len(frames)}, the longest {max(frames):.0f} ms")
        site.empty(min(_EMPTIED, hosts // 10))
        page.goto(f"{site.url}/#/hosts")
        page.wait_for_selector("tbody tr")
        found[f"updated #/hosts while {min(_EMPTIED, hosts // 10)} are emptied"] = _updated(page, site, 888)
        browser.close()
    return found


def _updated(page: sync_api.Page, site: _Site, thousands: int) -> float:
    """Return milliseconds until a row says what a host's event told, the median of a few."""
    times: list[float] = []
    for n in range(_REPEATS):
        page.wait_for_timeout(1200)
        site.change_host("host-1", thousands * 1000 + n)
        times.append(page.evaluate(_UPDATED, ["tbody tr", f"{thousands},{n:03}"]))
    return statistics.median(times)


def _frames(page: Any, url: str) -> list[float]:
    """Return milliseconds between frames while all guests are searched, sorted, filtered and scrolled through."""
    page.goto(f"{url}/#/guests")
    page.wait_for_selector("tbody tr:nth-child(50)")
    page.wait_for_timeout(1500)
    page.evaluate(_FRAMES)
    search = page.locator("[data-search]")
    search.press_sequentially("web-1", delay=120)
    page.wait_for_timeout(500)
    for heading in ("Memory", "Dirty rate", "Guest"):
        page.get_by_role("button", name=heading).first.click()
        page.wait_for_timeout(400)
    page.get_by_role("button", name="cannot move").first.click()
    page.wait_for_timeout(400)
    search.fill("")
    for _ in range(20):
        page.mouse.wheel(0, 200)
        page.wait_for_timeout(50)
    found: list[float] = page.evaluate(_FRAMES)
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
        aim = {"updated": UPDATED, "frame": FRAME}.get(what.replace(",", "").split()[0], SHOWN)
        print(f"  {what:48} {value:7.0f}   aim {aim}{'' if value <= aim else '   missed'}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
