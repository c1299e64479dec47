"""Commands that ask the service, with their options; their work is in :mod:`migrator.cli.remote`."""

from __future__ import annotations

from typing import Annotated

import typer

from migrator.cli import completion
from migrator.cli.option_types import Json
from migrator.errors import UsageError

app = typer.Typer(rich_markup_mode=None)

_Server = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="unix:PATH or https://HOST:PORT (with a token in MIGRATOR_TOKEN). Default: MIGRATOR_SERVER, "
        "else unix:/run/migrator/api.sock.",
    ),
]
_Wait = Annotated[
    bool,
    typer.Option("--wait", help="Show it until it has ended; Ctrl-C leaves (130) and cancels nothing."),
]
_Policy = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What may be done to move a guest; default: the guest's own.",
        autocompletion=completion.policies,
    ),
]
_Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        metavar="CODE",
        help="Go on in spite of this finding; several with commas, or given again.",
    ),
]
_Host = Annotated[str, typer.Argument(metavar="HOST", autocompletion=completion.hosts)]
_Guest = Annotated[
    str,
    typer.Argument(
        metavar="GUEST", help="Its uuid, its name, or HOST/NAME.", autocompletion=completion.guests
    ),
]
_PerhapsGuest = Annotated[
    str | None,
    typer.Argument(
        metavar="[GUEST]", help="Its uuid, its name, or HOST/NAME.", autocompletion=completion.guests
    ),
]
_SavedFile = Annotated[
    str, typer.Argument(metavar="FILE", help="Absolute path on the host; FILE.json is beside it.")
]
_OF_EITHER = (
    "Of a migration or an evacuation; or the guest, or the host, that it is about while it is under way."
)
_OF_A_MIGRATION = "Of a migration; or its guest."
_Cancellable = Annotated[
    str, typer.Argument(metavar="ID", help=_OF_EITHER, autocompletion=completion.cancellable)
]
_PerhapsUnderWay = Annotated[
    str | None, typer.Argument(metavar="[ID]", help=_OF_EITHER, autocompletion=completion.under_way)
]
_OfService = Annotated[
    bool,
    typer.Option("--service", help="Show the controllers that share the journal: roles, leases, versions."),
]
_ForPostcopy = Annotated[
    str, typer.Argument(metavar="ID", help=_OF_A_MIGRATION, autocompletion=completion.for_postcopy)
]
_Held = Annotated[str, typer.Argument(metavar="ID", help=_OF_A_MIGRATION, autocompletion=completion.held)]


def _codes(given: list[str] | None) -> list[str]:
    return [code for codes in given or [] for code in codes.split(",") if code]


@app.command()
def hosts(server: _Server = None, json: Json = False) -> None:
    """List the hosts: state, guests, memory, link."""
    from migrator.cli import remote, remote_queries  # noqa: PLC0415 - quick --help

    remote.run(lambda client: remote_queries.hosts(client, json_output=json), server, json_output=json)


@app.command(short_help="List the guests: where they run, what keeps them from moving.")
def guests(
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Only those of this host.", autocompletion=completion.hosts),
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Have the service look at the hosts first, or at that one.")
    ] = False,
    server: _Server = None,
    json: Json = False,
) -> None:
    """List the guests: where they run, how fast they dirty memory, what keeps them from moving."""
    from migrator.cli import remote, remote_queries  # noqa: PLC0415 - quick --help

    remote.run(
        lambda client: remote_queries.guests(client, host, refresh=refresh, json_output=json),
        server,
        json_output=json,
    )


@app.command(short_help="Show what an evacuation would do; changes nothing.")
def plan(
    host: _Host,
    policy: _Policy = None,
    accept: _Accept = None,
    server: _Server = None,
    json: Json = False,
) -> None:
    """Show what an evacuation would do: target, time and downtime of every guest, or why not. Changes nothing.

    Exit codes: 0 the host would be empty; 8 there are guests that cannot move, and they are listed.
    """
    from migrator.cli import remote, remote_queries  # noqa: PLC0415 - quick --help

    remote.run(
        lambda client: remote_queries.plan(client, host, policy, _codes(accept), json_output=json),
        server,
        json_output=json,
    )


