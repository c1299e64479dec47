"""Commands that the service carries out, and what all commands of it share; see also `remote_queries`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn

import typer

from migrator import units, wall_clock
from migrator.cli import Exit
from migrator.cli import show_service as show
from migrator.cli.client import Document, NotReachable, Rejected, ServiceClient, segment
from migrator.cli.output import OutputForm
from migrator.cli.show import print_line
from migrator.errors import UsageError
from migrator.text import clean

_EXITS = {
    "preflight": Exit.REFUSED,
    "conflict": Exit.FAILED,
    "not-now": Exit.FAILED,
    "unavailable": Exit.FAILED,
}


def run(
    action: Callable[[ServiceClient], Any], server: str | None, *, output: OutputForm = OutputForm.TABLE
) -> None:
    """Carry out an action, and exit with the code that it returns, or with 0.

    With an output for programs a refusal is printed as a document too.
    """
    try:
        code = action(ServiceClient(server))
    except NotReachable as error:
        _stop(Exit.UNREACHABLE, str(error))
    except Rejected as error:
        if output.document:
            problem = {"error": str(error), "code": error.code, "findings": error.findings}
            output.print(problem)
        else:
            for line in show.finding_lines(error.findings):
                print_line(line, file=sys.stderr)
        _stop(_EXITS.get(error.code, Exit.USAGE if error.status < 500 else Exit.FAILED), str(error))
    except BrokenPipeError:
        # Whoever read has had enough. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.DONE)
    sys.exit(Exit.DONE if code is None else code)


def _stop(code: int, message: str) -> NoReturn:
    print_line(f"migrator: {clean(message)}", file=sys.stderr)
    sys.exit(code)


def print_document(document: Any, *, output: OutputForm, lines: Callable[[], list[str]]) -> None:
    """Print `document` as JSON or as lines."""
    if output.document:
        output.print(document)
    else:
        for line in lines():
            print_line(line)


def migrate(
    client: ServiceClient,
    guest: str,
    to: str | None,
    policy: str | None,
    accept: list[str],
    *,
    wait: bool,
    output: OutputForm,
) -> int:
    """Move one guest."""
    begun = client.post("migrations", {"guest": guest, "to": to, "policy": policy, "accept": accept})
    return _tell_begun(client, begun, wait=wait, output=output)


def migrate_group(
    client: ServiceClient,
    group: str,
    to: str | None,
    policy: str | None,
    accept: list[str],
    *,
    wait: bool,
    output: OutputForm,
) -> int:
    """Move the guests of a group together."""
    begun = client.post("migrations", {"group": group, "to": to, "policy": policy, "accept": accept})
    return _emptying(client, begun, wait=wait, output=output)


def save(
    client: ServiceClient,
    guest: str,
    file: str,
    accept: list[str],
    *,
    as_stream: bool,
    wait: bool,
    output: OutputForm,
) -> int:
    """Save a guest into a file."""
    # Without it the field is not sent: an older service does not know it.
    form = {"form": "stream"} if as_stream else {}
    begun = client.post("saves", {"guest": guest, "file": file, "accept": accept, **form})
    return _tell_begun(client, begun, wait=wait, output=output)


def load(
    client: ServiceClient, file: str, to: str, accept: list[str], *, wait: bool, output: OutputForm
) -> int:
    """Load a guest from a file."""
    begun = client.post("loads", {"file": file, "to": to, "accept": accept})
    return _tell_begun(client, begun, wait=wait, output=output)


def _tell_begun(client: ServiceClient, begun: Document, *, wait: bool, output: OutputForm) -> int:
    if wait:
        from migrator.cli import watch  # noqa: PLC0415 - it watches only when asked to

        return watch.migration(client, begun, output=output)
    print_document(begun, output=output, lines=lambda: [clean(_begun(begun))])
    return Exit.DONE


def _begun(one: Document) -> str:
    if one.get("file"):
        how = "is saved into" if one["file_use"] == "save" else "is loaded from"
        return (
            f"{one['id']}: {show.label(one)} {how} {one['file']} on {one['destination']}; "
            f"migrator watch {one['id']} shows it"
        )
    return (
        f"{one['id']}: {show.label(one)} moves from {one['source']} to {one['destination']}; "
        f"migrator watch {one['id']} shows it"
    )


def read_deadline(when: str) -> datetime:
    """Return the deadline that a person typed, and print it with its zone."""
    now = datetime.now(UTC)
    moment = wall_clock.parse(when, now=now)
    remark = wall_clock.remark(when, moment, now=now)
    said = wall_clock.show(moment) + (f"; {remark}" if remark else "")
    print_line(f"migrator: the deadline is {said}", file=sys.stderr)
    return moment.astimezone(UTC)


def read_window(at: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Return the begin and the end of the window that a person typed, and print what was understood with its zone."""
    if at is None and until is None:
        return None, None
    now = datetime.now(UTC)
    starts = _of_window("--at", at, now)
    ends = _of_window("--until", until, starts or now)
    said = f"from {wall_clock.show(starts)}" if starts else "from now on"
    said += f" until {wall_clock.show(ends)}" if ends else ""
    remarks = [
        wall_clock.remark(at, starts, now=now) if at and starts else "",
        wall_clock.remark(until, ends, now=starts or now) if until and ends else "",
        wall_clock.clock_change(starts or now, ends) if ends else "",
    ]
    print_line(
        f"migrator: {'; '.join(each for each in (f'the window is {said}', *remarks) if each)}",
        file=sys.stderr,
    )
    return starts and starts.astimezone(UTC), ends and ends.astimezone(UTC)


