"""Dependencies of the routes, and who asks: found by :func:`dependencies` and :data:`KnownCaller`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Annotated

from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.responses import Response

from migrator import __version__
from migrator.api.replies import Reply
from migrator.api.requests import Caller, Envelope
from migrator.api.service_documents import ServiceDocument
from migrator.errors import JournalError
from migrator.faults import keep_going
from migrator.http.access import Access
from migrator.http.limited_queries import LimitedQueries
from migrator.http.limits import Limits, Streams
from migrator.http.problems import ProblemError
from migrator.ports.commands import CommandExecutor
from migrator.ports.queries import Listener, Queries

#: Streams are looked after so often: a token may be revoked by another process.
_GRANTS_SECONDS = 0.5

#: A service that shares its journal with nobody.
ALONE = ServiceDocument(instance="", version=__version__, role="alone")
#: From the header Accept to the text and its media type.
Metrics = Callable[[str | None], Awaitable[tuple[bytes, str]]]


@dataclass(kw_only=True)
class Dependencies:
    """Parts of one application that its routes need; made by :func:`migrator.http.app.create_app`."""

    commands: CommandExecutor
    queries: Queries
    access: Access
    limits: Limits
    streams: Streams
    metrics: Metrics | None = None
    #: Why what drives migrations cannot be believed to live; empty while it can.
    why_silent: Callable[[], str] = str
    #: This controller, and those it shares the journal with.
    service: Callable[[], ServiceDocument] = lambda: ALONE
    #: By format: when the last scrape was begun, on the loop's clock, and what comes of it.
    scrapes: dict[str, tuple[float, asyncio.Future[tuple[bytes, str]]]] = field(default_factory=dict)
    #: Of every stream that goes on, by what it may: a grant's id; empty by the Unix socket.
    _listeners: dict[Listener, str] = field(default_factory=dict)
    _watch: asyncio.Task[None] | None = None
    _executing: set[asyncio.Task[Reply]] = field(default_factory=set)
    _closing: bool = False

    def closing(self) -> bool:
        """No stream shall go on."""
        return self._closing

    def heed(self, listener: Listener, grant: str = "") -> None:
        """A stream has begun to listen; :meth:`close` ends it, and so does the end of its grant, within a second."""
        self._listeners[listener] = grant
        if self._closing:
            listener.close()
        elif grant and (self._watch is None or self._watch.done()):
            self._watch = asyncio.create_task(
                keep_going("http grants of streams", self._watch_grants), name="http grants of streams"
            )

    async def _watch_grants(self) -> None:
        """Watch grants for as long as there are streams that somebody may end elsewhere."""
        while grants := {grant for grant in self._listeners.values() if grant}:
            try:
                holding = await self.access.tokens.holding(grants)
            except JournalError:
                holding = grants  # nobody knows better now
            for listener, grant in list(self._listeners.items()):
                if grant in grants and grant not in holding:
                    listener.close()
                    self._listeners[listener] = ""
            await asyncio.sleep(_GRANTS_SECONDS)

    def unheed(self, listener: Listener) -> None:
        """Forget a stream that has ended."""
        self._listeners.pop(listener, None)

    async def execute(self, envelope: Envelope) -> Reply:
        """Have a command carried out; it is carried to its end though the client goes away."""
        if self._closing:
            raise ProblemError(503, "closing", "the service is being stopped", headers={"Retry-After": "5"})
        task = asyncio.create_task(self.commands.execute(envelope), name=f"http {envelope.verb}")
        self._executing.add(task)
        task.add_done_callback(self._executing.discard)
        return await asyncio.shield(task)

    async def close(self, timeout: float = 5.0) -> None:
        """End every stream; give the commands that were begun `timeout` seconds to be answered."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        for listener in self._listeners:
            listener.close()
        if self._executing:
            await asyncio.wait(set(self._executing), timeout=timeout)


def dependencies(request: Request) -> Dependencies:
    """Return those of the application that `request` came to."""
    found = request.app.state.dependencies
    assert isinstance(found, Dependencies)
    return found


def queries_of(request: Request, caller: Caller) -> Queries:
    """Return what a caller may look at: all, or what is on the hosts that he is limited to."""
    found = dependencies(request).queries
    return found if caller.hosts is None else LimitedQueries(found, caller)


async def _known_caller(request: Request) -> Caller:
    return await dependencies(request).access.caller(request)


#: A parameter of a route that only known callers may use.
KnownCaller = Annotated[Caller, Depends(_known_caller)]


def answer(document: BaseModel, status: int = 200) -> Response:
    """`document` as JSON, as it is: it was validated when it was made."""
    return Response(document.model_dump_json(), status_code=status, media_type="application/json")


def answer_changed(request: Request, document: BaseModel) -> Response:
    """`document` as JSON with its ``ETag``; 304 and no body where the caller says that it has just that."""
    body = document.model_dump_json().encode()
    tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    asked = (each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(","))
    if tag in asked:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)