@app.command()
def check(
    guest: _Guest,
    to: Annotated[str, typer.Option(metavar="HOST", help="The target.", autocompletion=completion.hosts)],
    policy: _Policy = None,
    accept: _Accept = None,
    server: _Server = None,
    json: Json = False,
) -> None:
    """Look whether a guest can move to a host. Changes nothing; exits with 3 when it cannot."""
    from migrator.cli import remote, remote_queries  # noqa: PLC0415 - quick --help

    remote.run(
        lambda client: remote_queries.check(client, guest, to, policy, _codes(accept), json_output=json),
        server,
        json_output=json,
    )


@app.command()
def migrate(
    guest: _PerhapsGuest = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="In place of a guest: all guests of this group, with their switches within a second.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="HOST", help="The target; default: the best there is.", autocompletion=completion.hosts
        ),
    ] = None,
    policy: _Policy = None,
    accept: _Accept = None,
    wait: _Wait = False,
    server: _Server = None,
    json: Json = False,
) -> None:
    """Move one guest, or the guests of a group together.

    The switch of each guest of a group is held until all can be switched; they run meanwhile. How long, and what they
    do without one that does not move, the configuration says ([groups.NAME]). Exit codes as those of evacuate then.

    Exit codes: 3 refused by preflight, nothing was changed; 7 the service cannot be reached. With --wait: 0 done; 1
    failed, the guest is where it was; 4 cancelled, likewise; 5 held, a person must look; 6 the guest ended by itself.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    if (guest is None) is (group is None):
        raise UsageError("give either a guest or --group NAME")
    if group is not None:
        remote.run(
            lambda client: remote.migrate_group(
                client, group, to, policy, _codes(accept), wait=wait, json_output=json
            ),
            server,
            json_output=json,
        )
        return
    one = guest or ""
    remote.run(
        lambda client: remote.migrate(client, one, to, policy, _codes(accept), wait=wait, json_output=json),
        server,
        json_output=json,
    )


@app.command(short_help="Save a guest into a file on its host; it runs nowhere until it is loaded.")
def save(
    guest: _Guest,
    file: _SavedFile,
    accept: _Accept = None,
    wait: _Wait = False,
    server: _Server = None,
    json: Json = False,
) -> None:
    """Save a guest into a file on its host, and end its QEMU once the file is whole, checked and on the disk.

    The guest stands still meanwhile, and goes on where it was if anything fails. Exit codes as those of migrate.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    remote.run(
        lambda client: remote.save(client, guest, file, _codes(accept), wait=wait, json_output=json),
        server,
        json_output=json,
    )


