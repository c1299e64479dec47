"""Every command with its options; what they do is in a module of its own each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from migrator import __version__
from migrator.cli.group import Group
from migrator.cli.option_types import Json


class _Migrator(Group):
    more = (
        "migrator.cli.service_commands",
        "migrator.cli.guest_commands",
        "migrator.cli.host_commands",
        "migrator.cli.operator_commands",
        "migrator.cli.pki_commands",
    )


app = typer.Typer(
    cls=_Migrator,
    name="migrator",
    help="Moves running QEMU/KVM guests between hosts, speaking QMP to both ends.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # bash, zsh and fish: `migrator --show-completion`.
    add_completion=True,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"migrator {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Move one guest between two QMP sockets, or two libvirts, without a service.")
def direct(
    source: Annotated[
        str | None,
        typer.Option(
            metavar="QMP",
            help="The guest's QMP monitor: unix:PATH, tcp:HOST:PORT, tls:HOST:PORT or ssh:HOST:PATH. "
            "A guest of libvirt: qemu:///system?guest=NAME or qemu+ssh://USER@HOST/system?guest=NAME.",
        ),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option(
            metavar="QMP",
            help="QMP monitor of a QEMU started there with '-S -incoming defer'. For a guest of libvirt the other "
            "libvirt: qemu+ssh://USER@HOST/system.",
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="default, gentle, must-finish, postcopy-first or offline; options below override it.",
        ),
    ] = "default",
    max_downtime: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long the guest may stand still: 300ms.")
    ] = None,
    max_bandwidth: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="The most the stream may take: 1GiB/s, 10Gbit/s, or auto."),
    ] = None,
    max_throttle: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="The most CPU time that may be taken from the guest: 80%."),
    ] = None,
    postcopy: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="never, allow (when precopy does not converge) or immediate."),
    ] = None,
    max_duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it may take before the last resort: 10m.")
    ] = None,
    last_resort: Annotated[
        str | None, typer.Option(metavar="WHAT", help="abort (give up) or pause (stop the guest and copy).")
    ] = None,
    block_jobs: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="While jobs or exports use the guest's disks: wait until they have ended, or refuse.",
        ),
    ] = None,
    max_postcopy_stall: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The longest that the guest may wait for pages in postcopy: 2s."),
    ] = None,
    disks: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="Disks that are copied: auto (those that both ends do not share), all, or none (refuse).",
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="What counts more below the ceiling: downtime (the shorter one), or time (the sooner end).",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="now, or quiet: once the guest is measured to write little, within 10 minutes.",
        ),
    ] = None,
    tls: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="Encrypt what goes between the hosts: require, prefer (where both have certificates) or off.",
        ),
    ] = None,
    tls_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Directory of QEMU's certificates at both hosts. Default: /etc/pki/qemu."
        ),
    ] = None,
    tls_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the destination's host in its certificate. Default: what its address says.",
        ),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(
            metavar="WAY", help="From QEMU to QEMU: direct. Through an SSH tunnel between the hosts: ssh."
        ),
    ] = None,
    streams: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Channels for memory: 1 to 16, or auto.")
    ] = None,
    compress: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="Compress memory: auto (where it pays), never, zstd or xbzrle."),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE", help="Go on in spite of this finding; several with commas, or given again."
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="tcp:ADDR:PORT",
            help="Where the destination takes the stream; port 0 is any free one. "
            "Default: the destination's QMP host; 127.0.0.1 for unix.",
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Wait so long for a destination that is only just being started to listen."
        ),
    ] = None,
    destination_pid: Annotated[
        int | None,
        typer.Option(
            metavar="PID", help="The destination's process on this machine, for fencing, if QMP is not unix."
        ),
    ] = None,
    fence_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Kills the destination where it runs; must exit 0 only when it is dead for certain.",
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CA that signed the monitors' TLS keys.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Our certificate, for tls: monitors.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Our key, for tls: monitors.")] = None,
    rescue: Annotated[
        bool,
        typer.Option(
            "--rescue",
            help="End what a migration left that nobody drives any more, from what both QEMUs show; leave out the end "
            "whose process is dead. Says what it will do, and asks.",
        ),
    ] = False,
    guest_at: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="With --rescue, where only a person can tell: source or destination, where the guest shall go on.",
        ),
    ] = None,
    run_state: Annotated[
        str | None,
        typer.Option(metavar="STATE", help="With --rescue: running or paused, what the guest shall be."),
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="The controller that marked a QEMU is dead for certain, though that cannot be seen from here.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --rescue: do it without asking.")] = False,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write samples and decisions there, for migrator replay."),
    ] = None,
    json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every step to standard error.")] = False,
) -> None:
    """Move one guest between two QMP sockets, or two libvirts: no service, no broker, no inventory.

    The source is the QEMU that the guest runs in; the destination is a fresh one, started with the same machine and
    '-S -incoming defer'. A guest of libvirt needs none: qemu:///system?guest=NAME is its source, and
    qemu+ssh://HOST/system its destination. It ends in one of two ways: the guest runs at the destination and the
    source has ended, or the guest is at the source as it was and the destination has ended. If this command itself is
    killed, run it again with the same two addresses: it finishes or undoes what it left.

    Exit codes: 0 done; 1 failed, the guest is where it was; 2 wrong use; 3 refused by preflight, nothing was changed;
    4 cancelled (Ctrl-C), the guest is where it was; 5 held, a person must look; 6 the guest ended by itself.
    """
    options = dict(locals())
    from migrator.cli.direct import main  # noqa: PLC0415 - quick --help
    from migrator.cli.direct_command import command_of  # noqa: PLC0415

    main(command_of(options))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What direct --record wrote.")],
    policy: Annotated[str, typer.Option(metavar="NAME", help="The policy to decide by.")],
    json: Json = False,
) -> None:
    """Show what another policy would have decided on a recorded run.

    The samples are those of the run as it was, so what is shown after the first decision that differs is what the
    policy would have done had the guest gone on in the same way.
    """
    from migrator.cli.replay import main  # noqa: PLC0415 - quick --help

    main(file, policy, json_output=json)


@app.command(short_help="Empty and fill a host on this machine, before your eyes.")
def demo(
    link: Annotated[str, typer.Option(metavar="RATE", help="Speed of each host's link.")] = "64MiB/s",
    libvirt: Annotated[
        bool, typer.Option("--libvirt", help="Two guests of libvirt on the same hosts beside them.")
    ] = False,
) -> None:
    """Build three hosts and seven guests on this machine, empty one host, fill it again, leave nothing behind.

    The hosts are network namespaces with links slowed to something one can watch; where that is not allowed (it takes
    root), they are directories that share the loopback interface. A real `migrator serve` does the work, and what is
    shown is what `migrator plan`, `evacuate --wait` and `restore --wait` show.
    """
    from migrator.cli.demo import main  # noqa: PLC0415 - quick --help

    main(link, libvirt=libvirt)


@app.command(short_help="Run the service until SIGTERM or Ctrl-C.")
def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="MIGRATOR_CONFIG", help="The configuration; see config/migrator.toml."
        ),
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Asked to stop, wait for every migration instead of parking it.")
    ] = False,
) -> None:
    """Run the service: HTTP, MQTT and metrics, as configured, until SIGTERM or Ctrl-C.

    Without --config it is /etc/migrator/migrator.toml. Asked to stop, it finishes what is past the switch and parks
    the rest so that nothing reaches the switch alone; started again, it goes on with all of it. SIGHUP reloads the
    configuration, all of it or nothing.
    """
    from migrator.cli.serving import serve as run  # noqa: PLC0415 - quick --help

    run(config, drain=drain)
