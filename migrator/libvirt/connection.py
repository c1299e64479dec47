"""The connection to the libvirt daemon of one host: calls on threads, bounded in time; events on our loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from migrator import logs
from migrator.errors import CommandFailed, HostError, TimedOut, UsageError
from migrator.libvirt.binding import error_code, error_text, load
from migrator.libvirt.event_thread import run_events
from migrator.libvirt.opening import connect

_Result = TypeVar("_Result")

#: Seconds to open a connection.
_OPEN_SECONDS = 10.0
#: Calls at a time; those that wait for a daemon that does not answer are among them.
_MOST_CALLS = 16


@dataclass(frozen=True, kw_only=True)
class DomainEvent:
    """Something that libvirt announced of a guest, or that became of the connection. A hint, as all events."""

    #: ``lifecycle``, ``iteration``, ``job-completed``, ``block-job``, ``device-added``, ``device-removed``, ``reboot``,
    #: ``memory``; ``connected`` and ``lost`` are of the connection.
    kind: str
    uuid: str = ""
    #: libvirt's numbers.
    event: int = 0
    detail: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    #: Seconds on the controller's monotonic clock when it arrived.
    arrived: float = 0.0


class LibvirtConnection:
    """The libvirt daemon of one host; opened when first needed, and anew after it was lost.

    :param host: its name, for people.
    :param uris: returns the URIs to try, as seen from here, the first choice first; asked at each opening.
    """

    def __init__(self, host: str, uris: Callable[[], Awaitable[list[str]]]) -> None:
        self.host = host
        self._uris = uris
        self._connection: Any = None
        self._opening: asyncio.Task[Any] | None = None
        #: When that began, on the loop's clock: whoever comes later does not wait as long again.
        self._opening_since = 0.0
        self._calls = 0
        #: Calls that use a connection of libvirt, by its id, and those that are closed once nobody uses them: one that
        #: is closed during a call takes the process along.
        self._users: Counter[int] = Counter()
        #: One call at a time; of the connection that is open.
        self._lock = threading.Lock()
        #: Of the connection that is open, or was last.
        self.uri = ""
        self._lost: dict[int, Any] = {}
        self._subscribers: list[Callable[[DomainEvent], None]] = []
        self._log = logs.logger(host=host)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connected(self) -> bool:
        """Return whether it is open, as far as is known."""
        return self._connection is not None

    def subscribe(self, callback: Callable[[DomainEvent], None]) -> Callable[[], None]:
        """Have `callback` called on the event loop with each event; what is returned ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback) if callback in self._subscribers else None

    async def call(self, function: Callable[[Any], _Result], *, what: str, timeout: float = 10.0) -> _Result:
        """Return what `function` returns, called on a thread with libvirt's connection.

        :param what: is done, for a person.
        :raise HostError: the daemon is away or does not answer, or the binding is not installed.
        :raise CommandFailed: libvirt refused it, in its own words; it was not done.
        :raise TimedOut: it was not answered in time; it may still be done.
        """
        connection = await self.open()
        return await self._run(
            lambda: function(connection), what=what, timeout=timeout, connection=connection
        )

    async def begin(
        self, function: Callable[[Any, Any], _Result], *, what: str, other: LibvirtConnection | None
    ) -> asyncio.Future[_Result]:
        """Begin a call that takes long, and return at once; its outcome is as :meth:`call` has it, without a time-out.

        :param function: is given a connection to this daemon that it has for itself, and one to the other daemon.
        :raise HostError: a daemon is away.
        """
        await self.open()
        if other is not None:
            await other.open()
        uris = self.uri, other.uri if other is not None else None

        def begun() -> _Result:
            opened = [connect(uri) if uri is not None else None for uri in uris]
            try:
                return function(*opened)
            finally:
                for connection in opened:
                    if connection is not None:
                        self._drop_soon(connection)  # nobody waits for that

        return asyncio.create_task(self._run(begun, what=what, timeout=None), name=f"{what} at {self.host}")

    def _retain(self, connection: Any) -> None:
        """Have a connection of libvirt's not be closed before it was given to :meth:`_release`."""
        self._users[id(connection)] += 1

    def _release(self, connection: Any) -> None:
        """Close a connection if it was lost and nobody uses it any more."""
        key = id(connection)
        self._users[key] -= 1
        if self._users[key] > 0:
            return
        del self._users[key]
        if self._lost.pop(key, None) is not None:
            self._drop_soon(connection)

    async def open(self) -> Any:
        """Return libvirt's connection, opened where it is not; one opening at a time, whoever waits for it.

        :raise HostError: it cannot be opened, in libvirt's words.
        """
        if self._connection is not None:
            return self._connection
        if self._opening is None or self._opening.done():
            self._opening_since = asyncio.get_running_loop().time()
            self._opening = asyncio.create_task(self._open(), name=f"open libvirt at {self.host}")
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with asyncio.timeout_at(self._opening_since + _OPEN_SECONDS):
                return await asyncio.shield(self._opening)
        except TimeoutError:
            text = f"libvirt does not answer, for {_OPEN_SECONDS:g} s and longer"
            raise HostError(self.host, text) from None

    async def _open(self) -> Any:
        try:
            module = load()
            run_events()
        except UsageError as error:
            raise HostError(self.host, str(error)) from error
        self._loop = asyncio.get_running_loop()
        failure: HostError | None = None
        for uri in await self._uris():
            opening = functools.partial(self._opened, module, uri)
            try:
                connection: Any = await self._run(opening, what="connect", timeout=None)
            except CommandFailed as error:
                failure = failure or HostError(self.host, f"libvirt cannot be reached: {error.description}")
                continue
            self._connection, self.uri, self._lock = connection, uri, threading.Lock()
            self._tell(DomainEvent(kind="connected", arrived=time.monotonic()))
            return connection
        raise failure or HostError(self.host, "there is no socket of libvirt")

    def _opened(self, module: Any, uri: str) -> Any:
        """Return an open connection; on a thread."""
        connection = connect(uri)
        connection.registerCloseCallback(self._closed, None)
        for name, kind, take in _EVENTS:
            number = getattr(module, f"VIR_DOMAIN_EVENT_ID_{name}", None)
            if number is None:
                continue
            with contextlib.suppress(module.libvirtError):  # this daemon does not announce that
                connection.domainEventRegisterAny(None, number, self._hearer(kind, take), None)
        return connection

    async def close(self) -> None:
        """Let go of it; the daemon and its guests are left alone."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        connection, self._connection = self._connection, None
        if connection is not None and self._users[id(connection)]:
            self._lost[id(connection)] = connection
        elif connection is not None:
            with contextlib.suppress(CommandFailed, HostError, TimedOut):
                await self._run(connection.close, what="close", timeout=1.0)

    # --- calls -------------------------------------------------------------------------------------------------------

    async def _run(
        self,
        function: Callable[[], _Result],
        *,
        what: str,
        timeout: float | None,
        connection: Any = None,
    ) -> _Result:
        if self._calls >= _MOST_CALLS:
            raise HostError(self.host, f"libvirt does not answer: {self._calls} calls wait for it")
        module, loop = load(), asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        future.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # nobody may wait any more
        self._calls += 1
        # libvirt 9.0 crashes, now and then, where several threads wait for answers over one connection.
        lock = contextlib.nullcontext() if connection is None else self._lock
        if connection is not None:
            self._retain(connection)

        def done(result: Any, error: BaseException | None) -> None:
            self._calls -= 1
            if connection is not None:
                self._release(connection)
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def work() -> None:
            result, failure = None, None
            try:
                with lock:
                    result = function()
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where it was called
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(done, result, failure)

        threading.Thread(target=work, name=f"libvirt {self.host}: {what}", daemon=True).start()
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(future)
        except TimeoutError:
            raise TimedOut(f"libvirt at {self.host}", what, timeout or 0.0) from None
        except module.libvirtError as error:
            raise self._failed(error, what, connection) from error

    def _failed(self, error: Any, what: str, connection: Any) -> HostError | CommandFailed:
        if connection is not None and not self._is_alive(connection):
            self._lose(connection)
            return HostError(self.host, f"the connection to libvirt was lost: {error_text(error)}")
        return CommandFailed(f"libvirt at {self.host}", what, error_code(error), error_text(error))

    def _is_alive(self, connection: Any) -> bool:
        try:
            return bool(connection.isAlive())
        except load().libvirtError:
            return False

    # --- events ------------------------------------------------------------------------------------------------------

    def _hearer(self, kind: str, take: Callable[..., Mapping[str, Any]]) -> Callable[..., None]:
        """Return a callback for libvirt, called on its thread."""

        def hear(_: Any, domain: Any, *arguments: Any) -> None:
            known = take(*arguments)
            event = DomainEvent(
                kind=kind,
                uuid=domain.UUIDString(),
                event=int(known.get("event", 0)),
                detail=int(known.get("detail", 0)),
                data=known,
                arrived=time.monotonic(),
            )
            self._soon(lambda: self._tell(event))

        return hear

    def _closed(self, connection: Any, *_: Any) -> None:
        """Hear from libvirt, on its thread, that a connection is closed."""
        self._soon(lambda: self._lose(connection))

    def _soon(self, function: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(function)

    def _lose(self, connection: Any) -> None:
        if self._connection is None or self._connection is not connection:
            return
        self._connection = None
        if self._users[id(connection)]:
            self._lost[id(connection)] = connection
        else:
            self._drop_soon(connection)
        self._log.warning("the connection to libvirt was lost")
        self._tell(DomainEvent(kind="lost", arrived=time.monotonic()))

    def _drop_soon(self, connection: Any) -> None:
        threading.Thread(
            target=self._drop, args=(connection,), name=f"libvirt {self.host}", daemon=True
        ).start()

    def _drop(self, connection: Any) -> None:
        """Close a connection that nobody uses any more; on a thread."""
        with contextlib.suppress(load().libvirtError):
            connection.close()

    def _tell(self, event: DomainEvent) -> None:
        for subscriber in list(self._subscribers):
            subscriber(event)


def _numbers(event: int, detail: int, *_: Any) -> Mapping[str, Any]:
    return {"event": event, "detail": detail}


def _nothing(*_: Any) -> Mapping[str, Any]:
    return {}


#: libvirt's events by their names, what we call each, and what of its arguments is kept.
_EVENTS: tuple[tuple[str, str, Callable[..., Mapping[str, Any]]], ...] = (
    ("LIFECYCLE", "lifecycle", _numbers),
    ("REBOOT", "reboot", _nothing),
    ("BALLOON_CHANGE", "memory", _nothing),
    ("DEVICE_ADDED", "device-added", _nothing),
    ("DEVICE_REMOVED", "device-removed", _nothing),
    ("BLOCK_JOB_2", "block-job", lambda disk, kind, status, *_: {"disk": disk, "detail": status}),
    ("MIGRATION_ITERATION", "iteration", lambda iteration, *_: {"detail": iteration}),
    ("JOB_COMPLETED", "job-completed", lambda stats, *_: {"stats": stats}),
)