@app.command(short_help="Have a guest that was saved go on, out of its file.")
def load(
    file: _SavedFile,
    to: Annotated[
        str,
        typer.Option(
            metavar="HOST", help="Where it is to run; it has the file.", autocompletion=completion.hosts
        ),
    ],
    accept: _Accept = None,
    wait: _Wait = False,
    server: _Server = None,
    json: Json = False,
) -> None:
    """Have a guest that was saved go on, on a host that sees the file under this name, and the guest's disks.

    The file is checked first, and can be loaded once. Exit codes as those of migrate.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    remote.run(
        lambda client: remote.load(client, file, to, _codes(accept), wait=wait, json_output=json),
        server,
        json_output=json,
    )


@app.command(short_help="Show the guests that are saved in files, and where they can be loaded.")
def saved(
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Only files of this host.", autocompletion=completion.hosts),
    ] = None,
    server: _Server = None,
    json: Json = False,
) -> None:
    """Show the guests that are saved in files: where, when, how large, by which QEMU, and where they can be loaded.

    Every host that is up is asked. A file that is not there any more is said so.
    """
    from migrator.cli import remote, saved_guests  # noqa: PLC0415 - quick --help

    remote.run(lambda client: saved_guests.show(client, host, json_output=json), server, json_output=json)


@app.command()
def evacuate(
    host: _Host,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="+90m, 22:30 (the next one) or 2026-11-30T22:30:00+01:00."),
    ] = None,
    on_deadline: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="continue (and be late) or stop (start nothing more, cancel what can be).",
            autocompletion=completion.one_of("continue", "stop"),
        ),
    ] = "continue",
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Begin it then, by itself: 02:30 (the next one), 2026-12-01T02:30, or as a deadline.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Begin nothing more of it from then on; what copies goes on to its end, or is cancelled with "
            "--on-deadline stop. 05:00 is the next one after --at.",
        ),
    ] = None,
    policy: _Policy = None,
    accept: _Accept = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done, as plan does; changes nothing.")
    ] = False,
    wait: _Wait = False,
    server: _Server = None,
    json: Json = False,
) -> None:
    """Empty a host: now, or in a window (--at, --until), which holds over restarts and is cancelled like others.

    Exit codes with --wait: 0 the host is empty; 1 guests are left, and listed; 5 one of them is held. With --dry-run:
    0 the host would be empty; 8 there are guests that cannot move, and they are listed.
    """
    from migrator.cli import remote, remote_queries  # noqa: PLC0415 - quick --help

    if on_deadline not in ("continue", "stop"):
        raise UsageError(f"--on-deadline: {on_deadline!r} is neither continue nor stop")
    if until is not None and deadline is not None:
        raise UsageError("give either --deadline or --until, which is a deadline too")
    if dry_run:
        if wait:
            raise UsageError("--dry-run begins nothing that --wait could wait for")
        remote.run(
            lambda client: remote_queries.plan(
                client, host, policy, _codes(accept), when=deadline, window=(at, until), json_output=json
            ),
            server,
            json_output=json,
        )
        return
    remote.run(
        lambda client: remote.evacuate(
            client,
            host,
            deadline,
            on_deadline,
            policy,
            _codes(accept),
            window=(at, until),
            wait=wait,
            json_output=json,
        ),
        server,
        json_output=json,
    )


@app.command(short_help="Empty hosts one after the other, have each patched, and fill it again.")
def roll(
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", autocompletion=completion.hosts)],
    max_unavailable: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="So many hosts are away from use at a time.")
    ] = 1,
    hook: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POINT=NAME",
            help="A hook of the service's configuration, at after-drain or ready; again for several. Default: all that "
            "are configured for the point.",
        ),
    ] = None,
    reboots: Annotated[
        bool,
        typer.Option("--reboots", help="The hooks reboot the host: it is ready once it has booted anew."),
    ] = False,
    ready_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="A host that is not ready after so long stops the roll.")
    ] = "30m",
    policy: _Policy = None,
    accept: _Accept = None,
    wait: _Wait = False,
    server: _Server = None,
    json: Json = False,
) -> None:
    """Empty hosts a few at a time, in this order; hand each over to the hooks after-drain (patch, reboot); wait until
    it is up and the hooks ready agree; bring its guests home; and go on.

    Stops at the first host that is not well; goes on by itself after a restart of the service. Hooks: docs/hooks.md.
    Exit codes with --wait: 0 all are done; 1 one is not well, or the roll was cancelled.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    remote.run(
        lambda client: remote.roll(
            client,
            hosts,
            max_unavailable,
            hook or [],
            policy,
            _codes(accept),
            reboots=reboots,
            ready_timeout=ready_timeout,
            wait=wait,
            json_output=json,
        ),
        server,
        json_output=json,
    )


@app.command(short_help="Bring the guests of a host's last evacuation home.")
def restore(
    host: _Host, policy: _Policy = None, wait: _Wait = False, server: _Server = None, json: Json = False
) -> None:
    """Bring the guests of a host's last evacuation home and make the host active."""
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    remote.run(
        lambda client: remote.restore(client, host, policy, wait=wait, json_output=json),
        server,
        json_output=json,
    )


@app.command()
def activate(host: _Host, server: _Server = None, json: Json = False) -> None:
    """End a host's maintenance without bringing anyone home."""
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    remote.run(lambda client: remote.activate(client, host, json_output=json), server, json_output=json)


