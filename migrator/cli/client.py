"""Client of the service for the command line: over its Unix socket, or a URL with a token."""

from __future__ import annotations

import ipaddress
import json
import os
import ssl
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from migrator import addresses
from migrator.addresses import SERVICE_SOCKET
from migrator.api.trace_context import TRACEPARENT, TRACESTATE
from migrator.errors import MigratorError, UsageError
from migrator.text import clean

#: A preflight looks at two hosts.
_ANSWER_SECONDS = 70.0
#: What is only read is known, or nobody is there to tell it: a person waits for it.
_READ_SECONDS = 15.0
_CONNECT_SECONDS = 5.0
#: A command whose answer got lost is asked for again this long: the service may be restarting.
_AGAIN_SECONDS = 10.0
#: The service says that it lives every 15 s.
_SILENCE_SECONDS = 40.0
#: While the service is away, a wait goes on this long.
AWAY_SECONDS = 600.0
_LONGEST_PAUSE = 2.0
#: Paths that are posted to and change nothing.
_ASKING = ("plans", "checks")

Document = dict[str, Any]


class NotReachable(MigratorError):
    """The service did not answer; the text says how to start it."""


class Rejected(MigratorError):
    """The service refused.

    :ivar code: of the problem.
    :ivar findings: of preflight.
    """

    def __init__(self, status: int, code: str, message: str, findings: list[Document]) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.findings = findings


