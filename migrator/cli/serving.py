"""``migrator serve``: runs the service, and says in one line why it cannot."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path

from migrator.cli import Exit
from migrator.errors import MigratorError, UsageError
from migrator.service.serve import serve as run
from migrator.settings import DEFAULT_PATH
from migrator.text import clean


def serve(config: Path | None, *, drain: bool) -> None:
    """Run the service until it is asked to stop, and exit."""
    gc.enable()
    path = config or DEFAULT_PATH
    try:
        asyncio.run(run(path, drain=drain))
    except* UsageError as errors:
        _say(errors)
        code = Exit.USAGE
    except* MigratorError as errors:
        _say(errors)
        code = Exit.FAILED
    else:
        code = Exit.DONE
    sys.exit(code)


def _say(errors: BaseExceptionGroup[MigratorError]) -> None:
    for error in errors.exceptions:
        for line in str(error).splitlines():
            print(f"migrator: {clean(line)}", file=sys.stderr)
