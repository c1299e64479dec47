"""Options that several commands have, each with one name and one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: ``--config``: the service's configuration.
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar="MIGRATOR_CONFIG",
        readable=False,
        help="The service's configuration. Default: /etc/migrator/migrator.toml.",
    ),
]
#: ``--json``.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
