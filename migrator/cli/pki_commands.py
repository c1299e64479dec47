"""``migrator pki …`` with its options; the work is in a module of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from migrator.cli.option_types import ConfigFile, Json

app = typer.Typer(rich_markup_mode=None)
pki = typer.Typer(
    help="Certificates for QEMU's streams, from an authority of one's own.", no_args_is_help=True
)
app.add_typer(pki, name="pki")

_Days = Annotated[str | None, typer.Option(metavar="TIME", help="How long it is valid.")]


@pki.command("init", short_help="Make the site's certificate authority.")
def pki_init(valid: _Days = "3650d", config: ConfigFile = None, json: Json = False) -> None:
    """Make the site's certificate authority, in [site] pki_dir of this machine.

    Its key (ca-key.pem, mode 0600) makes certificates that every host believes: keep a copy of it off-line, and nobody
    but root near it. Nothing but "migrator pki" needs it.
    """
    from migrator.cli import pki as work  # noqa: PLC0415 - quick --help

    work.make_authority(config, valid or "3650d", json_output=json)


@pki.command("issue", short_help="Make keys and certificates for hosts, and install them there.")
def pki_issue(
    hosts: Annotated[list[str], typer.Argument(metavar="HOST…", help="By name; those of the configuration.")],
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A further DNS name or IP address that it is for; may be given again."
        ),
    ] = None,
    owner: Annotated[
        str,
        typer.Option(
            metavar="USER[:GROUP]",
            help="Whose the keys are: the user that QEMU runs as there. Default: who owns those there, else root.",
        ),
    ] = "",
    valid: _Days = "365d",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace certificates of another authority that are there.")
    ] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Make a key and a certificate for each host, and install them there in its tls_dir.

    They go over the connection that migrator has to the host. The certificate is for both ends of a stream, and for the
    host's name, its addresses and the host of its ssh. Migrations that are under way keep what they began with. A
    dh-params.pem is put beside them where there is none.
    """
    from migrator.cli import pki as work  # noqa: PLC0415 - quick --help

    work.issue(
        config,
        hosts,
        names=name or [],
        owner=owner,
        valid=valid or "365d",
        replaces=replace,
        json_output=json,
    )


@pki.command("renew", short_help="Issue new certificates to hosts whose own expire soon.")
def pki_renew(
    hosts: Annotated[
        list[str] | None, typer.Argument(metavar="[HOST…]", help="Only these; else all of the configuration.")
    ] = None,
    within: Annotated[
        str, typer.Option(metavar="TIME", help="Those that expire sooner than this from now.")
    ] = "30d",
    valid: _Days = "365d",
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Issue new certificates to hosts whose own expire soon; others, and hosts that have none of ours, are left alone.

    Meant to be run every day, by cron or a timer: see docs/tls.md. Exit codes: 0 done, 1 not all hosts could be
    renewed.
    """
    from migrator.cli import pki as work  # noqa: PLC0415 - quick --help

    work.renew(config, hosts or [], within=within, valid=valid or "365d", json_output=json)


@pki.command("show", short_help="Show the authority, and what certificates each host has.")
def pki_show(config: ConfigFile = None, json: Json = False) -> None:
    """Show the authority, and of each host what certificates it has, for which names, and until when."""
    from migrator.cli import pki as work  # noqa: PLC0415 - quick --help

    work.show(config, json_output=json)
