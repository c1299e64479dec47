"""Options and arguments of the commands that ask the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from migrator.cli import completion
from migrator.cli.output import OutputForm, without_kind
from migrator.errors import UsageError

if TYPE_CHECKING:
    from migrator.cli.client import ServiceClient

Form = Annotated[
    OutputForm | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FORM",
        help="table (default), wide (all columns), json, yaml, or name (guest/UUID, for the next command).",
    ),
]


def ask(
    action: Callable[[ServiceClient, OutputForm], Any],
    server: str | None,
    output: OutputForm | None = None,
    *,
    json: bool = False,
) -> None:
    """Carry out an action at the service, in the form of output that was asked for, and exit with its code.

    :param json: of ``--json``, which is short for one of the forms.
    :raise UsageError: both were given, and differ.
    """
    from migrator.cli import remote  # noqa: PLC0415 - quick --help

    if json and output not in (None, OutputForm.JSON):
        raise UsageError(f"--json and --output {output} contradict each other: give one")
    form = OutputForm.JSON if json else output or OutputForm.TABLE
    remote.run(lambda client: action(client, form), server, output=form)


Server = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="unix:PATH or https://HOST:PORT (with a token in MIGRATOR_TOKEN). Default: MIGRATOR_SERVER, "
        "else unix:/run/migrator/api.sock.",
    ),
]
Wait = Annotated[
    bool,
    typer.Option("--wait", help="Show it until it has ended; Ctrl-C leaves (130) and cancels nothing."),
]
Policy = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What may be done to move a guest; default: the guest's own.",
        autocompletion=completion.policies,
    ),
]
PolicyHome = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What may be done to move a guest; default: the one that it left by.",
        autocompletion=completion.policies,
    ),
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        metavar="CODE",
        help="Go on in spite of this finding; several with commas, or given again.",
    ),
]


def _one(value: str | None) -> str | None:
    """Take a guest or an id also as ``--output name`` prints it."""
    return value and without_kind(value)


def _host(value: str) -> str:
    """Take a host also as ``--output name`` prints it; no host has a slash in its name."""
    return value.removeprefix("host/")


Host = Annotated[str, typer.Argument(metavar="HOST", autocompletion=completion.hosts, callback=_host)]
Hosts = Annotated[
    list[str],
    typer.Argument(
        metavar="HOST...",
        autocompletion=completion.hosts,
        callback=lambda value: [_host(each) for each in value],
    ),
]
Guest = Annotated[
    str,
    typer.Argument(
        metavar="GUEST",
        help="Its uuid, its name, or HOST/NAME.",
        autocompletion=completion.guests,
        callback=_one,
    ),
]
PerhapsGuest = Annotated[
    str | None,
    typer.Argument(
        metavar="[GUEST]",
        help="Its uuid, its name, or HOST/NAME.",
        autocompletion=completion.guests,
        callback=_one,
    ),
]
SavedFile = Annotated[
    str, typer.Argument(metavar="FILE", help="Absolute path on the host; FILE.json is beside it.")
]
_OF_EITHER = (
    "Of a migration or an evacuation; or the guest, or the host, that it is about while it is under way."
)
_OF_A_MIGRATION = "Of a migration; or its guest."
Cancellable = Annotated[
    str, typer.Argument(metavar="ID", help=_OF_EITHER, autocompletion=completion.cancellable, callback=_one)
]
PerhapsUnderWay = Annotated[
    str | None,
    typer.Argument(metavar="[ID]", help=_OF_EITHER, autocompletion=completion.under_way, callback=_one),
]
OfService = Annotated[
    bool,
    typer.Option("--service", help="Show the controllers that share the journal: roles, leases, versions."),
]
ForPostcopy = Annotated[
    str,
    typer.Argument(metavar="ID", help=_OF_A_MIGRATION, autocompletion=completion.for_postcopy, callback=_one),
]
Held = Annotated[
    str, typer.Argument(metavar="ID", help=_OF_A_MIGRATION, autocompletion=completion.held, callback=_one)
]


def codes(given: list[str] | None) -> list[str]:
    """Return the codes of findings that were given, with commas or again and again."""
    return [code for codes in given or [] for code in codes.split(",") if code]
