"""``migrator top``: what is under way on the whole screen, with keys that change it."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

from migrator.cli import Exit, columns, tables
from migrator.cli import show_service as show
from migrator.cli.client import Document, NotReachable, Rejected, ServiceClient, segment
from migrator.cli.screen import LiveState, read_events
from migrator.errors import MigratorError, UsageError
from migrator.text import clean

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

_REFRESH_SECONDS = 0.25
#: What is shown of one is asked for anew so often.
_DETAILS_SECONDS = 1.0
#: Said for so long.
_MESSAGE_SECONDS = 15.0
#: By what a terminal sends.
_KEYS = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"k": "up",
    b"j": "down",
    b"\r": "why",
    b"\n": "why",
    b"w": "why",
    b"\x1b": "back",
    b"c": "cancel",
    b"p": "postcopy",
    b"y": "yes",
    b"q": "quit",
    b"\x03": "quit",
}
#: What the longer of them begin with.
_BEGINNINGS = {key[:length] for key in _KEYS for length in range(1, len(key))}
#: The rest of such a key comes within it: over a slow line an arrow may come in two parts.
_KEY_SECONDS = 0.05
_HELP = "j k choose   Enter why   c cancel   p postcopy   q leave (nothing is cancelled by that)"
_SHORT_HELP = "j k  Enter why  c cancel  p postcopy  q leave"

Item = Document | MigratorError | str


def main(client: ServiceClient) -> int:
    """Show it until a person leaves.

    :raise UsageError: there is no terminal.
    """
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise UsageError(
            "top takes a terminal; migrator watch prints lines, and migrator status what is under way"
        )
    from rich.console import Console  # noqa: PLC0415 - slow
    from rich.live import Live  # noqa: PLC0415

    top = Top(client)
    top.state.fetch()
    coming: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for name, work in (
        ("events", lambda: read_events(ServiceClient(client.where), coming.put)),
        ("keys", lambda: _read_keys(coming)),
    ):
        threading.Thread(target=work, name=name, daemon=True).start()
    try:
        with _keys_at_once(), Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
            while not top.left:
                live.update(top.draw(live.console.width, live.console.height), refresh=True)
                _take(coming, top)
    except KeyboardInterrupt:
        pass
    return Exit.DONE


@contextlib.contextmanager
def _keys_at_once() -> Iterator[None]:
    """Have the terminal give each key at once, and as it was in the end, whatever comes between."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _read_keys(coming: queue.SimpleQueue[Item]) -> None:
    terminal = sys.stdin.fileno()
    while typed := os.read(terminal, 64):
        while typed:
            # An arrow's bytes may come one after another; Escape is followed by none.
            while typed in _BEGINNINGS and select.select([terminal], [], [], _KEY_SECONDS)[0]:
                if not (more := os.read(terminal, 64)):
                    break
                typed += more
            # The longest that it may be: the arrows begin with what Escape is.
            known = max((key for key in _KEYS if typed.startswith(key)), key=len, default=typed[:1])
            coming.put(_KEYS.get(known, ""))
            typed = typed[len(known) :]
    coming.put("quit")


def _take(coming: queue.SimpleQueue[Item], top: Top) -> None:
    """Take in what comes, for a while; a key is answered at once."""
    until = time.monotonic() + _REFRESH_SECONDS
    while (rest := until - time.monotonic()) > 0:
        try:
            item = coming.get(timeout=rest)
        except queue.Empty:
            break
        if isinstance(item, MigratorError):
            raise item
        if isinstance(item, str):
            top.press(item)
            return
        top.state.take(item)
    top.tick()


