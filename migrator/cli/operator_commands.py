"""Commands for the operator of the service, with their options; their work is in a module of its own each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from migrator.cli import completion
from migrator.cli.option_types import ConfigFile, Json

app = typer.Typer(rich_markup_mode=None)
token = typer.Typer(help="Who may use the service over TCP.", no_args_is_help=True)
config = typer.Typer(help="The service's configuration.", no_args_is_help=True)
app.add_typer(token, name="token")
store = typer.Typer(help="The service's journal.", no_args_is_help=True)
app.add_typer(config, name="config")
app.add_typer(store, name="store")


@token.command("create")
def token_create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Who will use it; what they do is journalled under it.")
    ],
    role: Annotated[
        str, typer.Option(metavar="ROLE", help="viewer (looks, changes nothing) or operator (everything).")
    ],
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it ends, from now: 12h, or never. Default: 90d.")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Limit it to this host, or to those of a pattern (rack-3-*); may be repeated. Default: all hosts.",
        ),
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Make a token and print it: the only time that anybody sees it.

    It is put into the service's journal as a hash, and holds at once, whether the service runs or not.
    """
    from migrator.cli import tokens  # noqa: PLC0415 - quick --help

    tokens.create(config, name, role, expires, hosts=host or (), json_output=json)


@token.command("list", short_help="List the tokens, never what opens the service.")
def token_list(config: ConfigFile = None, json: Json = False) -> None:
    """List the tokens: name, role, hosts, when they were made and until when they hold; never the tokens themselves."""
    from migrator.cli import tokens  # noqa: PLC0415 - quick --help

    tokens.show_all(config, json_output=json)


@token.command("revoke")
def token_revoke(
    which: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Its name, or its id from migrator token list.",
            autocompletion=completion.tokens,
        ),
    ],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """End a token, at once and for good."""
    from migrator.cli import tokens  # noqa: PLC0415 - quick --help

    tokens.revoke(config, which, json_output=json)


@store.command("copy", short_help="Bring the journal from its file to a PostgreSQL server.")
def store_copy(config: ConfigFile = None, json: Json = False) -> None:
    """Copy the journal from the file [store] path to the server [store] url, and compare what is there.

    The service must be stopped, and the server's database empty. The file stays as it is. Exit codes: 0 all of it is at
    the server, and the same; 1 nothing is.
    """
    from migrator.cli import store_copy as copying  # noqa: PLC0415 - quick --help

    copying.main(config, json_output=json)


@config.command("check", short_help="Say everything that is wrong with a configuration.")
def config_check(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            envvar="MIGRATOR_CONFIG",
            readable=False,  # said in a line, as all that is wrong with it
            help="The configuration. Default: /etc/migrator/migrator.toml.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say everything that is wrong with a configuration, a line each; nothing is connected.

    Exit codes: 0 the service would take it; 2 it would not.
    """
    from migrator.cli.config_check import main  # noqa: PLC0415 - quick --help

    main(file, json_output=json)


@app.command(short_help="Check all that the service needs, and say what to do.")
def doctor(config: ConfigFile = None, json: Json = False) -> None:
    """Check all that the service needs: configuration, journal, hosts, broker, rights; and say what to do.

    Run it as the user that the service runs as: its keys and rights are what counts. Changes nothing, and takes no
    monitor from a service that runs. Exit codes: 0 all is well, or nearly (warn); 1 something is not (fail).
    """
    from migrator.cli.doctor import main  # noqa: PLC0415 - quick --help

    main(config, json_output=json)


@app.command(short_help="Draw one migration as a picture.")
def report(
    which: Annotated[
        str, typer.Argument(metavar="WHICH", help="A migration's id, or a file that direct --record wrote.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.svg", help="Where to write it.")],
    server: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="unix:PATH or https://HOST:PORT (with a token in MIGRATOR_TOKEN). Default: MIGRATOR_SERVER, "
            "else unix:/run/migrator/api.sock.",
        ),
    ] = None,
) -> None:
    """Draw one migration as a picture: memory left, rates, throttle, decisions and downtime over time."""
    from migrator.cli.report import main  # noqa: PLC0415 - quick --help

    main(which, output, server=server)
