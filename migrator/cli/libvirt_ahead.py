"""Opens the libvirt daemons that ``migrator direct`` will need, while it still loads itself."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from migrator.cli.direct_command import Request
from migrator.cli.libvirt_address import parse
from migrator.errors import UsageError
from migrator.libvirt.opening import open_ahead

#: Connections to each: one to ask it by, and one for the call that moves the guest.
_CONNECTIONS = 2
#: Seconds after which a thread that computes lets another have its turn: what a daemon answers is not left lying.
_SWITCH_SECONDS = 0.0005


def open_daemons(request: Request) -> None:
    """Begin to open those that are this machine's; whatever is wrong is told by who needs them."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    for given in (request.source, request.destination):
        with contextlib.suppress(UsageError):
            address = parse(given or "")
            for path in () if address.host else address.daemon.sockets:
                if Path(path).is_socket():
                    open_ahead(address.daemon.uri(path), count=_CONNECTIONS)
                    break
