"""Commands that change nothing: hosts and guests, plans and checks, what is under way, events."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime

from migrator.cli import INTERRUPTED, Exit, columns, tables
from migrator.cli import show_service as show
from migrator.cli.client import Document, ServiceClient, segment
from migrator.cli.output import OutputForm
from migrator.cli.remote import find, print_document, read_deadline, read_window
from migrator.cli.show import print_line
from migrator.text import clean

#: Without an id or --after, so many of the last events.
_LAST_EVENTS = 200


def hosts(client: ServiceClient, *, output: OutputForm) -> None:
    """Print all hosts."""
    found = client.get("hosts")
    if output.document:
        output.print(found)
        return
    _table(
        output,
        (columns.HOSTS, columns.HOSTS_WIDE),
        [(columns.host_row(host), columns.host_wide(host)) for host in found["items"]],
        empty="there are no hosts; add [[hosts]] to the service's configuration",
    )


def _table(
    output: OutputForm,
    headers: tuple[tables.Row, tables.Row],
    rows: Iterable[tuple[tables.Row, tables.Row]],
    *,
    empty: str,
) -> None:
    """Print a table: its first columns, or all of them."""
    wide = output is OutputForm.WIDE
    tables.table(
        (*headers[0], *headers[1]) if wide else headers[0],
        ((*row, *more) if wide else row for row, more in rows),
        empty=empty,
        wide=wide,
    )


def guests(client: ServiceClient, host: str | None, *, refresh: bool, output: OutputForm) -> None:
    """Print all guests, or those of one host."""
    if host is not None:
        client.get(
            f"hosts/{segment(host)}"
        )  # an older service gives an empty list where there is none of that name
    # Without it the parameter is not sent: an older service does not know it.
    found = client.get("guests", host=host, refresh="true" if refresh else None)
    if output.document:
        output.print(found)
        return
    rows = ((columns.guest_row(guest), columns.guest_wide(guest)) for guest in found["items"])
    _table(output, (columns.GUESTS, columns.GUESTS_WIDE), rows, empty="there are no guests")


def plan(
    client: ServiceClient,
    host: str,
    policy: str | None,
    accept: list[str],
    *,
    when: str | None = None,
    window: tuple[str | None, str | None] = (None, None),
    output: OutputForm,
) -> int:
    """Print what an evacuation would do; with `when` also whether it would keep that deadline, or that window."""
    moment = read_deadline(when) if when is not None else None
    starts, ends = read_window(*window)
    found = client.post("plans", {"host": host, "policy": policy, "accept": accept})
    code = Exit.STAY if found["cannot_move"] else Exit.DONE
    if output.document:
        output.print(found)
        return code
    guests = sorted(found["guests"], key=lambda guest: (guest["order"] is None, guest["order"]))
    wide = output is OutputForm.WIDE
    tables.table(columns.PLAN, map(columns.plan_row, guests), empty=f"{host} is empty", wide=wide)
    for line in show.plan_lines(found):
        print_line(line)
    if moment is not None:
        print_line(show.in_time(found, moment - datetime.now(UTC)))
    if ends is not None:
        print_line(show.in_time(found, ends - (starts or datetime.now(UTC)), what="window"))
    return code


def check(
    client: ServiceClient, guest: str, to: str, policy: str | None, accept: list[str], *, output: OutputForm
) -> int:
    """Print the result of preflight alone."""
    found = client.post("checks", {"guest": guest, "to": to, "policy": policy, "accept": accept})
    verdict = "can move" if found["possible"] else "cannot move"
    print_document(
        found,
        output=output,
        lines=lambda: [*show.finding_lines(found["findings"]), clean(f"{guest} {verdict} to {to}")],
    )
    return Exit.DONE if found["possible"] else Exit.REFUSED


def status(client: ServiceClient, identifier: str | None, *, output: OutputForm) -> int:
    """Print what is under way, or one migration or evacuation."""
    if identifier is not None:
        kind, found = find(client, identifier)
        print_document(found, output=output, lines=lambda: _LINES[kind](found))
        return Exit.DONE
    migrations = client.get("migrations", active="true")["items"]
    evacuations = client.get("evacuations", active="true")["items"]
    if output.document:
        output.print({"migrations": migrations, "evacuations": evacuations})
        return Exit.DONE
    if evacuations:
        rows = [(columns.evacuation_row(one), columns.evacuation_wide(one)) for one in evacuations]
        _table(output, (columns.EVACUATIONS, columns.EVACUATIONS_WIDE), rows, empty="")
    if migrations:
        rows = [(columns.migration_row(one), columns.migration_wide(one)) for one in migrations]
        _table(output, (columns.MIGRATIONS, columns.MIGRATIONS_WIDE), rows, empty="")
    if not migrations and not evacuations:
        print("nothing is under way")
    for one in migrations:
        if one["state"] == "held":
            print_line(clean(f"{one['id']} is held: migrator status {one['id']} says what to check"))
    return Exit.DONE


def service_status(client: ServiceClient, *, output: OutputForm) -> int:
    """Print the controllers that share the journal: their roles, leases and versions."""
    found = client.get("service")
    if output.document:
        output.print(found)
        return Exit.DONE
    if found["controllers"]:
        rows = (columns.controller_row(each, found) for each in found["controllers"])
        tables.table(columns.CONTROLLERS, rows, empty="")
    for line in show.service_lines(found):
        print_line(clean(line))
    return Exit.DONE


_LINES: dict[str, Callable[[Document], list[str]]] = {
    "migration": show.migration_lines,
    "evacuation": show.evacuation_lines,
}


def events(
    client: ServiceClient, identifier: str | None, after: int | None, *, follow: bool, output: OutputForm
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
        if output.document and not follow:
            items.append(event)
        else:
            _print_event(event, output=output)
    if follow:
        _follow(client, identifier, after, output=output)
    elif output.document:
        output.print({"items": items})


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


def _follow(client: ServiceClient, identifier: str | None, after: int, *, output: OutputForm) -> None:
    try:
        for event in client.events(after=after):
            if event["kind"] == "lost":
                print_line(f"migrator: {clean(event['reason'])}; trying again", file=sys.stderr)
            elif event["kind"] not in ("connected", "progress") and identifier in (None, event["subject_id"]):
                _print_event(event, output=output)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _print_event(event: Document, *, output: OutputForm) -> None:
    if output.document:
        output.print(event)
    else:
        print_line(show.event_line(event))


def watch_screen(client: ServiceClient, identifier: str | None) -> int:
    """Show the screen an operator leaves open, or one migration or evacuation to its end."""
    from migrator.cli import watch  # noqa: PLC0415 - it watches only when asked to

    if identifier is None:
        from migrator.cli import screen  # noqa: PLC0415

        return screen.live_screen(client)
    kind, found = find(client, identifier)
    if kind == "migration":
        return watch.migration(client, found, output=OutputForm.TABLE)
    return watch.evacuation(client, found, output=OutputForm.TABLE)