def _of_window(option: str, text: str | None, now: datetime) -> datetime | None:
    if text is None:
        return None
    try:
        return wall_clock.parse(text, now=now, dated=True)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None


def evacuate(
    client: ServiceClient,
    host: str,
    when: str | None,
    on_deadline: str,
    policy: str | None,
    accept: list[str],
    *,
    window: tuple[str | None, str | None] = (None, None),
    wait: bool,
    output: OutputForm,
) -> int:
    """Empty a host."""
    body: Document = {"on_deadline": on_deadline, "policy": policy, "accept": accept}
    if when is not None:
        body["deadline"] = read_deadline(when).isoformat()
    for name, moment in zip(("at", "until"), read_window(*window), strict=True):
        if moment is not None:
            body[name] = moment.isoformat()
    begun = client.post(f"hosts/{segment(host)}/evacuate", body)
    return _emptying(client, begun, wait=wait, output=output)


def roll(
    client: ServiceClient,
    hosts: list[str],
    max_unavailable: int,
    hooks: list[str],
    policy: str | None,
    accept: list[str],
    *,
    reboots: bool,
    ready_timeout: str,
    wait: bool,
    output: OutputForm,
) -> int:
    """Roll through hosts."""
    named: dict[str, list[str]] = {}
    for each in hooks:
        point, equals, name = each.partition("=")
        if not equals or point not in ("after-drain", "ready") or not name:
            raise UsageError(f"--hook: {each!r} is neither after-drain=NAME nor ready=NAME")
        named.setdefault(point, []).append(name)
    body: Document = {
        "hosts": hosts,
        "max_unavailable": max_unavailable,
        "policy": policy,
        "accept": accept,
        "hooks": named,
        "reboots": reboots,
        "ready_timeout_seconds": units.seconds(ready_timeout),
    }
    return _emptying(client, client.post("rolls", body), wait=wait, output=output)


def restore(client: ServiceClient, host: str, policy: str | None, *, wait: bool, output: OutputForm) -> int:
    """Bring the guests of the last evacuation home; by which policies, and what those allow, is said before."""
    path = f"hosts/{segment(host)}/restore"
    if not output.document:
        # An older service cannot say it; what else is wrong the restore itself is told.
        with contextlib.suppress(Rejected):
            for line in show.homecoming_lines(client.post(path, {"policy": policy, "dry_run": True})):
                print_line(line)
    return _emptying(client, client.post(path, {"policy": policy}), wait=wait, output=output)


def restore_plan(client: ServiceClient, host: str, policy: str | None, *, output: OutputForm) -> None:
    """Say who would come home, by which policies, and what those allow."""
    found = client.post(f"hosts/{segment(host)}/restore", {"policy": policy, "dry_run": True})
    print_document(found, output=output, lines=lambda: show.homecoming_lines(found))


def _emptying(client: ServiceClient, begun: Document, *, wait: bool, output: OutputForm) -> int:
    if wait:
        from migrator.cli import watch  # noqa: PLC0415 - it watches only when asked to

        return watch.evacuation(client, begun, output=output)
    print_document(
        begun,
        output=output,
        lines=lambda: [*show.evacuation_lines(begun), f"migrator watch {begun['id']} shows it"],
    )
    return Exit.DONE


