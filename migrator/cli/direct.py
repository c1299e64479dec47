"""``migrator direct``: one migration between two QMP sockets, or of a guest of libvirt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import NoReturn

from migrator import logs
from migrator.cli import Exit, collect_garbage
from migrator.cli.direct_command import DirectCommand, Request
from migrator.errors import MigratorError, QemuError, Refused, UsageError
from migrator.text import clean_lines


def main(command: DirectCommand) -> None:
    """Run it and exit with its code."""
    request, json_output = command.request, command.json
    logs.configure(verbose=command.verbose)
    try:
        code = asyncio.run(_direct(command))
    except (QemuError, Refused) as error:
        code = _refused(request, error, Exit.REFUSED, json_output=json_output)
    except MigratorError as error:
        code = _refused(request, error, Exit.USAGE, json_output=json_output)
    _leave(code)


def _leave(code: Exit) -> NoReturn:
    """End the process, without taking to pieces first what the system takes back at once."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # as one is that was closed before we began
                stream.flush()
    except OSError:
        sys.exit(code)  # which says what could not be written
    os._exit(code)


def _refused(request: Request, error: MigratorError, code: Exit, *, json_output: bool) -> Exit:
    print(f"migrator: {clean_lines(error)}", file=sys.stderr)
    if json_output:
        from migrator.cli.direct_policy import policy_of  # noqa: PLC0415 - see _direct
        from migrator.core.model import State  # noqa: PLC0415 - likewise
        from migrator.engine.migration.outcome import MigrationOutcome  # noqa: PLC0415 - likewise

        result = MigrationOutcome(id="", state=State.FAILED)
        with contextlib.suppress(
            UsageError
        ):  # else it is the policy that is refused, and there are no ceilings
            policy = policy_of(request)
            result.max_downtime_seconds = policy.max_downtime_seconds
            result.max_postcopy_stall_seconds = policy.max_postcopy_stall_seconds
        print(json.dumps(result.document() | {"error": str(error)}))
    return code


async def _direct(command: DirectCommand) -> Exit:
    """Load what the guest's kind takes, and no more: that is much of the time of a short move."""
    if command.request.names_libvirt:
        from migrator.cli import direct_libvirt  # noqa: PLC0415 - see above

        return await direct_libvirt.direct(command)
    from migrator.cli import direct_qmp  # noqa: PLC0415 - see above
    from migrator.cli.recording import Recorder  # noqa: PLC0415 - likewise
    from migrator.cli.show import Screen  # noqa: PLC0415 - likewise

    collect_garbage()
    with Recorder(command.record) as recorder:
        screen = Screen(quiet=command.json)
        return await direct_qmp.direct(command.request, screen, recorder, json_output=command.json)
