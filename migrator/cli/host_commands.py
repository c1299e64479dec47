"""Commands about whole hosts, with their options; their work is in :mod:`migrator.cli.remote`."""

from __future__ import annotations

from typing import Annotated

import typer

from migrator.cli import completion
from migrator.cli import service_options as options
from migrator.cli.option_types import Json
from migrator.errors import UsageError

app = typer.Typer(rich_markup_mode=None)


@app.command()
def evacuate(
    host: options.Host,
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
    policy: options.Policy = None,
    accept: options.Accept = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done, as plan does; changes nothing.")
    ] = False,
    wait: options.Wait = False,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Empty a host: now, or in a window (--at, --until).

    A window that is planned holds over restarts, and is cancelled like others.
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
        options.ask(
            lambda client, form: remote_queries.plan(
                client,
                host,
                policy,
                options.codes(accept),
                when=deadline,
                window=(at, until),
                output=form,
            ),
            server,
            output,
            json=json,
        )
        return
    options.ask(
        lambda client, form: remote.evacuate(
            client,
            host,
            deadline,
            on_deadline,
            policy,
            options.codes(accept),
            window=(at, until),
            wait=wait,
            output=form,
        ),
        server,
        output,
        json=json,
    )


@app.command(short_help="Empty hosts one after the other, have each patched, and fill it again.")
def roll(
    hosts: options.Hosts,
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
    policy: options.Policy = None,
    accept: options.Accept = None,
    wait: options.Wait = False,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Empty hosts a few at a time, in this order; hand each over to the hooks after-drain (patch, reboot); wait until
    it is up and the hooks ready agree; bring its guests home; and go on.

    Stops at the first host that is not well; goes on by itself after a restart of the service. Hooks: docs/hooks.md.
    Exit codes with --wait: 0 all are done; 1 one is not well, or the roll was cancelled.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote.roll(
            client,
            hosts,
            max_unavailable,
            hook or [],
            policy,
            options.codes(accept),
            reboots=reboots,
            ready_timeout=ready_timeout,
            wait=wait,
            output=form,
        ),
        server,
        output,
        json=json,
    )


@app.command(short_help="Bring the guests of a host's last evacuation home.")
def restore(
    host: options.Host,
    policy: options.PolicyHome = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only show who would come home, and by which policies; changes nothing."
        ),
    ] = False,
    wait: options.Wait = False,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Bring the guests of a host's last evacuation home and make the host active."""
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    if dry_run:
        if wait:
            raise UsageError("--dry-run begins nothing that --wait could wait for")
        options.ask(
            lambda client, form: remote.restore_plan(client, host, policy, output=form),
            server,
            output,
            json=json,
        )
        return
    options.ask(
        lambda client, form: remote.restore(client, host, policy, wait=wait, output=form),
        server,
        output,
        json=json,
    )


@app.command()
def activate(
    host: options.Host, server: options.Server = None, output: options.Form = None, json: Json = False
) -> None:
    """End a host's maintenance without bringing anyone home."""
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    options.ask(lambda client, form: remote.activate(client, host, output=form), server, output, json=json)


@app.command(short_help="Have no new guests come to a host; nobody is moved.")
def cordon(
    host: options.Host, server: options.Server = None, output: options.Form = None, json: Json = False
) -> None:
    """Have no new guests come to a host; those that are there stay, and nothing else changes.

    It holds until uncordon, also over restarts of the service. The host may be evacuated; restore is refused.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote.cordon(client, host, cordoned=True, output=form),
        server,
        output,
        json=json,
    )


@app.command()
def uncordon(
    host: options.Host, server: options.Server = None, output: options.Form = None, json: Json = False
) -> None:
    """Let new guests come to a host again."""
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote.cordon(client, host, cordoned=False, output=form),
        server,
        output,
        json=json,
    )
