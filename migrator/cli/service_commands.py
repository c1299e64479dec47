"""Commands that look at what the service knows, with their options; their work is in a module of its own each."""

from __future__ import annotations

from typing import Annotated

import typer

from migrator.cli import completion
from migrator.cli import service_options as options
from migrator.cli.option_types import Json
from migrator.errors import UsageError

app = typer.Typer(rich_markup_mode=None)


@app.command()
def hosts(server: options.Server = None, output: options.Form = None, json: Json = False) -> None:
    """List the hosts: state, guests, memory, link."""
    from migrator.cli import remote_queries  # noqa: PLC0415 - quick --help

    options.ask(lambda client, form: remote_queries.hosts(client, output=form), server, output, json=json)


@app.command(short_help="List the guests: where they run, what keeps them from moving.")
def guests(
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Only those of this host.", autocompletion=completion.hosts),
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Have the service look at the hosts first, or at that one.")
    ] = False,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """List the guests: where they run, how fast they dirty memory, what keeps them from moving."""
    from migrator.cli import remote_queries  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote_queries.guests(client, host, refresh=refresh, output=form),
        server,
        output,
        json=json,
    )


@app.command(short_help="Show the guests that are saved in files, and where they can be loaded.")
def saved(
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Only files of this host.", autocompletion=completion.hosts),
    ] = None,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Show the guests that are saved in files: where, when, how large, by which QEMU, and where they can be loaded.

    Every host that is up is asked. A file that is not there any more is said so.
    """
    from migrator.cli import saved_guests  # noqa: PLC0415 - quick --help

    options.ask(lambda client, form: saved_guests.show(client, host, output=form), server, output, json=json)


@app.command(short_help="List the policies, and what each allows.")
def policies(server: options.Server = None, output: options.Form = None, json: Json = False) -> None:
    """List the policies of the site, those built in among them: what each allows, and how many guests it is for."""
    from migrator.cli import site_rules  # noqa: PLC0415 - quick --help

    options.ask(lambda client, form: site_rules.policies(client, output=form), server, output, json=json)


@app.command(short_help="List the hooks that a roll runs.")
def hooks(server: options.Server = None, output: options.Form = None, json: Json = False) -> None:
    """List the hooks that are configured for rolls: at which point each is run, where, and for how long at most."""
    from migrator.cli import site_rules  # noqa: PLC0415 - quick --help

    options.ask(lambda client, form: site_rules.hooks(client, output=form), server, output, json=json)


@app.command(short_help="Show what an evacuation would do; changes nothing.")
def plan(
    host: options.Host,
    policy: options.Policy = None,
    accept: options.Accept = None,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Show what an evacuation would do: target, time and downtime of every guest, or why not. Changes nothing.

    Exit codes: 0 the host would be empty; 8 there are guests that cannot move, and they are listed.
    """
    from migrator.cli import remote_queries  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote_queries.plan(client, host, policy, options.codes(accept), output=form),
        server,
        output,
        json=json,
    )


@app.command()
def check(
    guest: options.Guest,
    to: Annotated[str, typer.Option(metavar="HOST", help="The target.", autocompletion=completion.hosts)],
    policy: options.Policy = None,
    accept: options.Accept = None,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
) -> None:
    """Check whether a guest can move to a host. Changes nothing; exits with 3 when it cannot."""
    from migrator.cli import remote_queries  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote_queries.check(
            client, guest, to, policy, options.codes(accept), output=form
        ),
        server,
        output,
        json=json,
    )


@app.command(short_help="Show what is under way, or all about one of it.")
def status(
    identifier: options.PerhapsUnderWay = None,
    server: options.Server = None,
    output: options.Form = None,
    json: Json = False,
    service: options.OfService = False,
) -> None:
    """Show what is under way, or all about one migration or evacuation; with --service the controllers instead."""
    from migrator.cli import remote_queries  # noqa: PLC0415 - quick --help

    if service:
        if identifier is not None:
            raise UsageError(f"--service is about the controllers: leave {identifier} out")
        options.ask(
            lambda client, form: remote_queries.service_status(client, output=form), server, output, json=json
        )
        return
    options.ask(
        lambda client, form: remote_queries.status(client, identifier, output=form), server, output, json=json
    )


@app.command(short_help="Show everything live, or one migration or evacuation.")
def watch(identifier: options.PerhapsUnderWay = None, server: options.Server = None) -> None:
    """Show hosts, evacuations and migrations live, or one of them to its end. Ctrl-C leaves and cancels nothing."""
    from migrator.cli import remote_queries  # noqa: PLC0415 - quick --help

    options.ask(lambda client, _: remote_queries.watch_screen(client, identifier), server)


@app.command(short_help="Show what is under way on the whole screen, with keys to cancel and to see why.")
def top(server: options.Server = None) -> None:
    """Show what is under way on the whole screen: choose one with j and k, see why with Enter, cancel it with c, switch
    it to postcopy with p; each asks before it does anything. q leaves, and cancels nothing.
    """
    from migrator.cli import top  # noqa: PLC0415 - quick --help

    options.ask(lambda client, _: top.main(client), server)


@app.command(short_help="Show what happened, and who asked for it.")
def events(
    identifier: options.PerhapsUnderWay = None,
    after: Annotated[
        int | None, typer.Option(metavar="EVENT", min=0, help="Only those after this one; 0: all there are.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with those to come, until Ctrl-C.")] = False,
    server: options.Server = None,
    output: options.Form = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; with --follow one a line.")
    ] = False,
) -> None:
    """Show what happened: the last events, or all of one migration or evacuation."""
    from migrator.cli import remote_queries  # noqa: PLC0415 - quick --help

    options.ask(
        lambda client, form: remote_queries.events(client, identifier, after, follow=follow, output=form),
        server,
        output,
        json=json,
    )
