"""Limits of one caller: bytes, time, requests a second, streams."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from migrator import logs
from migrator.http import problems
from migrator.http.admission import network_of
from migrator.http.problems import ProblemError
from migrator.http.wellformed import require_well_formed
from migrator.ports import Grant
from migrator.settings.models import HttpSettings

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
#: Callers whose rate is remembered; the one that asked longest ago goes first.
_CALLERS = 4096
_SOON = timedelta(days=14)
#: What holds where nothing is configured.
_UNSAID = HttpSettings()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one entrance: those that ``[http]`` sets, and others that nobody has had to."""

    #: Of a request's line and headers together.
    head_bytes: int = 32 * 1024
    #: Names under which this service may be asked over TCP, beside addresses and ``localhost``; in lower case.
    hosts: frozenset[str] = frozenset()
    #: Requests that are being answered at a time: of all callers and of one address. Streams are counted apart.
    in_flight: int = 128
    in_flight_per_address: int = 32
    #: Of a request's body; the largest command is a list of findings to accept.
    body_bytes: int = _UNSAID.max_body
    #: For a body to arrive in.
    body_seconds: float = 10.0
    #: Until an answer has begun. A preflight looks at two hosts, each within 30 s.
    request_seconds: float = _UNSAID.request_timeout
    #: For a client to take what it was sent; a slower one is let go.
    send_seconds: float = 30.0
    #: Of one caller, on average and at once.
    requests_per_second: float = _UNSAID.requests_per_second
    burst: int = _UNSAID.burst
    #: Streams of events at a time: of all callers and of one.
    streams: int = _UNSAID.streams
    streams_per_caller: int = _UNSAID.streams_per_caller
    #: A stream with nothing to say says that it is alive this often, in seconds.
    heartbeat_seconds: float = 15.0

    @classmethod
    def of(cls, http: HttpSettings, *, hosts: frozenset[str] = frozenset()) -> Limits:
        """Return what the section says.

        :param hosts: see :attr:`hosts`.
        """
        return cls(
            requests_per_second=http.requests_per_second,
            burst=http.burst,
            streams=http.streams,
            streams_per_caller=http.streams_per_caller,
            body_bytes=http.max_body,
            request_seconds=http.request_timeout,
            hosts=hosts,
        )


class Rates:
    """A bucket of tokens for every caller."""

    def __init__(self, *, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str, *, cost: float = 1.0, what: str = "requests") -> None:
        """Count one request.

        :param what: are too many then, in words.

        :raise ProblemError: 429, with ``Retry-After``, when it is one too many.
        """
        now = self._clock()
        left, at = self._buckets.pop(who, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._per_second)
        enough = left >= cost
        self._buckets[who] = (left - cost if enough else left, now)
        while len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        if not enough:
            wait = max(1, round((cost - left) / self._per_second + 0.5))
            raise ProblemError(
                429,
                "too-many-requests",
                f"too many {what} (http.requests_per_second is {self._per_second:g}); ask again in {wait} s",
                headers={"Retry-After": str(wait)},
            )


@dataclass
class Streams:
    """Counts the streams that are open."""

    limits: Limits
    _open: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def one(self, user: str) -> Iterator[None]:
        """Room for one more of `user`.

        :raise ProblemError: 429 or 503 when there is none.
        """
        if self._open[user] >= self.limits.streams_per_caller:
            raise ProblemError(
                429,
                "too-many-streams",
                f"{user} has {self._open[user]} streams open (http.streams_per_caller); close one",
                headers={"Retry-After": "5"},
            )
        if self._open.total() >= self.limits.streams:
            raise ProblemError(
                503,
                "too-many-streams",
                "too many streams are open (http.streams); ask again later",
                headers={"Retry-After": "5"},
            )
        self._open[user] += 1
        try:
            yield
        finally:
            self._open[user] -= 1
            self._open += Counter()  # drops those at 0


