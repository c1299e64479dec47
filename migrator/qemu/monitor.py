"""One QMP session: time-outs on everything, events handed over as they come, reconnection.

QEMU executes the commands of one session in their order (out-of-band ones excepted), so an answer to a later query
also says that an earlier command, whose reply never came, was carried out or dropped. That is why the truth is
always asked for on the session that the command went through, or on a new one, which QEMU greets only after it has
dropped what an old session left unexecuted.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

from qemu.qmp import ConnectError, ExecuteError, QMPError, Runstate
from qemu.qmp.qmp_client import BadReplyError

from migrator.errors import CommandFailed, NobodyListens, Occupied, StrangeAnswer, TimedOut, Unreachable
from migrator.qemu.address import Address
from migrator.qemu.client import QmpClient, Tap, TlsClient
from migrator.qemu.pending_connects import PendingConnects
from migrator.qemu.replies import wrong_with
from migrator.text import clean


def _nobody(*told: object) -> None:
    pass


#: Whoever counts is told every answered command with its seconds, and every failure by its kind (``unreachable``,
#: ``occupied``, ``timed-out``, ``strange-answer``, ``command-failed``); set once, by the service. They return at once
#: and never raise.
on_command: Callable[[str, float], None] = _nobody
on_error: Callable[[str], None] = _nobody

#: Characters of what QEMU says when it refuses that are kept.
_DESCRIPTION = 2_000
#: Beginnings of commands that change nothing.
_ASKING = ("query-", "qom-get", "qom-list")


class Monitor:
    """A QMP session that can be opened again after it broke.

    :param address: where QEMU listens.
    :param name: for messages: ``source unix:/run/a.sock``.
    :param on_event: called with every event, in order, as it arrives.
    :param on_break: called once when an open session breaks.
    :param tls: for ``tls:`` addresses.
    :param pending_connects: shared with others who open the same monitors; by default its own, given up in
        :meth:`close`.
    """

    def __init__(
        self,
        address: Address,
        *,
        name: str,
        on_event: Callable[[Mapping[str, Any]], None],
        on_break: Callable[[], None],
        tls: ssl.SSLContext | None = None,
        pending_connects: PendingConnects | None = None,
    ) -> None:
        self.address = address
        self.name = name
        #: Process behind a unix socket, as the kernel says; known once :meth:`connect` was tried.
        self.pid: int | None = None
        self._tls = tls
        self._knocks = pending_connects
        self._own_knocks: PendingConnects | None = None
        self._on_event = on_event
        self._on_break = on_break
        self._client: QmpClient | None = None
        self._watch: asyncio.Task[None] | None = None
        #: Seconds the last command took.
        self.round_trip_seconds = 0.0
        #: Seconds the quickest command took; 0 before there was one.
        self.least_round_trip_seconds = 0.0
        #: How many sessions there were.
        self.sessions = 0
        #: When the last command that may change something was sent, on the monotonic clock.
        self.commanded_at = 0.0

    @property
    def connected(self) -> bool:
        """True while there is a session. It may have broken since; a command will tell."""
        return self._client is not None and self._client.runstate is Runstate.RUNNING

    async def connect(self, *, timeout: float = 5.0) -> None:
        """Open the session; an open one is left as it is.

        :raise Occupied: accepted, but not greeted within `timeout` seconds; or its queue is full.
        :raise NobodyListens: refused, or there is no such socket.
        :raise Unreachable: it may not be opened, or what answered does not speak QMP.
        """
        if self.connected:
            return
        await self._end_session()
        client = (TlsClient if self.address.kind == "tls" else QmpClient)(self.name)
        client.events.names = {"(none: see Tap)"}
        client.register_listener(Tap(self._on_event))
        sock: socket.socket | None = None
        try:
            async with asyncio.timeout(timeout):
                if self.address.kind == "unix":
                    sock = await self._greeted(timeout)
                    await client.connect(sock)
                else:
                    await client.connect((self.address.host, self.address.port), self._tls)
        except (TimeoutError, BlockingIOError) as error:
            on_error("occupied")
            full = isinstance(error, BlockingIOError)
            what = "its queue of waiting clients is full" if full else f"no QMP greeting within {timeout:g} s"
            raise Occupied(
                self.name,
                f"{what}: another client holds this monitor, or QEMU is stopped; "
                "close the other client, or give QEMU a second -qmp",
            ) from error
        except (OSError, EOFError, ConnectError, QMPError) as error:
            cause = error.exc if isinstance(error, ConnectError) else error
            text = (
                cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause) or "hung up"
            )
            on_error("unreachable")
            # What it read instead of a greeting may be of any length, on a line of its own.
            text = clean(" ".join(text[:2_000].split()))[:500]
            absent = isinstance(cause, ConnectionRefusedError | FileNotFoundError)
            raise (NobodyListens if absent else Unreachable)(
                self.name, f"cannot open a QMP session: {text}; {self._remedy(cause)}"
            ) from error
        finally:
            if sock is not None and client.runstate is Runstate.IDLE:
                sock.close()
        self._client = client
        self.sessions += 1
        self._watch = asyncio.create_task(self._watch_break(client), name=f"watch {self.name}")

    def _remedy(self, cause: BaseException) -> str:
        """Return what to look at where no session can be opened."""
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "is its certificate for that name, and of an authority in --tls-ca?"
        if self.address.kind == "tls" and not isinstance(cause, ConnectionRefusedError):
            return "does it speak TLS, and take the client's certificate (--tls-cert, --tls-key)?"
        return "is QEMU running there?"

    async def _greeted(self, timeout: float) -> socket.socket:
        def note(pid: int | None) -> None:
            self.pid = pid

        pending_connects = self._knocks
        if pending_connects is None:
            pending_connects = self._own_knocks = self._own_knocks or PendingConnects()
        return await pending_connects.connect(self.address.path, timeout=timeout, note_pid=note)

    async def _watch_break(self, client: QmpClient) -> None:
        while client.runstate is Runstate.RUNNING:
            await client.runstate_changed()
        if self._client is client:
            self._on_break()

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = 5.0,
        oob: bool = False,
    ) -> Any:
        """Execute one command.

        :param timeout: seconds; when they pass, the command is NOT withdrawn.
        :param oob: out of band: answered even while QEMU's main loop is blocked, where QEMU allows it.
        :raise CommandFailed: QEMU refused.
        :raise TimedOut: no answer in time; it may still be carried out.
        :raise Unreachable: there is no session, or it broke before the answer: it may have been carried out.
        :raise StrangeAnswer: what came is no answer to that command; it may have been carried out.
        """
        began = time.monotonic()
        if not command.startswith(_ASKING):
            self.commanded_at = began
        client, reply = self._send(command, arguments, oob=oob)
        timer = asyncio.get_running_loop().call_later(timeout, _time_out, reply)
        try:
            return await self._answer(client, command, arguments, reply, began)
        except TimeoutError as error:
            on_error("timed-out")
            raise TimedOut(self.name, command, timeout) from error
        finally:
            timer.cancel()

    async def ask_together(self, *queries: str) -> list[Any]:
        """Ask several queries without arguments in one round trip, and wait for their answers however long it takes.

        :raise CommandFailed: QEMU refused one.
        :raise Unreachable: see :meth:`execute`.
        :raise StrangeAnswer: likewise.
        """
        began = time.monotonic()
        sent = [(query, *self._send(query)) for query in queries]
        try:
            return [await self._answer(client, query, None, reply, began) for query, client, reply in sent]
        finally:
            for _, _, reply in sent:
                reply.cancel()

    def _send(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, oob: bool = False
    ) -> tuple[QmpClient, asyncio.Future[dict[str, Any]]]:
        client = self._client
        if client is None or client.runstate is not Runstate.RUNNING:
            raise Unreachable(self.name, f"{command}: there is no QMP session")
        return client, client.send(command, arguments, oob=oob)

    async def _answer(
        self,
        client: QmpClient,
        command: str,
        arguments: Mapping[str, Any] | None,
        reply: asyncio.Future[dict[str, Any]],
        began: float,
    ) -> Any:
        """Wait for the answer; raises what :meth:`execute` does, and whatever the reply was given instead of one."""
        try:
            answer = await client.answer(reply)
        except TimeoutError:
            raise
        except ExecuteError as error:
            on_error("command-failed")
            description = clean(str(error)[:_DESCRIPTION])
            raise CommandFailed(self.name, command, error.error_class[:64], description) from error
        except BadReplyError as error:
            on_error("strange-answer")
            raise StrangeAnswer(self.name, command, error.error_message) from error
        except (QMPError, OSError, EOFError) as error:
            on_error("unreachable")
            broke_by = f": it sent {client.broke_by}" if client.broke_by else ""
            raise Unreachable(
                self.name, f"{command}: the QMP session broke before it was answered{broke_by}"
            ) from error
        self.round_trip_seconds = time.monotonic() - began
        self.least_round_trip_seconds = min(
            self.round_trip_seconds, self.least_round_trip_seconds or self.round_trip_seconds
        )
        on_command(command, self.round_trip_seconds)
        if wrong := wrong_with(command, arguments, answer):
            on_error("strange-answer")
            raise StrangeAnswer(self.name, command, wrong)
        return answer

    async def read_to_end(self, *, timeout: float) -> None:
        """Wait until all that was said by a QEMU that hangs up was handed over.

        :param timeout: seconds after which it is not waited for any longer, as where it has not hung up.
        """
        if self._watch is not None:
            await asyncio.wait({self._watch}, timeout=timeout)

    async def close(self) -> None:
        """Close the session; a broken or absent one is no error."""
        if self._own_knocks is not None:
            self._own_knocks.close()
            self._own_knocks = None
        await self._end_session()

    async def _end_session(self) -> None:
        client, self._client = self._client, None
        watch, self._watch = self._watch, None
        if client is not None:
            await client.end()
        if watch is not None:
            watch.cancel()
            await asyncio.wait({watch})


def _time_out(reply: asyncio.Future[dict[str, Any]]) -> None:
    if not reply.done():
        reply.set_exception(TimeoutError())