class Top:
    """State of the screen: what is under way, which of it is chosen, and what the last key asked for."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client
        self.state = LiveState(client)
        #: The person has left.
        self.left = False
        self._chosen = ""
        #: All about the chosen one is shown.
        self._why = False
        self._details: tuple[str, float, list[str]] = ("", 0.0, [])
        #: What is done once it is confirmed.
        self._asked = ""
        self._message: tuple[str, float] = ("", 0.0)

    # --- what is there -----------------------------------------------------------------------------------------------

    def _items(self) -> list[tuple[str, Document]]:
        """Return what can be chosen, in the order in which it is shown."""
        return [
            *(("evacuation", one) for one in self.state.evacuations.values()),
            *(("migration", one) for one in self.state.migrations.values()),
        ]

    def _current(self) -> tuple[str, Document] | None:
        items = self._items()
        found = next((each for each in items if each[1]["id"] == self._chosen), items[0] if items else None)
        self._chosen = found[1]["id"] if found else ""
        return found

    def tick(self) -> None:
        """Let time pass."""
        self.state.tick()
        if self._message[0] and time.monotonic() - self._message[1] > _MESSAGE_SECONDS:
            self._message = ("", 0.0)

    # --- keys --------------------------------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Do what a key asks for."""
        asked, self._asked = self._asked, ""
        if asked:
            if key == "yes":
                self._do(asked)
            else:
                self._say("nothing was done")
            return
        match key:
            case "quit":
                self.left = True
            case "up" | "down":
                self._move(-1 if key == "up" else 1)
            case "why":
                self._why = not self._why
            case "back":
                self._why = False
            case "cancel" | "postcopy":
                self._ask(key)

    def _move(self, by: int) -> None:
        ids = [one["id"] for _, one in self._items()]
        if ids:
            self._current()
            self._chosen = ids[max(0, min(len(ids) - 1, ids.index(self._chosen) + by))]

    def _ask(self, what: str) -> None:
        current = self._current()
        if current is None:
            self._say("nothing is under way")
            return
        kind, one = current
        if what == "postcopy" and kind != "migration":
            self._say("postcopy is for a migration: choose one of its guests")
        elif not one.get(f"can_{what}", True):
            self._say(f"{one['id']} {_WHY_NOT[what]}: its state is {one['state']}")
        else:
            self._asked = what

    def _do(self, what: str) -> None:
        current = self._current()
        if current is None:
            return
        kind, one = current
        try:
            found = self._client.post(f"{kind}s/{segment(one['id'])}/{what}")
        except (NotReachable, Rejected) as error:
            self._say(str(error))
            return
        self._say((show.cancelled_line if what == "cancel" else show.postcopy_line)(found))

    def _say(self, text: str) -> None:
        self._message = (clean(text), time.monotonic())

    # --- drawing -----------------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> Group:
        """Draw as much of it as fits, the chosen one always."""
        from rich.console import Group  # noqa: PLC0415 - slow
        from rich.text import Text  # noqa: PLC0415

        current = self._current()
        top = [Text(_summary(self.state), style="bold", no_wrap=True, overflow="ellipsis")]
        if self.state.lost:
            top.append(Text(clean(self.state.lost), style="bold red", no_wrap=True, overflow="ellipsis"))
        bottom = [Text(self._last_line(width), style="reverse" if self._asked else "dim", no_wrap=True)]
        if self._message[0]:
            lines = tables.wrapped(self._message[0], width)
            bottom = [*(Text(line, style="bold yellow") for line in lines), *bottom]
        room = max(1, height - len(top) - len(bottom) - 1)
        body = self._detail_lines(current, width) if self._why and current else self._lists(width, room)
        shown = body[:room]
        return Group(*top, *shown, *(Text("") for _ in range(room - len(shown) + 1)), *bottom)

    def _last_line(self, width: int) -> str:
        if not self._asked:
            keys = _HELP if len(_HELP) <= width else _SHORT_HELP
            return keys.replace("Enter why", "Esc back") if self._why else keys
        what = "cancel it" if self._asked == "cancel" else "switch it to postcopy"
        return f"{self._chosen}: {what}? y does it, any other key does not"

    def _lists(self, width: int, room: int) -> list[Text]:
        """Return the lines of both tables; where there are too many, those around the chosen one."""
        from rich.text import Text  # noqa: PLC0415 - slow

        lines: list[Text] = []
        chosen_at = 0
        for header, row, items in (
            (columns.EVACUATIONS, columns.evacuation_row, self.state.evacuations),
            (columns.MIGRATIONS, columns.migration_row, self.state.migrations),
        ):
            if not items:
                continue
            marked = [("▶" if one["id"] == self._chosen else " ", *row(one)) for one in items.values()]
            table = tables.grid(("▶", *header), marked, width=width).split("\n")
            if self._chosen in items:
                own = next((n for n, line in enumerate(table) if n and line.plain.startswith("▶")), 0)
                chosen_at = len(lines) + own
                table[own].stylize("reverse")
            table[0] = Text(table[0].plain.replace("▶", " ", 1), style="bold")
            lines += [*table, Text("")]
        if not lines:
            return [Text(""), Text("nothing is under way", style="dim")]
        first = max(0, min(chosen_at - room // 2, len(lines) - room))
        return lines[first:] if first else lines

    def _detail_lines(self, current: tuple[str, Document], width: int) -> list[Text]:
        from rich.text import Text  # noqa: PLC0415 - slow

        kind, one = current
        identifier, at, lines = self._details
        if identifier != one["id"] or time.monotonic() - at > _DETAILS_SECONDS:
            try:
                found = self._client.get(f"{kind}s/{segment(one['id'])}")
                lines = (show.migration_lines if kind == "migration" else show.evacuation_lines)(found)
            except (NotReachable, Rejected) as error:
                lines = [clean(str(error))]
            self._details = (one["id"], time.monotonic(), lines)
        return [Text(part) for line in lines for part in _indented(line, width)]


def _indented(line: str, width: int) -> list[str]:
    """Wrap a line, what goes on below it a little more indented."""
    indent = line[: len(line) - len(line.lstrip())]
    first, *more = tables.wrapped(line.strip(), max(10, width - len(indent) - 4)) or [""]
    return [f"{indent}{first}", *(f"{indent}    {part}" for part in more)]


_WHY_NOT = {
    "cancel": "cannot be cancelled any more",
    "postcopy": "cannot go to postcopy, now or because of its policy or one of the QEMUs",
}


def _summary(state: LiveState) -> str:
    """Return what there is, in one line."""
    hosts = state.hosts
    down = sum(not host["up"] for host in hosts)
    busy = sum(host["state"] != "active" for host in hosts)
    held = sum(one["state"] == "held" for one in state.migrations.values())
    moving = sum(one["ended_at"] is None for one in state.migrations.values()) - held
    parts = [
        f"{len(hosts)} hosts",
        f"{down} DOWN" if down else "",
        f"{busy} draining or in maintenance" if busy else "",
        f"{sum(host['guests'] for host in hosts)} guests",
        f"{moving} moving",
        f"{held} HELD" if held else "",
    ]
    return "migrator: " + ", ".join(part for part in parts if part)
