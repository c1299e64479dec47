"""Commands that change nothing: hosts and guests, plans and checks, what is under way, events."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime

from migrator.cli import INTERRUPTED, Exit, tables
from migrator.cli import show_service as show
from migrator.cli.client import Document, ServiceClient, segment
from migrator.cli.remote import find, print_document, read_deadline, read_window
from migrator.text import clean

#: Without an id or --after, so many of the last events.
_LAST_EVENTS = 200


def hosts(client: ServiceClient, *, json_output: bool) -> None:
    """Print all hosts."""
    found = client.get("hosts")
    if json_output:
        print(json.dumps(found))
        return
    tables.table(
        show.HOSTS,
        (show.host_row(host) for host in found["items"]),
        empty="there are no hosts; add [[hosts]] to the service's configuration",
    )


def guests(client: ServiceClient, host: str | None, *, refresh: bool, json_output: bool) -> None:
    """Print all guests, or those of one host."""
    if host is not None:
        client.get(f"hosts/{segment(host)}")  # says so when there is none of that name
    # Without it the parameter is not sent: a service of before does not know it.
    found = client.get("guests", host=host, refresh="true" if refresh else None)
    if json_output:
        print(json.dumps(found))
        return
    rows = (show.guest_row(guest) for guest in found["items"])
    tables.table(show.GUESTS, rows, empty="there are no guests")


def plan(
    client: ServiceClient,
    host: str,
    policy: str | None,
    accept: list[str],
    *,
    when: str | None = None,
    window: tuple[str | None, str | None] = (None, None),
    json_output: bool,
) -> int:
    """Print what an evacuation would do; with `when` also whether it would keep that deadline, or that window."""
    moment = read_deadline(when) if when is not None else None
    starts, ends = read_window(*window)
    found = client.post("plans", {"host": host, "policy": policy, "accept": accept})
    code = Exit.STAY if found["cannot_move"] else Exit.DONE
    if json_output:
        print(json.dumps(found))
        return code
    guests = sorted(found["guests"], key=lambda guest: (guest["order"] is None, guest["order"]))
    tables.table(show.PLAN, map(show.plan_row, guests), empty=f"{host} is empty")
    for line in show.plan_lines(found):
        print(line)
    if moment is not None:
        print(show.in_time(found, moment - datetime.now(UTC)))
    if ends is not None:
        print(show.in_time(found, ends - (starts or datetime.now(UTC)), what="window"))
    return code


def check(
    client: ServiceClient, guest: str, to: str, policy: str | None, accept: list[str], *, json_output: bool
) -> int:
    """Print the result of preflight alone."""
    found = client.post("checks", {"guest": guest, "to": to, "policy": policy, "accept": accept})
    verdict = "can move" if found["possible"] else "cannot move"
    print_document(
        found,
        json_output=json_output,
        lines=lambda: [*show.finding_lines(found["findings"]), clean(f"{guest} {verdict} to {to}")],
    )
    return Exit.DONE if found["possible"] else Exit.REFUSED


def status(client: ServiceClient, identifier: str | None, *, json_output: bool) -> int:
    """Print what is under way, or one migration or evacuation."""
    if identifier is not None:
        kind, found = find(client, identifier)
        print_document(found, json_output=json_output, lines=lambda: _LINES[kind](found))
        return Exit.DONE
    migrations = client.get("migrations", active="true")["items"]
    evacuations = client.get("evacuations", active="true")["items"]
    if json_output:
        print(json.dumps({"migrations": migrations, "evacuations": evacuations}))
        return Exit.DONE
    if evacuations:
        tables.table(show.EVACUATIONS, map(show.evacuation_row, evacuations), empty="")
    if migrations:
        tables.table(show.MIGRATIONS, map(show.migration_row, migrations), empty="")
    if not migrations and not evacuations:
        print("nothing is under way")
    for one in migrations:
        if one["state"] == "held":
            print(clean(f"{one['id']} is held: migrator status {one['id']} says what to check"))
    return Exit.DONE


def service_status(client: ServiceClient, *, json_output: bool) -> int:
    """Print the controllers that share the journal: their roles, leases and versions."""
    found = client.get("service")
    if json_output:
        print(json.dumps(found))
        return Exit.DONE
    if found["controllers"]:
        rows = (show.controller_row(each, found) for each in found["controllers"])
        tables.table(show.CONTROLLERS, rows, empty="")
    for line in show.service_lines(found):
        print(clean(line))
    return Exit.DONE


_LINES: dict[str, Callable[[Document], list[str]]] = {
    "migration": show.migration_lines,
    "evacuation": show.evacuation_lines,
}


def events(
    client: ServiceClient, identifier: str | None, after: int | None, *, follow: bool, json_output: bool
) -> None:
    """Print past events, and with `follow` those to come."""
    query: dict[str, str] = {}
    if identifier is not None:
        kind, found = find(client, identifier)
        identifier = found["id"]
        query = {"subject": kind, "subject_id": identifier}
    past: Iterable[Document]
    if after is None and identifier is None:
        after = client.last_event_id()
        past = _last_events(client, after)
    else:
        after = after or 0
        past = _past_events(client, after, query)
    items: list[Document] = []
    for event in past:
        after = event["event_id"]
        if json_output and not follow:
            items.append(event)
        else:
            _print_event(event, json_output=json_output)
    if follow:
        _follow(client, identifier, after, json_output=json_output)
    elif json_output:
        print(json.dumps({"items": items}))


def _last_events(client: ServiceClient, last: int) -> Sequence[Document]:
    # Their ids are not without gaps: those that a service had reserved when it was killed are not given again.
    back = _LAST_EVENTS
    while True:
        found = deque(_past_events(client, max(0, last - back), {}), maxlen=_LAST_EVENTS)
        if len(found) == _LAST_EVENTS or back >= last:
            return found
        back *= 4


def _past_events(client: ServiceClient, after: int, query: dict[str, str]) -> Iterator[Document]:
    position: int | None = after
    while position is not None:
        page = client.get("events", after=position, **query)
        yield from page["items"]
        position = page["next"]


def _follow(client: ServiceClient, identifier: str | None, after: int, *, json_output: bool) -> None:
    try:
        for event in client.events(after=after):
            if event["kind"] == "lost":
                print(f"migrator: {clean(event['reason'])}; trying again", file=sys.stderr)
            elif event["kind"] not in ("connected", "progress") and identifier in (None, event["subject_id"]):
                _print_event(event, json_output=json_output)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _print_event(event: Document, *, json_output: bool) -> None:
    print(json.dumps(event) if json_output else show.event_line(event), flush=True)


def watch_screen(client: ServiceClient, identifier: str | None) -> int:
    """Show the screen an operator leaves open, or one migration or evacuation to its end."""
    from migrator.cli import watch  # noqa: PLC0415 - it watches only when asked to

    if identifier is None:
        from migrator.cli import screen  # noqa: PLC0415

        return screen.live_screen(client)
    kind, found = find(client, identifier)
    if kind == "migration":
        return watch.migration(client, found, json_output=False)
    return watch.evacuation(client, found, json_output=False)