class InFlight:
    """Counts the requests that are being answered."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: Counter[str] = Counter()

    def begin(self, address: str) -> Callable[[], None]:
        """Room for one more of an address; what is returned gives it back, once.

        :raise ProblemError: 429 or 503 when there is none.
        """
        soon = {"Retry-After": "1"}
        if self._open[address] >= self._limits.in_flight_per_address:
            raise ProblemError(
                429, "too-many-requests", "too many requests of this address are being answered", headers=soon
            )
        if self._open.total() >= self._limits.in_flight:
            raise ProblemError(503, "busy", "too many requests are being answered; ask again", headers=soon)
        self._open[address] += 1
        counted = True

        def end() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._open[address] -= 1
                if not self._open[address]:
                    del self._open[address]

        return end


class LimitsMiddleware:
    """Stands before the application: request ids, sizes, times, headers that browsers heed."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._in_flight = InFlight(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        stamped = self._stamped(send, scope, request_id)

        async def refuse(error: ProblemError) -> None:
            answer = problems.response(
                error.status, error.code, str(error), request_id=request_id, headers=error.headers
            )
            await answer(scope, receive, stamped)

        try:
            require_well_formed(
                scope,
                head_bytes=self._limits.head_bytes,
                hosts=self._limits.hosts,
                any_host=scope["state"].get("entrance") == "unix",
            )
            ended = self._in_flight.begin(network_of(scope["client"][0] if scope.get("client") else ""))
        except ProblemError as error:
            await refuse(error)
            return
        try:
            body = await self._body(scope, receive)
            if body is not None:  # else the client went away
                await self._answer(scope, _again(body, receive), stamped, refuse, ended)
        except ProblemError as error:
            await refuse(error)
        finally:
            ended()

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        stamped: Send,
        refuse: Callable[[ProblemError], Awaitable[None]],
        ended: Callable[[], None],
    ) -> None:
        begun = False
        try:
            async with asyncio.timeout(self._limits.request_seconds) as until_answer:

                async def answering(message: Message) -> None:
                    nonlocal begun
                    begun = True
                    until_answer.reschedule(None)
                    if message["type"] == "http.response.start" and _is_stream(message):
                        ended()
                    await stamped(message)

                await _as_asked(self._app, scope, receive, answering)
        except TimeoutError:
            logs.logger(request=scope["state"]["request_id"]).warning(
                "request took too long", path=scope["path"][:200]
            )
            if begun:
                return  # a client that does not take its answer is let go
            await refuse(
                ProblemError(
                    504,
                    "too-slow",
                    f"no answer within {self._limits.request_seconds:g} s (http.request_timeout); a command may have "
                    "been begun: repeat it with the same Idempotency-Key to learn its answer",
                )
            )

    def _stamped(self, send: Send, scope: Scope, request_id: str) -> Send:
        more = (_HSTS,) if scope.get("scheme") == "https" else ()

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = ((b"x-request-id", request_id.encode()), *_HEADERS, *more)
                if (moment := ends_soon(scope["state"].get("grant"))) is not None:
                    own = (*own, (b"migrator-token-ends", moment.isoformat().encode()))
                message["headers"] = [*message.get("headers", []), *own]
            async with asyncio.timeout(self._limits.send_seconds):
                await send(message)

        return stamped

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        most = self._limits.body_bytes
        too_large = ProblemError(413, "too-large", f"the body is larger than {most} bytes (http.max_body)")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ProblemError(
                408, "too-slow", f"the body did not arrive within {self._limits.body_seconds:g} s"
            ) from None


def ends_soon(grant: object) -> datetime | None:
    """When a grant ends, if that is soon: whoever uses it is told, and has time to make another."""
    if not isinstance(grant, Grant) or grant.ends_at is None or not grant.id.startswith("token "):
        return None
    return grant.ends_at if grant.ends_at - datetime.now(UTC) < _SOON else None


async def _as_asked(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let the application answer; ``HEAD`` is ``GET`` without the content, also where that would never end."""
    if scope["method"] != "HEAD":
        await app(scope, receive, send)
        return
    over = asyncio.Event()

    async def only_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            over.set()

    async def answer() -> None:
        await app({**scope, "method": "GET"}, receive, only_head)

    answering = asyncio.create_task(answer(), name="answer to HEAD")
    ended = asyncio.create_task(over.wait(), name="head of an answer")
    try:
        await asyncio.wait({answering, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
        answering.cancel()
        await asyncio.gather(answering, ended, return_exceptions=True)
    if not over.is_set():
        await answering  # it failed before it began to answer


def _is_stream(message: Message) -> bool:
    return (b"content-type", b"text/event-stream; charset=utf-8") in message["headers"]


def _given_id(scope: Scope) -> str | None:
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else None


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def once_more() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return once_more


#: A browser that has come by TLS once takes no other way for a year.
_HSTS = (b"strict-transport-security", b"max-age=31536000")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
