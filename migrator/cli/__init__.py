"""The command line. Each command's own module is imported only when it runs, so that ``--help`` stays quick."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """Exit codes, the same for every command."""

    #: Done.
    DONE = 0
    #: Failed; the guest is where it was.
    FAILED = 1
    #: Wrong use or configuration; nothing was changed.
    USAGE = 2
    #: Refused by preflight; nothing was changed.
    REFUSED = 3
    #: Cancelled; the guest is where it was.
    CANCELLED = 4
    #: A person must look; the output says where.
    HELD = 5
    #: The guest ended by itself.
    GUEST_ENDED = 6
    #: The service cannot be reached.
    UNREACHABLE = 7
    #: A plan with guests that cannot move; nothing was changed.
    STAY = 8


#: As a shell says it of a program that Ctrl-C ended.
INTERRUPTED = 130


def _program(arguments: list[str]) -> Callable[[], Any]:
    """Return what was typed, as something to be called."""
    from migrator.cli.direct_command import read_quickly  # noqa: PLC0415 - keeps `import migrator.cli` cheap

    if (command := read_quickly(arguments)) is not None:
        from migrator.cli.late_methods import compile_late  # noqa: PLC0415 - see above

        compile_late()
        if command.request.names_libvirt:
            from migrator.cli.libvirt_ahead import open_daemons  # noqa: PLC0415 - see above

            open_daemons(command.request)  # while all that follows is being loaded
        from migrator.cli import direct  # noqa: PLC0415 - see above

        return functools.partial(direct.main, command)
    from migrator.cli.app import app  # noqa: PLC0415 - see above

    return app


def collect_garbage() -> None:
    """Have Python look for garbage from now on, but not among what there is: all of that is needed to the end."""
    gc.freeze()
    gc.enable()


def main() -> None:
    """Entry point of the ``migrator`` command."""
    # Nothing that start-up makes is garbage, and looking for it takes a tenth of the start.
    gc.disable()
    try:
        program = _program(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    from migrator.errors import MigratorError  # noqa: PLC0415
    from migrator.text import clean, clean_lines  # noqa: PLC0415

    try:
        program()
    except KeyboardInterrupt:  # before the command listened to it: nothing has been begun
        sys.exit(INTERRUPTED)
    except MigratorError as error:
        from migrator.cli.show import print_line  # noqa: PLC0415 - see above

        for line in f"migrator: {clean_lines(error)}".splitlines():
            print_line(line, file=sys.stderr)
        sys.exit(Exit.USAGE)
    except BrokenPipeError:  # whoever read what we say has gone
        os._exit(Exit.FAILED)
    except Exception as error:
        if os.environ.get("MIGRATOR_DEBUG"):
            raise
        what = clean(f"{type(error).__name__}: {error}".splitlines()[0])
        print(
            f"migrator: internal error, {what}; if a migration was under way look at both QEMUs, then run the same "
            "command again: its record is kept. MIGRATOR_DEBUG=1 shows where it happened",
            file=sys.stderr,
        )
        sys.exit(Exit.HELD)
