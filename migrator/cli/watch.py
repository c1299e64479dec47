"""Waiting for a migration or an evacuation: bars on a terminal, plain lines otherwise; the service may restart."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from migrator.cli import Exit, columns
from migrator.cli import show_service as show
from migrator.cli.client import AWAY_SECONDS, Document, NotReachable, ServiceClient, segment
from migrator.cli.output import OutputForm
from migrator.cli.show import ceiling, print_line
from migrator.text import clean
from migrator.units import show_ratio, show_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_Found = TypeVar("_Found")
_INTERRUPTED = 130
#: A plain line about progress at most this often, in seconds.
_LINE_EVERY = 2.0
#: An evacuation's list of guests is asked for again at most this often, in seconds.
_REFRESH_EVERY = 5.0
_NAME_WIDTH = 24
#: On a terminal of fewer columns bar, name and time gone by make room for what is left.
_NARROW = 100
_NARROW_NAME_WIDTH = 14
_MOST_MIGRATIONS = 500

_EXITS = {
    "completed": Exit.DONE,
    "failed": Exit.FAILED,
    "cancelled": Exit.CANCELLED,
    "held": Exit.HELD,
    "guest-ended": Exit.GUEST_ENDED,
}


def migration(client: ServiceClient, one: Document, *, output: OutputForm) -> int:
    """Show it until it has ended; its exit code, or 130 when the person leaves."""
    identifier = one["id"]
    view = _View(quiet=output.document)
    seen = dict(one)
    try:
        path = f"migrations/{segment(identifier)}"
        if one["state"] not in _EXITS:
            _watch_migration(client, path, seen, view)
        one = _patiently(lambda: client.get(path))
    except KeyboardInterrupt:
        view.stop()
        return _detached("migration", seen)
    finally:
        view.stop()
    if output.document:
        output.print(one)
    else:
        for line in show.migration_lines({**one, "decisions": []}):
            print_line(line)
    return Exit.REFUSED if one.get("refused") else _EXITS.get(one["state"], Exit.FAILED)


def _watch_migration(client: ServiceClient, path: str, one: Document, view: _View) -> None:
    for event in client.events(f"{path}/events", after=0):
        kind = event["kind"]
        if kind in ("connected", "lost"):
            view.connection(event)
        elif kind == "decision":
            view.line(show.decision_line(event["body"]))
        elif kind in ("state", "progress"):
            one.update(event["body"])
            view.migration(one)
            if one["state"] in _EXITS:
                return


def evacuation(client: ServiceClient, one: Document, *, output: OutputForm) -> int:
    """Show an evacuation or a restore until it has ended; its exit code, or 130 when the person leaves."""
    identifier = one["id"]
    view = _View(quiet=output.document)
    path = f"evacuations/{segment(identifier)}"
    seen = dict(one)
    try:
        if one["ended_at"] is None:
            _Evacuation(client, seen, view).watch()
        one = _patiently(lambda: client.get(path))
    except KeyboardInterrupt:
        view.stop()
        kinds = {"evacuate": "evacuation", "group": "move", "roll": "roll"}
        return _detached(kinds.get(one["kind"], "restore"), seen)
    finally:
        view.stop()
    if output.document:
        output.print(one)
    else:
        for line in show.evacuation_lines(one):
            print_line(line)
    if any(guest["standing"] == "held" for guest in one["guests"]):
        return Exit.HELD
    return Exit.DONE if one["state"] == "completed" else Exit.FAILED


class _Evacuation:
    """One that runs, and its migrations.

    :param one: is kept up to date.
    """

    def __init__(self, client: ServiceClient, one: Document, view: _View) -> None:
        self._client = client
        self._one = one
        self._view = view
        self._migrations: dict[str, Document] = {}
        self._fetched = 0.0

    def watch(self) -> None:
        """Until it has ended."""
        for event in self._client.events():
            if event["kind"] in ("connected", "lost"):
                self._view.connection(event)
            try:
                self._take(event)
            except NotReachable:
                continue  # the stream will say so, and everything is asked for anew when it stands again
            if self._one["ended_at"] is not None:
                return

    def _take(self, event: Document) -> None:
        kind = event["kind"]
        if kind == "connected":
            self._fetch()
            found = self._client.get(
                "migrations", evacuation=self._one["id"], active="true", limit=_MOST_MIGRATIONS
            )
            for one in found["items"]:
                self._moves(one)
        elif kind == "lost":
            return
        elif event["subject"] == "evacuation" and event["subject_id"] == self._one["id"]:
            self._one.update(event["body"])
            # It comes without the list of its guests, which may have grown.
            if time.monotonic() - self._fetched > _REFRESH_EVERY:
                self._fetch()
            self._view.evacuation(self._one)
        elif event["subject"] == "migration":
            known = self._migrations.get(event["subject_id"])
            if kind == "decision" and known is not None:
                self._view.line(f"{show.label(known)}: {show.decision_line(event['body']).strip()}")
            elif kind in ("state", "progress") and event["body"].get("evacuation") == self._one["id"]:
                self._moves({**(known or {}), **event["body"]})

    def _fetch(self) -> None:
        self._one.update(self._client.get(f"evacuations/{segment(self._one['id'])}"))
        self._fetched = time.monotonic()
        self._view.evacuation(self._one)

    def _moves(self, one: Document) -> None:
        self._migrations[one["id"]] = one
        self._view.migration(one, among_many=True)


class _View:
    """Bars, or lines.

    :param quiet: show nothing (``--json``).
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = not quiet and sys.stdout.isatty()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, tuple[str, float]] = {}
        self._lost = False

    def connection(self, event: Document) -> None:
        """The stream of events broke, or stands again."""
        if event["kind"] == "lost":
            self._lost = True
            self._say(f"migrator: {event['reason']}. Nothing is cancelled by that; trying again", error=True)
        elif self._lost:
            self._lost = False
            self._say("migrator: the service is back", error=True)

    def line(self, text: str) -> None:
        """Something that was decided."""
        if not self._quiet:
            self._say(clean(text))

    def migration(self, one: Document, *, among_many: bool = False) -> None:
        """New figures or a new state of a migration."""
        state, now = one["state"], time.monotonic()
        before, at = self._shown.get(one["id"], ("", 0.0))
        if self._quiet or (state == before and now - at < (0.1 if self._terminal else _LINE_EVERY)):
            return
        self._shown[one["id"]] = (state, now)
        name = clean(show.label(one))
        if state not in _EXITS:
            text = clean(show.figures(one))
        else:  # of one alone the report that follows says it
            text = clean(_end(one)) if among_many else ""
        if not self._terminal:
            prefix = f"{name}: " if among_many else ""
            self._say(f"{prefix}{state} {show_ratio(one['progress_ratio'])}  {text}".rstrip())
            return
        bars = self._bars()
        if one["id"] not in self._tasks:
            self._tasks[one["id"]] = bars.add_task(_short(name), total=1.0, state="", figures="")
        task = self._tasks[one["id"]]
        bars.update(task, completed=one["progress_ratio"], state=state, figures=text)
        if state in _EXITS:
            bars.stop_task(task)
            if among_many:
                bars.remove_task(self._tasks.pop(one["id"]))
                self._say(f"{name}: {state}" + (f": {text}" if text else ""))
        bars.refresh()

    def evacuation(self, one: Document) -> None:
        """A new state of the whole."""
        if self._quiet or (one["ended_at"] is not None and not self._terminal):
            return  # the report that follows says it
        if one["kind"] == "roll":
            self._roll(one)
            return
        if one["state"] == "scheduled":
            self._scheduled(one)
            return
        total = len(one["guests"])
        done = total - one["guests_left"]
        row = columns.evacuation_row(one)
        end = f"forecast to end {row[5]}" if row[5] else ""
        note = "" if row[7] == one["error"] else row[7]
        parts = [show.guests_left(one, total), end, show.left(one), note]
        text = clean(", ".join(part for part in parts if part))
        if not self._terminal:
            shown = (f"{one['state']} {done}", time.monotonic())
            if self._shown.get(one["id"], ("", 0.0))[0] != shown[0]:
                self._shown[one["id"]] = shown
                self._say(clean(f"{show.moved_together(one)}: {one['state']}, {text}"))
            return
        bars = self._bars()
        if one["id"] not in self._tasks:
            self._tasks[one["id"]] = bars.add_task(
                _short(show.moved_together(one)), total=max(1, total), state="", figures=""
            )
        bars.update(self._tasks[one["id"]], completed=done, state=one["state"], figures=text)
        bars.refresh()

    def _scheduled(self, one: Document) -> None:
        """Say when it begins, and what is expected of its window, where that is different from before."""
        shown = columns.evacuation_row(one)[-1]
        if self._shown.get(one["id"], ("", 0.0))[0] != shown:
            self._shown[one["id"]] = (shown, time.monotonic())
            self._say(clean(f"{one['host']}: scheduled {shown}"))

    def _roll(self, one: Document) -> None:
        """Say of each host of a roll what it has come to, once."""
        for host in one["hosts"]:
            shown = f"{host['stage']} {host['reason']}"
            key = f"{one['id']} {host['host']}"
            if self._shown.get(key, ("", 0.0))[0] != shown:
                self._shown[key] = (shown, time.monotonic())
                self._say(
                    clean(
                        f"{host['host']}: {host['stage']}" + (f": {host['reason']}" if host["reason"] else "")
                    )
                )

    def stop(self) -> None:
        """No more bars; again and again if one likes."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _bars(self) -> Progress:
        if self._progress is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - slow
            from rich.table import Column  # noqa: PLC0415

            narrow = shutil.get_terminal_size().columns < _NARROW
            self._progress = Progress(
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                BarColumn(bar_width=6 if narrow else 16),
                TextColumn("{task.percentage:>3.0f}%", markup=False),
                *([] if narrow else [TimeElapsedColumn()]),
                TextColumn("{task.fields[state]}", markup=False, table_column=Column(no_wrap=True)),
                TextColumn(
                    "{task.fields[figures]}",
                    markup=False,
                    table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
                ),
                auto_refresh=False,
                transient=True,
                expand=True,
            )
            self._progress.start()
        return self._progress

    def _say(self, text: str, *, error: bool = False) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr if error else sys.stdout, flush=True)


def _end(one: Document) -> str:
    if show.exceeded(one):
        stood = show_seconds(one["standstill_seconds"] or one["downtime_seconds"] or 0.0)
        return f"the guest stood still for {stood}, {ceiling(one['max_downtime_seconds'], exceeded=True)}"
    return one.get("error") or ""


def _short(name: str) -> str:
    narrow = shutil.get_terminal_size().columns < _NARROW
    width = _NARROW_NAME_WIDTH if narrow else _NAME_WIDTH
    return name if len(name) <= width else name[: width - 1] + "…"


def _patiently(ask: Callable[[], _Found]) -> _Found:
    """Return what `ask` finds, though the service may be away for a while just now."""
    until = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            return ask()
        except NotReachable:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def _detached(what: str, one: Document) -> int:
    """:param one: as last seen."""
    identifier = one["id"]
    stops = f", migrator cancel {identifier} stops it" if one.get("can_cancel", True) else ""
    print(
        f"migrator: detached; {what} {identifier} goes on. migrator watch {identifier} shows it again{stops}",
        file=sys.stderr,
    )
    return _INTERRUPTED