def activate(client: ServiceClient, host: str, *, output: OutputForm) -> None:
    """End a host's maintenance."""
    found = client.post(f"hosts/{segment(host)}/activate")
    print_document(found, output=output, lines=lambda: [_use(found)])


def cordon(client: ServiceClient, host: str, *, cordoned: bool, output: OutputForm) -> None:
    """Say whether new guests may come to a host."""
    found = client.post(f"hosts/{segment(host)}/{'cordon' if cordoned else 'uncordon'}")
    print_document(found, output=output, lines=lambda: [_use(found)])


def _use(host: Document) -> str:
    """Say what a host may be used for."""
    if host.get("cordoned"):
        return (
            f"{host['host']} is {host['state']}, and cordoned: its guests stay, no others come; "
            f"migrator uncordon {host['host']} ends that"
        )
    return f"{host['host']} is {host['state']}{' and takes guests' if host['state'] == 'active' else ''}"


def find(client: ServiceClient, which: str) -> tuple[str, Document]:
    """Find a migration or an evacuation, and which of them it is: by its id, else by the guest or host it is about.

    :raise Rejected: when it is neither, or may be either.
    """
    for kind in ("migration", "evacuation"):
        found = _perhaps(client, f"{kind}s/{segment(which)}")
        if found is not None:
            return kind, found
    guest = _perhaps(client, f"guests/{segment(which)}")
    under_way = []
    if guest is not None and guest["migration"]:
        under_way.append(("migration", client.get(f"migrations/{segment(guest['migration'])}")))
    if _perhaps(client, f"hosts/{segment(which)}") is not None:
        runs = client.get("evacuations", active="true", host=which)["items"]
        under_way += [("evacuation", one) for one in runs]
    match under_way:
        case [one]:
            return one
        case []:
            what = f"{which} is in no migration" if guest is not None else f"there is no {_EITHER} {which}"
            raise Rejected(404, "not-found", f"{what}; migrator status lists what is under way", [])
    told = ", ".join(f"{kind} {one['id']}" for kind, one in under_way)
    raise Rejected(409, "ambiguous", f"{which} may be any of {told}", [])


_EITHER = "migration or evacuation"


def _perhaps(client: ServiceClient, path: str) -> Document | None:
    try:
        return client.get(path)
    except Rejected as error:
        if error.status not in (404, 422):  # what is no id at all may be the name of a guest
            raise
        return None


def _migration(client: ServiceClient, which: str) -> str:
    """Return the id of a migration.

    :raise Rejected: it is none.
    """
    kind, found = find(client, which)
    if kind != "migration":
        raise Rejected(404, "not-found", f"{which} is an evacuation: give one of its guests", [])
    return str(found["id"])


def cancel(client: ServiceClient, identifier: str, *, output: OutputForm) -> None:
    """Stop a migration or an evacuation as far as that is safe."""
    kind, one = find(client, identifier)
    identifier = one["id"]
    found = client.post(f"{kind}s/{segment(identifier)}/cancel")
    print_document(found, output=output, lines=lambda: [show.cancelled_line(found)])


def postcopy(client: ServiceClient, identifier: str, *, output: OutputForm) -> None:
    """Switch a migration to postcopy."""
    identifier = _migration(client, identifier)
    found = client.post(f"migrations/{segment(identifier)}/postcopy")
    print_document(
        found,
        output=output,
        lines=lambda: [show.postcopy_line(found)],
    )


def resolve(
    client: ServiceClient, identifier: str, said: Document, *, yes: bool, dry_run: bool, output: OutputForm
) -> int:
    """Say what the operator's answer would do to a held migration, ask, and do it."""
    path = f"migrations/{segment(_migration(client, identifier))}/resolve"
    answer = client.post(path, said | {"dry_run": True})
    if dry_run:
        print_document(answer, output=output, lines=lambda: show.resolution_lines(answer))
        return 0 if answer["accepted"] else 1
    if not answer["accepted"]:
        raise Rejected(409, "conflict", show.refused_answer(answer), [])
    if not yes:
        asking = sys.stdin.isatty() and sys.stderr.isatty()
        for line in show.resolution_lines(answer):
            print_line(line, file=sys.stderr)
        if asking and not typer.confirm("Do it?", err=True):
            print("migrator: nothing was done", file=sys.stderr)
            return 1
        if not asking and answer["ends_process"]:
            raise UsageError("it kills a QEMU, and there is no terminal to ask: say --yes")
    found = client.post(path, said | {"agreed": answer["code"]})
    print_document(found, output=output, lines=lambda: show.migration_lines(found))
    return 0
