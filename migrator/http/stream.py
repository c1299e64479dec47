"""Events as they happen (server-sent events) and as they happened (JSON): first the journal, then live, none lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from migrator import logs
from migrator.api.commands import Name
from migrator.api.events import Event, EventDocument, Subject
from migrator.api.requests import Caller
from migrator.errors import JournalError
from migrator.http import query_routes
from migrator.http.dependencies import Dependencies, KnownCaller, dependencies, queries_of
from migrator.http.limited_queries import LimitedQueries
from migrator.ports import Grant
from migrator.ports.queries import Queries

router = APIRouter()

_PAGE = 500
#: Of events that are read from the journal at once, for a page and for one of many streams.
_PAGE_BYTES = 1 << 20
_STREAM_PAGE_BYTES = 128 * 1024
#: What an event is comes early in its JSON, before anything that others have said.
_KIND = re.compile(r'"kind": ?"([a-z-]{1,40})"')
#: Of a client that is slow, so much waits here; the rest in the queue of the bus, and what that drops in the journal.
_AHEAD_BYTES = 64 * 1024
_LARGEST_ID = 2**63 - 1

After = Annotated[
    int | None,
    Query(
        ge=0, le=_LARGEST_ID, description="Begin after the event of this id; 0 is all that the journal has."
    ),
]
LastEventId = Annotated[
    str | None, Header(description="What a browser sends when it connects again; stands in for `after`.")
]
_SSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A stream of events without end, or with `Accept: application/json` a page of past ones.",
        "content": {
            "text/event-stream": {"schema": {"type": "string"}},
            "application/json": {"schema": {"$ref": "#/components/schemas/EventPage"}},
        },
    }
}


class EventPage(BaseModel):
    """Journalled events, oldest first."""

    items: list[EventDocument]
    #: Give it as ``after`` for the next page; ``null``: there are no more now.
    next: int | None = None


@router.get("/events", tags=["events"], response_class=Response, responses=_SSE)
async def all_events(
    request: Request,
    caller: KnownCaller,
    after: After = None,
    last_event_id: LastEventId = None,
    subject: Subject | None = None,
    subject_id: Name | None = None,
    limit: Annotated[int, Query(ge=1, le=_PAGE, description="Of a page of JSON.")] = _PAGE,
    last: Annotated[
        int | None, Query(ge=1, le=_PAGE, description="In place of `after`: begin so many events before now.")
    ] = None,
) -> Response:
    """Events of everything, or of one `subject`; without `after` those from now on.

    Each has its id, but for `progress`, which is sent live only. A client that comes again with the last id it saw
    (`after` or `Last-Event-ID`) misses none.
    """
    begin = _begin(after, last_event_id)
    if begin is None and last is not None:
        begin = max(0, dependencies(request).queries.bus.last_event_id - last)
    return await _events(request, caller, begin, subject, subject_id, limit)


@router.get("/migrations/{id}/events", tags=["events"], response_class=Response, responses=_SSE)
async def migration_events(
    request: Request,
    id: query_routes.Identifier,  # noqa: A002 - its public name
    caller: KnownCaller,
    after: After = None,
    last_event_id: LastEventId = None,
    limit: Annotated[int, Query(ge=1, le=_PAGE, description="Of a page of JSON.")] = _PAGE,
) -> Response:
    """Events of one migration, from its first on."""
    await query_routes.migration(request, id, caller)
    begin = _begin(after, last_event_id)
    return await _events(request, caller, begin or 0, Subject.MIGRATION, id, limit)


def _begin(after: int | None, last_event_id: str | None) -> int | None:
    # What a browser saw last is newer than the address it was given at first.
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        return min(int(last_event_id[:19]), _LARGEST_ID)
    return after


async def _events(
    request: Request,
    caller: Caller,
    after: int | None,
    subject: Subject | None,
    subject_id: str | None,
    limit: int,
) -> Response:
    own, queries = dependencies(request), queries_of(request, caller)
    if "application/json" in request.headers.get("accept", ""):
        found = await queries.event_texts(
            after=after or 0, limit=limit, most_bytes=_PAGE_BYTES, subject=subject, subject_id=subject_id
        )
        following = found.last if found.more else "null"
        body = f'{{"items":[{",".join(text for _, text in found.items)}],"next":{following}}}'
        return Response(body, media_type="application/json")
    grant = getattr(request.state, "grant", None)
    held_by = grant.id if isinstance(grant, Grant) else ""
    return _Stream(own, caller.user, _follow(own, queries, after, subject, subject_id, held_by))


async def _follow(
    own: Dependencies,
    queries: Queries,
    after: int | None,
    subject: Subject | None,
    subject_id: str | None,
    grant: str,
) -> AsyncGenerator[bytes, None]:
    # What is told was journalled before. Only of a journal that cannot be written something is missing below: a gap in
    # the ids, as where an event was swept out of it.
    with queries.bus.listen(journalled=True) as listener:
        own.heed(listener, grant)
        try:
            # All later ones will be heard; those up to here are in the journal.
            heard_from = queries.bus.last_event_id
            last = heard_from if after is None else min(after, heard_from)
            yield b"retry: 1000\nid: %d\n\n" % last
            past = _journalled(own, queries, last, heard_from, subject, subject_id)
            async with aclosing(past):
                async for frame in past:
                    yield frame
            if own.closing():
                return  # perhaps amid the journal: what comes live must not hide what is still missing
            last = heard_from
            async for live in listener:
                if not live.has_number:
                    if await _wanted(queries, live, subject, subject_id):
                        yield _live_frame(live)
                    continue
                if live.event_id <= last:
                    continue
                # The queue is bounded: a client that was slow for long finds the oldest missing.
                missed = _journalled(own, queries, last, live.event_id - 1, subject, subject_id)
                async with aclosing(missed):
                    async for frame in missed:
                        yield frame
                if own.closing() and live.event_id > last + 1:
                    return
                last = live.event_id
                if await _wanted(queries, live, subject, subject_id):
                    yield _live_frame(live)
        finally:
            own.unheed(listener)


async def _journalled(
    own: Dependencies,
    queries: Queries,
    after: int,
    upto: int,
    subject: Subject | None,
    subject_id: str | None,
) -> AsyncGenerator[bytes, None]:
    """Frames of the events after `after` up to and with `upto`."""
    more = True
    while more and after < upto and not own.closing():
        page = await queries.event_texts(
            after=after, limit=_PAGE, most_bytes=_STREAM_PAGE_BYTES, subject=subject, subject_id=subject_id
        )
        more = page.more
        for number, text in page.items:
            if number > upto:
                return
            yield _frame(number, text)
        after = page.last


async def _wanted(queries: Queries, event: Event, subject: Subject | None, subject_id: str | None) -> bool:
    if subject not in (None, event.subject) or subject_id not in (None, event.subject_id):
        return False
    return not isinstance(queries, LimitedQueries) or await queries.shows(event)


def _live_frame(event: Event) -> bytes:
    counted = f"id: {event.event_id}\n" if event.has_number else ""
    return f"{counted}event: {event.kind}\ndata: {event.text}\n\n".encode()


def _frame(number: int, text: str) -> bytes:
    kind = _KIND.search(text)
    return f"id: {number}\nevent: {kind[1] if kind else 'message'}\ndata: {text}\n\n".encode()


# Not sse-starlette's response (3.7): it sends every event by itself, which takes four times the processor for a page of
# past ones; it has no bound in bytes on what is ready; its comments come however much is sent; and on import it puts a
# handler of its own into uvicorn's Server and looks twice a second whether that shall end.
class _Stream(Response):
    """Sends frames until they end or the client goes away; a comment when there is none for a while."""

    media_type = "text/event-stream"

    def __init__(self, own: Dependencies, user: str, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._own = own
        self._user = user
        self._frames = frames
        self._ready = bytearray()
        self._over = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        with self._own.streams.one(self._user):
            events = asyncio.create_task(self._collect(), name="stream's events")
            client = asyncio.create_task(self._await_end(receive), name="stream's client")
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                while not self._over or self._ready:
                    frames = await self._next()
                    await send({"type": "http.response.body", "body": frames, "more_body": True})
                if not client.done():
                    await events  # a fault in it is ours, and belongs into the log
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                for task in (events, client):
                    task.cancel()
                await asyncio.gather(events, client, return_exceptions=True)
                await self._frames.aclose()

    async def _next(self) -> bytes:
        """All that is ready; after a while without anything a comment."""
        try:
            async with asyncio.timeout(self._own.limits.heartbeat_seconds):
                await self._news.wait()
        except TimeoutError:
            return b": still here\n\n"
        frames = bytes(self._ready)
        self._ready.clear()
        self._room.set()
        if not self._over:
            self._news.clear()
        return frames

    async def _collect(self) -> None:
        try:
            async for frame in self._frames:
                self._ready += frame
                self._news.set()
                if len(self._ready) > _AHEAD_BYTES:
                    self._room.clear()
                    await self._room.wait()
        except JournalError as error:
            # The client comes again with the last id it saw, and finds out what is wrong.
            logs.logger(user=self._user).warning("stream ended", error=str(error))
        finally:
            self._over = True
            self._news.set()

    async def _await_end(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._ready.clear()
        self._over = True
        self._news.set()
