"""The one test service behind its HTTP entrance, in a thread of its own: for typed commands, and for browsers.

::

    with in_thread(tmp_path) as service:
        begun = service.ask(Migrate(guest="db"))
        service.reaches(begun.id, State.PRECOPY)
        service.stop()                  # hosts, QEMUs and the journal are there all the time
        service.start()
        service.let_move()
        service.reaches(begun.id, State.COMPLETED)
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from starlette.types import Message, Receive, Scope, Send

from migrator.api.commands import Command, Migrate
from migrator.core.model import State
from migrator.http.limits import Limits
from migrator.testing.simulated_host import SimulatedGuest
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady
from tests.http_service import MemoryTokens, Place, serving, two_hosts
from tests.ports import free_port

_T = TypeVar("_T")
#: For a machine that does much else meanwhile.
LIMIT_SECONDS = 30.0


async def _awaited(what: Awaitable[_T]) -> _T:
    return await what


class ServiceThread:
    """A simulated service in a thread, so that a test may block; hosts and journal outlive a :meth:`stop`.

    :param made: makes its site, given a directory for records.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limits: Limits | None = None,
        made: Callable[[Path], SimulatedService] = two_hosts,
    ) -> None:
        self._directory = directory
        self._made = made
        self._limits = limits
        self.service: SimulatedService
        self.running: RunningEngine
        self.place: Place
        #: As in a journal: they outlive a service.
        self.tokens = MemoryTokens()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="service")
        self._stopping: asyncio.Event
        self._serving: Any = None
        self._port = 0

    def open(self) -> None:
        """Begin the thread, and the service in it."""
        self._thread.start()

        async def make() -> None:
            self.service = self._made(self._directory / "records")

        self._do(make(), 10)
        self.start()

    def close(self) -> None:
        """End the service and its thread."""
        try:
            if self._serving is not None:
                self.stop()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(15)
            assert not self._thread.is_alive(), "the thread of the service did not stop"
            self._loop.close()

    def start(self) -> None:
        """Begin the service, at the address that it had before, once it had one."""
        ready = threading.Event()
        self._serving = asyncio.run_coroutine_threadsafe(self._serve(ready), self._loop)
        while not ready.wait(0.05):
            if self._serving.done():
                self._serving.result()

    def stop(self) -> None:
        """End the service as a kill does: what is under way is taken up by the next."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        serving, self._serving = self._serving, None
        serving.result(15)

    async def _serve(self, ready: threading.Event) -> None:
        self._stopping = asyncio.Event()
        self._port = self._port or free_port()  # nobody else is given it between a stop and a start
        async with (
            self.service.running(killed=True) as self.running,
            serving(
                self.running.dispatcher,
                self.running.queries,
                self._directory,
                limits=self._limits,
                port=self._port,
                tokens=self.tokens,
            ) as self.place,
        ):
            ready.set()
            await self._stopping.wait()

    def _do(self, what: Any, seconds: float) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(seconds)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Be an application for a client that has a loop of its own, in another thread."""
        here = asyncio.get_running_loop()

        async def received() -> Message:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(receive()), here))

        async def sent(message: Message) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(send(message)), here))

        answered = self.place.app(scope, received, sent)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answered, self._loop))

    def do(self, action: Callable[[RunningEngine], Any]) -> Any:
        """Return what `action` does on the loop of the service, or what the coroutine that it returns does."""

        async def there() -> Any:
            found = action(self.running)
            return await found if inspect.isawaitable(found) else found

        return self._do(there(), 10)

    def ask(self, command: Command) -> Any:
        """Return the document with which an operator's command is answered.

        :raise Refusal: it is refused.
        """
        return self.do(lambda running: running.ask(command))

    def migration(self, identifier: str) -> Any:
        """Return a migration's document as it is now."""
        return self.do(lambda running: running.queries.migration(identifier))

    def active(self) -> list[Any]:
        """Return the documents of migrations that are under way."""
        return list(self.do(lambda running: running.queries.active_migrations()))

    def until(self, holds: Callable[[RunningEngine], Any], what: str) -> Any:
        """Return what `holds` returns once it is true, or of a coroutine that it returns."""
        end = time.monotonic() + LIMIT_SECONDS
        while not (found := self.do(holds)):
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.01)
        return found

    def reaches(self, identifier: str, *states: State) -> Any:
        """Return a migration's document once it is in one of these states."""

        async def there(running: RunningEngine) -> Any:
            found = await running.queries.migration(identifier)
            return found if found is not None and found.state in states else None

        return self.until(there, f"{identifier} in {', '.join(states)}")

    def guest(self, name: str) -> SimulatedGuest:
        """Return the first guest of that name, to change what it does."""
        return next(each for each in self.service.site.machines.values() if each.name == name)

    def prepare_slowly(self) -> None:
        """Keep in preparation whatever is begun from now on."""
        for host in self.service.site.hosts.values():
            host.start_seconds = 600.0

    def move_slowly(self, *names: str) -> None:
        """Keep guests in precopy that are begun from now on, until :meth:`let_move`.

        :param names: of these guests; all where there are none. One that writes nothing is at its switch at once,
            however slow its link: its memory is not sent.
        """
        for machine in self.service.site.machines.values():
            if not names or machine.name in names:
                machine.workload = steady(128 * MIB, 0.1 * MIB)
        self._links(1.0 * MIB)

    def moving_slowly(self, name: str = "db") -> Any:
        """Begin to move a guest from alpha to beta; return its document once it is in precopy, where it stays."""
        self.move_slowly(name)
        return self.reaches(self.ask(Migrate(guest=name, to="beta")).id, State.PRECOPY)

    def held(self, name: str = "db") -> Any:
        """Have a guest held whose source has died while it was copied; return its document."""
        begun = self.moving_slowly(name)
        self.kill_source(name)
        return self.reaches(begun.id, State.HELD)

    def let_move(self) -> None:
        """Let whatever is under way come to its end soon."""
        self._links(1000.0 * MIB)

    def _links(self, bytes_per_second: float) -> None:
        # The other direction is what a host's configuration says of its link.
        for host in self.service.site.hosts.values():
            host.into.bytes_per_second = bytes_per_second

    def kill_source(self, name: str, *, ended: bool = False) -> None:
        """End the process at the source while its guest moves: nobody can say what became of it.

        :param ended: it exits because its guest ends.
        """

        def kill(_: RunningEngine) -> None:
            stream = self.service.site.streams[self.guest(name).socket]
            next(end for end in stream.listeners if not end.is_destination).die(ended=ended)

        self.do(kill)


@contextlib.contextmanager
def in_thread(
    directory: Path, *, limits: Limits | None = None, made: Callable[[Path], SimulatedService] = two_hosts
) -> Iterator[ServiceThread]:
    """Serve while the block lasts; the service may be stopped and started in it.

    :param made: makes its site, given a directory for records.
    """
    service = ServiceThread(directory, limits=limits, made=made)
    service.open()
    try:
        yield service
    finally:
        service.close()
