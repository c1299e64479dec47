"""Commands about guests and their migrations, with their options; their work is in :mod:`migrator.cli.remote`."""

from __future__ import annotations

from typing import Annotated

import typer

from migrator.cli import completion
from migrator.cli import service_options as options
from migrator.cli.option_types import ConfigFile, Json
from migrator.errors import UsageError

app = typer.Typer(rich_markup_mode=None)


@app.command()
def migrate(
    guest: options.PerhapsGuest = None,
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
    policy: options.Policy = None,
    accept: options.Accept = None,
    wait: options.Wait = False,
    server: options.Server = None,
    output: options.Form = None,
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
        options.ask(
            lambda client, form: remote.migrate_group(
                client,
                group,
                to,
                policy,
                options.codes(accept),
                wait=wait,
                output=form,
            ),
            server,
            output,
            json=json,
        )
        return
    one = guest or ""
    options.ask(
        lambda client, form: remote.migrate(
            client,
            one,
            to,
            policy,
            options.codes(accept),
            wait=wait,
            output=form,
        ),
        server,
        output,
        json=json,
    )


@app.command(short_help="Save a guest into a file on its host; it runs nowhere until it is loaded.")
def save(
    guest: options.Guest,
    file: options.SavedFile,
    as_stream: Annotated[
        bool,
        typer.Option("--stream", help="As a stream, which every QEMU can load, whatever its own can write."),
    ] = False,
    accept: options.Accept = None,
    wait: options.Wait = False,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Save a guest into a file on its host, and end its QEMU once the file is whole, checked and on the disk.

    The guest stands still meanwhile, and goes on where it was if anything fails. Exit codes as those of migrate.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote.save(
            client,
            guest,
            file,
            options.codes(accept),
            as_stream=as_stream,
            wait=wait,
            output=form,
        ),
        server,
        output,
        json=json,
    )


@app.command(short_help="Have a guest that was saved go on, out of its file.")
def load(
    file: options.SavedFile,
    to: Annotated[
        str,
        typer.Option(
            metavar="HOST", help="Where it is to run; it has the file.", autocompletion=completion.hosts
        ),
    ],
    accept: options.Accept = None,
    wait: options.Wait = False,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Have a guest that was saved go on, on a host that sees the file under this name, and the guest's disks.

    The file is checked first, and can be loaded once. Exit codes as those of migrate.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote.load(client, file, to, options.codes(accept), wait=wait, output=form),
        server,
        output,
        json=json,
    )


@app.command(short_help="Delete a saved guest's file that is of no use any more.")
def discard(
    file: options.SavedFile,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Where it is deleted.", autocompletion=completion.hosts)
    ],
    only_copy: Annotated[
        bool, typer.Option("--only-copy", help="The guest may be nowhere else, and is lost then.")
    ] = False,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Delete the file of a guest that was saved and has gone on since, and what is beside it.

    Where nobody knows the guest anywhere else nothing is deleted, unless --only-copy says that this is known.
    """
    from migrator.cli import saved_guests  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: saved_guests.discard(client, file, host, only_copy=only_copy, output=form),
        server,
        output,
        json=json,
    )


@app.command(short_help="Move guests that are shut off, by the command lines that start them.")
def relocate(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="On the source's host, each with the command line of one guest: as a shell takes it, or a JSON list.",
        ),
    ],
    source: Annotated[
        str,
        typer.Option("--from", metavar="HOST", help="Where they are.", autocompletion=completion.hosts),
    ],
    to: Annotated[str, typer.Option(metavar="HOST", help="Where they go.", autocompletion=completion.hosts)],
    config: ConfigFile = None,
    policy: options.Policy = None,
    accept: options.Accept = None,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Move guests that are shut off: their disks are copied, and the file with the command line comes with them.

    Each is started without running, moved by the service as a guest that stands still, and ended there. After an
    interruption type the same again. Exit codes as those of migrate --wait.
    """
    from migrator.cli import relocate as work  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: work.relocate(
            client,
            config,
            files,
            source=source,
            target=to,
            policy=policy,
            accept=options.codes(accept),
            output=form,
        ),
        server,
        output,
        json=json,
    )


@app.command(short_help="Stop a migration or an evacuation as far as that is safe.")
def cancel(
    identifier: options.Cancellable,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Stop a migration or an evacuation as far as that is safe; no guest is harmed."""
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote.cancel(client, identifier, output=form), server, output, json=json
    )


@app.command()
def postcopy(
    identifier: options.ForPostcopy,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Switch a migration to postcopy now, where its policy allows it."""
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote.postcopy(client, identifier, output=form), server, output, json=json
    )


@app.command()
def resolve(
    identifier: options.Held,
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
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """End a held migration, once you have looked at both QEMUs. What contradicts them is refused.

    Says what will be done and asks. Without a terminal it asks nobody: what kills a QEMU then needs --yes.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    if guest_at not in ("source", "destination", "lost"):
        raise UsageError(f"--guest-at: {guest_at!r} is none of source, destination, lost")
    options.ask(
        lambda client, form: remote.resolve(
            client,
            identifier,
            {"guest_at": guest_at, "unreachable_is_off": unreachable_is_off},
            yes=yes,
            dry_run=dry_run,
            output=form,
        ),
        server,
        output,
        json=json,
    )