class ServiceClient:
    """Client of one service.

    :param server: ``unix:PATH``, ``http://…`` or ``https://…``; ``None``: ``MIGRATOR_SERVER``, or the usual socket.
    :param timeout_seconds: for an answer.
    :param again_seconds: a command whose answer got lost is sent again for so long.
    :raise UsageError: when that is no address, or would send the token for all to read.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        timeout_seconds: float = _ANSWER_SECONDS,
        again_seconds: float = _AGAIN_SECONDS,
    ) -> None:
        self._again_seconds = again_seconds
        self.where = server or os.environ.get("MIGRATOR_SERVER") or f"unix:{SERVICE_SOCKET}"
        token = os.environ.get("MIGRATOR_TOKEN")
        headers = {"User-Agent": "migrator"}
        transport = None
        if self.where.startswith("unix:"):
            # No TLS there: nothing to verify, and to load all authorities takes a while.
            transport = httpx2.HTTPTransport(uds=self.where.removeprefix("unix:"), verify=False)
            base = "http://migrator"
        else:
            base = _url(self.where)
        if token:
            if not token.isascii() or not token.isprintable():
                raise UsageError("MIGRATOR_TOKEN has characters that no token has")
            headers["Authorization"] = f"Bearer {token}"
        self._warned = False
        connect = min(_CONNECT_SECONDS, timeout_seconds)
        self._reading = httpx2.Timeout(min(_READ_SECONDS, timeout_seconds), connect=connect)
        self._http = httpx2.Client(
            base_url=f"{base}/api/v1/",
            transport=transport,
            headers=headers,
            timeout=httpx2.Timeout(timeout_seconds, connect=connect),
            verify=ssl.create_default_context() if base.startswith("https") else False,
            trust_env=False,
        )

    def _said(self, answer: httpx2.Response) -> Document:
        ends = answer.headers.get("migrator-token-ends")
        if ends and not self._warned:
            self._warned = True
            print(
                f"migrator: your token ends at {clean(ends)[:40]}; make another with: migrator token create",
                file=sys.stderr,
            )
        return _document(answer)

    def get(self, path: str, **query: Any) -> Document:
        """Return the document at `path`.

        :raise NotReachable: nobody answered.
        :raise Rejected: the service answered with a problem.
        """
        given = {key: value for key, value in query.items() if value is not None}
        headers = {"Accept": "application/json"}
        try:
            return self._said(self._http.get(path, params=given, headers=headers, timeout=self._reading))
        except httpx2.TransportError as error:
            raise self._away(error) from error

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Document:
        """Give a command, once: it is sent again under the same id when the answer got lost.

        :raise NotReachable: nobody answered; where the connection stood it may have been begun, and the text says so.
        :raise Rejected: the service answered with a problem; nothing was begun.
        """
        given = {key: value for key, value in (body or {}).items() if value is not None}
        headers = {"Idempotency-Key": str(uuid.uuid4()), **_trace()}
        until = time.monotonic() + self._again_seconds
        sent = False
        while True:
            try:
                return self._said(self._http.post(path, json=given, headers=headers))
            except httpx2.TransportError as error:
                sent = sent or not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                if not sent:
                    raise self._away(error) from error
                if time.monotonic() > until:
                    taken = (
                        ""
                        if path in _ASKING
                        else "; it may have taken the command: look with migrator status"
                    )
                    raise NotReachable(f"{self._away(error)}{taken}") from error
                time.sleep(0.2)

    def events(self, path: str = "events", *, after: int | None = None) -> Iterator[Document]:
        """Yield events as they happen, over as many connections as it takes; each is given once, but for progress.

        ``{"kind": "connected"}`` comes whenever the stream stands (anew), ``{"kind": "lost"}`` when it broke.

        :raise NotReachable: when the service stays away for :data:`AWAY_SECONDS`.
        :raise Rejected: the service answered with a problem that does not pass by itself.
        """
        lost_at: float | None = None
        pause = 0.1
        while True:
            try:
                for event in self._stream(path, after):
                    if event["kind"] == "connected":
                        lost_at, pause = None, 0.1
                    after = event.pop("_last", after)
                    if event["kind"] != "position":
                        yield event
            except httpx2.TransportError as error:
                if lost_at is None:
                    lost_at = time.monotonic()
                    yield {"kind": "lost", "reason": str(self._away(error))}
                elif time.monotonic() - lost_at > AWAY_SECONDS:
                    raise self._away(error) from error
            except Rejected as error:
                if error.status not in (429, 503):
                    raise
                if lost_at is None:
                    lost_at = time.monotonic()
                    yield {"kind": "lost", "reason": str(error)}
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    def last_event_id(self) -> int:
        """Return the id of the last event there is."""
        try:
            for event in self._stream("events", None):
                if "_last" in event:
                    return int(event["_last"])
        except httpx2.TransportError as error:
            raise self._away(error) from error
        return 0

    def _stream(self, path: str, after: int | None) -> Iterator[Document]:
        timeout = httpx2.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS)
        query = {} if after is None else {"after": after}
        headers = {"Accept": "text/event-stream"}
        with self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as answer:
            if answer.status_code != httpx2.codes.OK:
                answer.read()
                _document(answer)
            yield {"kind": "connected"}
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                    continue
                found: Document = json.loads(fields["data"]) if "data" in fields else {"kind": "position"}
                if "id" in fields:
                    found["_last"] = int(fields["id"])
                fields = {}
                yield found
        raise httpx2.RemoteProtocolError("the service ended the stream")

    def _away(self, error: Exception) -> NotReachable:
        if isinstance(error, httpx2.ReadTimeout):
            return NotReachable(
                f"the service at {self.where.removeprefix('unix:')} takes connections but gives no answer: it is busy "
                "or stuck; see journalctl -u migrator"
            )
        if self.where.startswith("unix:"):
            path = self.where.removeprefix("unix:")
            if "Permission denied" in str(error):
                return NotReachable(
                    f"you may not open {path}; ask to be added to the group that owns it (ls -l {path})"
                )
            how = "start it with: systemctl start migrator (or: migrator serve --config FILE)"
            return NotReachable(f"the service does not answer at {path}; {how}")
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return NotReachable(
                f"the certificate at {self.where} is not to be trusted ({_first_line(error)}); "
                "name the file with its CA in SSL_CERT_FILE"
            )
        return NotReachable(
            f"the service does not answer at {self.where} ({_first_line(error)}); start it there "
            "(systemctl start migrator), or name another with --server or MIGRATOR_SERVER"
        )


def segment(identifier: str) -> str:
    """Return `identifier` as a part of a path."""
    return quote(identifier, safe="")


def _trace() -> dict[str, str]:
    """Return the trace that this command is part of, as tools that begin others pass it on: in variables."""
    found = {name: os.environ.get(name.upper(), "") for name in (TRACEPARENT, TRACESTATE)}
    return {name: value for name, value in found.items() if value and value.isascii() and value.isprintable()}


def _document(answer: httpx2.Response) -> Document:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Rejected(
            answer.status_code,
            "odd",
            f"what answered (status {answer.status_code}) is not migrator's service",
            [],
        )
    if answer.is_error:
        message = str(found.get("detail", f"status {answer.status_code}"))
        if answer.status_code == httpx2.codes.UNAUTHORIZED:
            message += " (MIGRATOR_TOKEN; migrator token create makes one)"
        raise Rejected(
            answer.status_code, str(found.get("code", "")), message, list(found.get("findings", []))
        )
    return found


def _url(where: str) -> str:
    try:
        parts = urlsplit(where)
        if parts.hostname:
            addresses.host(parts.hostname)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"--server: {where!r} is no address: {error}") from None
    except UsageError as error:
        raise UsageError(f"--server: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"--server: {where!r} is no address: write unix:PATH, https://HOST:PORT or http://127.0.0.1:PORT"
        )
    if parts.scheme == "http" and not _loopback(parts.hostname):
        raise UsageError(f"--server: {where} would show the token to everyone on the way: use https://")
    return where.rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
