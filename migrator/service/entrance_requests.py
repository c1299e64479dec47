"""Requests of the process that answers to the one that drives migrations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from pydantic import TypeAdapter

from migrator.api.replies import Reply
from migrator.api.requests import CommandKey, Envelope
from migrator.metrics import Metrics
from migrator.ports import Grant
from migrator.replica.publisher import Publisher
from migrator.replica.requests import Handler

ENVELOPE, GRANT = TypeAdapter(Envelope), TypeAdapter(Grant)
#: Value of the journal itself: number of an event that was published by MQTT, with all before it.
PUBLISHED = "mqtt_published"


class CommandDispatch(Protocol):
    """Carries commands out; the engine's dispatcher is one."""

    async def execute(self, envelope: Envelope) -> Reply: ...
    async def keep_outcome(self, *, key: CommandKey, reply: Reply, told: bool = True) -> None: ...


class JournalMeta(Protocol):
    """Keeps values of the journal itself."""

    async def keep_meta(self, key: str, value: str) -> None: ...


class Hosts(Protocol):
    """Looks at hosts."""

    async def refresh(self, host: str | None = None) -> None: ...


class SampleFlusher(Protocol):
    """Writes figures of migrations, those of the last second too."""

    async def flush(self) -> None: ...


class PageSessions(Protocol):
    """Writes sessions of the page."""

    async def begin_session(self, token: Grant, *, seconds: float) -> tuple[str, Grant]: ...
    async def end_session(self, secret: str) -> None: ...


class Shared:
    """Does something for all who ask at about the same time: each waits for one that was begun after it asked.

    :param pause_seconds: at least, from the beginning of one to the beginning of the next.
    """

    def __init__(self, work: Callable[[], Awaitable[None]], *, pause_seconds: float = 0.2) -> None:
        self._work, self._pause = work, pause_seconds
        self._due = 0.0
        self._waiting: asyncio.Future[None] | None = None
        self._running = asyncio.Lock()

    async def __call__(self) -> None:
        """Return once it has been done, or raise what it raised."""
        if self._waiting is None:
            self._waiting = asyncio.ensure_future(self._next())
        await asyncio.shield(self._waiting)

    async def _next(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._running:
            await asyncio.sleep(max(0.0, self._due - loop.time()))
            self._due = loop.time() + self._pause
            self._waiting = None
            await self._work()


def handlers(
    *,
    commands: CommandDispatch,
    hosts: Hosts,
    sessions: PageSessions,
    samples: SampleFlusher,
    meta: JournalMeta,
    metrics: Metrics,
    publisher: Publisher,
) -> dict[str, Handler]:
    """Return what carries out each request. Whoever has its reply also finds what it changed."""

    async def execute(asked: Mapping[str, Any]) -> Any:
        reply = await commands.execute(ENVELOPE.validate_python(asked["envelope"]))
        await publisher.flush()
        return reply.model_dump(mode="json")

    async def refresh(asked: Mapping[str, Any]) -> Any:
        await hosts.refresh(asked["host"])
        await publisher.flush()

    flush = Shared(samples.flush)

    async def flush_samples(_: Mapping[str, Any]) -> Any:
        await flush()

    async def begin_session(asked: Mapping[str, Any]) -> Any:
        token = GRANT.validate_python(asked["token"])
        secret, grant = await sessions.begin_session(token, seconds=asked["seconds"])
        return secret, GRANT.dump_python(grant, mode="json")

    async def end_session(asked: Mapping[str, Any]) -> Any:
        await sessions.end_session(asked["secret"])

    async def keep_outcome(asked: Mapping[str, Any]) -> Any:
        key, reply = CommandKey(asked["user"], asked["id"]), Reply.model_validate(asked["reply"])
        await commands.keep_outcome(key=key, reply=reply, told=asked["told"])

    async def note_mqtt(asked: Mapping[str, Any]) -> Any:
        for verb, number in asked["refused"].items():
            metrics.command("mqtt", verb, "refused", number)
        metrics.mqtt_sessions_taken(asked["taken"])
        metrics.mqtt_dropped(asked["dropped"])
        if asked["published"] is not None:
            await meta.keep_meta(PUBLISHED, str(asked["published"]))

    async def counts(asked: Mapping[str, Any]) -> Any:
        return (await metrics.counts(asked["accept"])).as_json()

    return {
        "execute": execute,
        "refresh": refresh,
        "flush_samples": flush_samples,
        "begin_session": begin_session,
        "end_session": end_session,
        "keep_outcome": keep_outcome,
        "note_mqtt": note_mqtt,
        "metrics": counts,
    }