@app.command(short_help="Have no new guests come to a host; nobody is moved.")
def cordon(host: _Host, server: _Server = None, json: Json = False) -> None:
    """Have no new guests come to a host; those that are there stay, and nothing else changes.

    It holds until uncordon, also over restarts of the service. The host may be evacuated; restore is refused.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    remote.run(
        lambda client: remote.cordon(client, host, cordoned=True, json_output=json), server, json_output=json
    )


@app.command()
def uncordon(host: _Host, server: _Server = None, json: Json = False) -> None:
    """Let new guests come to a host again."""
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    remote.run(
        lambda client: remote.cordon(client, host, cordoned=False, json_output=json), server, json_output=json
    )


@app.command(short_help="Show what is under way, or all about one of it.")
def status(
    identifier: _PerhapsUnderWay = None,
    server: _Server = None,
    json: Json = False,
    service: _OfService = False,
) -> None:
    """Show what is under way, or all about one migration or evacuation; with --service the controllers instead."""
    from migrator.cli import remote, remote_queries  # noqa: PLC0415 - quick --help

    if service:
        if identifier is not None:
            raise UsageError(f"--service is about the controllers: leave {identifier} out")
        remote.run(
            lambda client: remote_queries.service_status(client, json_output=json), server, json_output=json
        )
        return
    remote.run(
        lambda client: remote_queries.status(client, identifier, json_output=json), server, json_output=json
    )


@app.command(short_help="Show everything live, or one migration or evacuation.")
def watch(identifier: _PerhapsUnderWay = None, server: _Server = None) -> None:
    """Show hosts, evacuations and migrations live, or one of them to its end. Ctrl-C leaves and cancels nothing."""
    from migrator.cli import remote, remote_queries  # noqa: PLC0415 - quick --help

    remote.run(lambda client: remote_queries.watch_screen(client, identifier), server)


@app.command(short_help="Show what happened, and who asked for it.")
def events(
    identifier: _PerhapsUnderWay = None,
    after: Annotated[
        int | None, typer.Option(metavar="EVENT", min=0, help="Only those after this one; 0: all there are.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with those to come, until Ctrl-C.")] = False,
    server: _Server = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; with --follow one a line.")
    ] = False,
) -> None:
    """Show what happened: the last events, or all of one migration or evacuation."""
    from migrator.cli import remote, remote_queries  # noqa: PLC0415 - quick --help

    remote.run(
        lambda client: remote_queries.events(client, identifier, after, follow=follow, json_output=json),
        server,
        json_output=json,
    )


@app.command(short_help="Stop a migration or an evacuation as far as that is safe.")
def cancel(identifier: _Cancellable, server: _Server = None, json: Json = False) -> None:
    """Stop a migration or an evacuation as far as that is safe; no guest is harmed."""
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    remote.run(lambda client: remote.cancel(client, identifier, json_output=json), server, json_output=json)


@app.command()
def postcopy(identifier: _ForPostcopy, server: _Server = None, json: Json = False) -> None:
    """Switch a migration to postcopy now, where its policy allows it."""
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    remote.run(lambda client: remote.postcopy(client, identifier, json_output=json), server, json_output=json)


@app.command()
def resolve(
    identifier: _Held,
    guest_at: Annotated[
        str,
        typer.Option(
            "--guest-at",
            metavar="WHERE",
            help="Where it is: source, destination or lost.",
            autocompletion=completion.one_of("source", "destination", "lost"),
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    unreachable_is_off: Annotated[
        bool,
        typer.Option(
            "--unreachable-is-off",
            help="An end whose host cannot be asked is off, you have seen to that: else the guest may run twice.",
        ),
    ] = False,
    server: _Server = None,
    json: Json = False,
) -> None:
    """End a held migration, once you have looked at both QEMUs. What contradicts them is refused.

    Says what will be done and asks. Without a terminal it asks nobody: what kills a QEMU then needs --yes.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    if guest_at not in ("source", "destination", "lost"):
        raise UsageError(f"--guest-at: {guest_at!r} is none of source, destination, lost")
    remote.run(
        lambda client: remote.resolve(
            client,
            identifier,
            {"guest_at": guest_at, "unreachable_is_off": unreachable_is_off},
            yes=yes,
            dry_run=dry_run,
            json_output=json,
        ),
        server,
        json_output=json,
    )
