"""Options and arguments of the commands that ask the service."""

from __future__ import annotations

from typing import Annotated

import typer

from migrator.cli import completion
from migrator.cli.output import OutputForm
from migrator.errors import UsageError

Form = Annotated[
    OutputForm | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FORM",
        help="table (default), wide (all columns), json, yaml, or name (guest/UUID, for the next command).",
    ),
]


def chosen(output: OutputForm | None, *, json: bool) -> OutputForm:
    """Return the form that was asked for; ``--json`` is short for one of them.

    :raise UsageError: both were given, and differ.
    """
    if json and output not in (None, OutputForm.JSON):
        raise UsageError(f"--json and --output {output} contradict each other: give one")
    return OutputForm.JSON if json else output or OutputForm.TABLE


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
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        metavar="CODE",
        help="Go on in spite of this finding; several with commas, or given again.",
    ),
]
Host = Annotated[str, typer.Argument(metavar="HOST", autocompletion=completion.hosts)]
Guest = Annotated[
    str,
    typer.Argument(
        metavar="GUEST", help="Its uuid, its name, or HOST/NAME.", autocompletion=completion.guests
    ),
]
PerhapsGuest = Annotated[
    str | None,
    typer.Argument(
        metavar="[GUEST]", help="Its uuid, its name, or HOST/NAME.", autocompletion=completion.guests
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
    str, typer.Argument(metavar="ID", help=_OF_EITHER, autocompletion=completion.cancellable)
]
PerhapsUnderWay = Annotated[
    str | None, typer.Argument(metavar="[ID]", help=_OF_EITHER, autocompletion=completion.under_way)
]
OfService = Annotated[
    bool,
    typer.Option("--service", help="Show the controllers that share the journal: roles, leases, versions."),
]
ForPostcopy = Annotated[
    str, typer.Argument(metavar="ID", help=_OF_A_MIGRATION, autocompletion=completion.for_postcopy)
]
Held = Annotated[str, typer.Argument(metavar="ID", help=_OF_A_MIGRATION, autocompletion=completion.held)]


def codes(given: list[str] | None) -> list[str]:
    """Return the codes of findings that were given, with commas or again and again."""
    return [code for codes in given or [] for code in codes.split(",") if code]
