"""The whole service as it is, but for its hosts and their QEMUs, which are simulated in real time."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from migrator import logs
from migrator.ports import ColdStarts
from migrator.service import driving
from migrator.service import serve as service
from migrator.site.connections import HostConnections
from migrator.site.saved_guests import SavedGuestFiles
from migrator.testing.simulated_site import SimulatedSite


class ServiceSite(SimulatedSite):
    """A site in the form in which the service makes its own."""

    def __init__(self) -> None:
        super().__init__()
        #: Hosts on which hooks are run: none.
        self.connections = HostConnections({})
        #: Files of guests that were saved: none.
        self.saved = SavedGuestFiles(self.connections)
        #: Nobody is started anew here.
        self.cold: ColdStarts | None = None

    def prepare(self, sections: object) -> Callable[[], None]:
        """Nothing of a configuration concerns what is simulated."""
        del sections
        return lambda: None


async def _nothing() -> None:
    pass


def _end_if_failed(measuring: asyncio.Task[None]) -> None:
    """End the process where the measurement itself has failed: its figures would be those of nothing."""
    if not measuring.cancelled() and (error := measuring.exception()) is not None:
        traceback.print_exception(error)
        os._exit(70)


def run(
    path: Path,
    populate: Callable[[SimulatedSite], None],
    *,
    beside: Callable[[], Coroutine[Any, Any, None]] = _nothing,
) -> None:
    """Serve until killed.

    :param path: the configuration; its hosts are those that `populate` makes.
    :param beside: runs on the same event loop, to measure it.
    """
    site = ServiceSite()
    populate(site)
    serve(path, lambda *_, **__: site, beside=beside)


def serve(
    path: Path,
    make_site: Callable[..., Any],
    *,
    beside: Callable[[], Coroutine[Any, Any, None]] = _nothing,
) -> None:
    """Serve until killed, with another site than the configuration's.

    :param make_site: takes the place of :func:`migrator.site.from_settings.make_site`.
    :param beside: runs on the same event loop, to measure it.
    """

    async def both() -> None:
        measuring = asyncio.create_task(beside(), name="measuring")
        measuring.add_done_callback(_end_if_failed)
        try:
            await service.serve(path)
        finally:
            measuring.cancel()

    logs.configure()
    # The one part that is not the service's own.
    for module in (service, driving):
        setattr(module, "make_site", make_site)  # noqa: B010 - it belongs to another module
    asyncio.run(both())
