"""``migrator watch``: the screen an operator leaves open."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from migrator.cli import Exit, columns, tables
from migrator.cli import show_service as show
from migrator.cli.client import Document, NotReachable, Rejected, ServiceClient
from migrator.errors import MigratorError
from migrator.text import clean

if TYPE_CHECKING:
    from rich.console import Group

_REFRESH_SECONDS = 0.25
#: Hosts are looked at by the service about this often.
_HOSTS_EVERY = 5.0
_EVENTS_SHOWN = 12
#: Seconds for which what has ended stays on the screen.
_ENDED_SECONDS = 30.0


def live_screen(client: ServiceClient) -> int:
    """Show hosts, evacuations, migrations and recent events until Ctrl-C; print lines of events when piped."""
    if not sys.stdout.isatty():
        return _lines(client)
    from rich.console import Console  # noqa: PLC0415 - slow
    from rich.live import Live  # noqa: PLC0415

    state = LiveState(client)
    state.fetch()
    coming: queue.SimpleQueue[Document | MigratorError] = queue.SimpleQueue()
    reader = threading.Thread(
        target=read_events, args=(ServiceClient(client.where), coming.put), name="events", daemon=True
    )
    reader.start()
    try:
        with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
            while True:
                live.update(state.draw(live.console.width), refresh=True)
                _drain(coming, state)
    except KeyboardInterrupt:
        return Exit.DONE


def _drain(coming: queue.SimpleQueue[Document | MigratorError], state: LiveState) -> None:
    until = time.monotonic() + _REFRESH_SECONDS
    while (rest := until - time.monotonic()) > 0:
        try:
            event = coming.get(timeout=rest)
        except queue.Empty:
            break
        if isinstance(event, MigratorError):
            raise event
        state.take(event)
    state.tick()


def read_events(client: ServiceClient, put: Callable[[Document | MigratorError], None]) -> None:
    """Hand over each event, and the error that ends them."""
    try:
        for event in client.events():
            put(event)
    except (NotReachable, Rejected) as error:
        put(error)


def _lines(client: ServiceClient) -> int:
    client.get("session")  # a service that is not there at first is not waited for
    try:
        for event in client.events():
            if event["kind"] == "lost":
                print(f"migrator: {clean(event['reason'])}; trying again", file=sys.stderr, flush=True)
            elif event["kind"] not in ("connected", "progress"):
                print(show.event_line(event), flush=True)
    except KeyboardInterrupt:
        pass
    return Exit.DONE


class LiveState:
    """State of everything on the screen.

    :ivar migrations: by id, and those that ended a moment ago; so are evacuations.
    :ivar lost: why the service cannot be asked now; empty while it can.
    """

    def __init__(self, client: ServiceClient) -> None:
        self._client = client
        self.hosts: list[Document] = []
        self.migrations: dict[str, Document] = {}
        self.evacuations: dict[str, Document] = {}
        self._ended: dict[str, float] = {}
        self._events: deque[str] = deque(maxlen=_EVENTS_SHOWN)
        self.lost = ""
        self._fetched = 0.0

    def fetch(self) -> None:
        """Fetch everything anew."""
        self.hosts = self._client.get("hosts")["items"]
        found = self._client.get("migrations", active="true")["items"]
        self.migrations.update({one["id"]: one for one in found})
        found = self._client.get("evacuations", active="true")["items"]
        self.evacuations.update({one["id"]: one for one in found})
        self._fetched = time.monotonic()

    def tick(self) -> None:
        """Let time pass."""
        now = time.monotonic()
        for identifier in [key for key, at in self._ended.items() if now - at > _ENDED_SECONDS]:
            del self._ended[identifier]
            self.migrations.pop(identifier, None)
            self.evacuations.pop(identifier, None)
        if now - self._fetched > _HOSTS_EVERY and not self.lost:
            self._ask()

    def take(self, event: Document) -> None:
        """Take an event in."""
        kind = event["kind"]
        if kind == "lost":
            self.lost = event["reason"]
            return
        if kind == "connected":
            self.lost = ""
            self._ask()
            return
        if kind != "progress":
            self._events.append(show.event_line(event))
        if kind == "state" and event["subject"] == "host":
            # Those that are known; who is new comes with the next look at all of them.
            self.hosts = [
                {**host, **event["body"]} if host["host"] == event["subject_id"] else host
                for host in self.hosts
            ]
        if kind in ("state", "progress"):
            among = {"migration": self.migrations, "evacuation": self.evacuations}.get(event["subject"])
            if among is not None:
                one = {**among.get(event["subject_id"], {"findings": [], "guests": []}), **event["body"]}
                among[event["subject_id"]] = one
                if one.get("ended_at"):
                    self._ended.setdefault(event["subject_id"], time.monotonic())

    def draw(self, width: int) -> Group:
        """Draw as much of it as fits."""
        from rich.console import Group  # noqa: PLC0415 - slow
        from rich.text import Text  # noqa: PLC0415

        parts: list[object] = []
        if self.lost:
            parts.append(Text(clean(self.lost), style="bold red"))
        parts.append(tables.grid(columns.HOSTS, map(columns.host_row, self.hosts), width=width))
        if self.evacuations:
            rows = map(columns.evacuation_row, self.evacuations.values())
            parts += [Text(""), tables.grid(columns.EVACUATIONS, rows, width=width)]
        if self.migrations:
            rows = map(columns.migration_row, self.migrations.values())
            parts += [Text(""), tables.grid(columns.MIGRATIONS, rows, width=width)]
        else:
            parts += [Text(""), Text("no guest is moving", style="dim")]
        if self._events:
            parts += [Text(""), *(Text(line, no_wrap=True, overflow="ellipsis") for line in self._events)]
        return Group(*parts)  # type: ignore[arg-type] # each of them can be drawn

    def _ask(self) -> None:
        try:
            self.fetch()
        except (NotReachable, Rejected) as error:
            self.lost = str(error)
