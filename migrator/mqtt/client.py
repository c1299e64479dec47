"""The MQTT entrance: commands in, replies, states, decisions and progress out, for as long as the service runs."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from migrator import logs
from migrator.errors import JournalError
from migrator.mqtt.config import MqttConfig
from migrator.mqtt.connection import (
    BrokerConnection,
    BrokerError,
    ClosedByBroker,
    NotAllowed,
    SessionTaken,
    UnsupportedVersion,
    Version,
)
from migrator.mqtt.outbox import Outbox, Outgoing
from migrator.mqtt.publication import Publication, PublishedUntil
from migrator.mqtt.receipts import Receipts
from migrator.mqtt.reception import Reception
from migrator.mqtt.replies import OutcomeJournal, Replies
from migrator.mqtt.retained_states import StateQueries
from migrator.mqtt.topics import Topics
from migrator.ports.commands import Commands

#: Two clients of one id throw each other out: a broker that does so often within a minute, soon after it let us in.
_TOO_OFTEN = 4
_SHORT_SECONDS = 20.0
_OFTEN_SECONDS = 60.0
#: Messages on their way to the broker at a time. Brokers allow few: 10 is the least of those in use.
_WINDOW = 8
#: A connection that lasted so long was a good one.
_STEADY_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.1
#: A session of another has no commands any more when none came for so long; at most so long is it looked at.
_EMPTY_SECONDS, _ANOTHERS_SECONDS = 1.0, 60.0


async def _unknown() -> int | None:
    return None


class Mqtt:
    """One controller's connection to its broker. From its making on it notes what the bus says and the journal has.

    :param journal: is asked for the commands behind what has ended.
    :param client_id: of the session that the broker keeps; empty: a new one.
    :param keep_client_id: writes it down for the next service, before it is used.
    :param published_until: asks for the last :attr:`published` that was kept; ``None``: none was.
    :param taken: is told each time that another client has taken the session.
    :param acts: whether this controller publishes states, decisions and outcomes; see :meth:`act`.
    :param now: the clock; only tests need another.
    """

    def __init__(
        self,
        *,
        config: MqttConfig,
        commands: Commands,
        queries: StateQueries,
        journal: OutcomeJournal,
        client_id: str = "",
        keep_client_id: Callable[[str], None] = lambda client_id: None,
        published_until: PublishedUntil = _unknown,
        taken: Callable[[], None] = lambda: None,
        acts: bool = True,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = config
        self._keep_client_id, self._taken = keep_client_id, taken
        #: The broker is there.
        self.connected = False
        self._log = logs.logger(broker=config.address)
        self._client_id = client_id
        if not config.is_client_id(client_id):
            self._renew_client_id()
        self._topics = Topics(config.site, config.instance)
        self._outbox = Outbox(limit=config.section.queue_limit, interval=config.section.progress_interval)
        self._replies = Replies(
            commands=commands,
            queries=queries,
            journal=journal,
            outbox=self._outbox,
            topics=self._topics,
            max_bytes=config.section.max_reply_size,
            now=now,
        )
        self._publication = Publication(
            config=config,
            queries=queries,
            outbox=self._outbox,
            replies=self._replies,
            topics=self._topics,
            published_until=published_until,
            now=now,
        )
        self._publication.act(acts)
        self._reception = Reception(
            config=config,
            commands=commands,
            replies=self._replies,
            topics=self._topics,
            see=self._publication.see,
            now=now,
        )
        #: Carries commands out, while it runs.
        self._tasks: asyncio.TaskGroup | None = None
        #: When the last connections that did not last were closed by the broker.
        self._closed: deque[float] = deque(maxlen=_TOO_OFTEN)
        self._version = Version.V311 if config.section.protocol == "3.1.1" else Version.V5
        #: Commands are carried out by whoever takes them from here.
        self._available, self._availability_changed = True, asyncio.Event()

    @property
    def client_id(self) -> str:
        """Name of its session at the broker; who knows it can take that over."""
        return self._client_id

    @property
    def dropped(self) -> int:
        """States, decisions and replies that were dropped because too many waited for the broker."""
        return self._outbox.dropped

    @property
    def waiting(self) -> int:
        """Messages that the broker has not taken yet."""
        return self._outbox.waiting

    @property
    def published(self) -> int | None:
        """See :attr:`migrator.mqtt.publication.Publication.published`."""
        return self._publication.published

    def act(self, acts: bool) -> None:
        """Publish states, decisions and outcomes from now on, or no more; commands are taken and replied to anyway.

        Of several controllers only the one that acts publishes. It begins with what was not published before it.
        """
        self._publication.act(acts)

    def available(self, available: bool) -> None:
        """Say at ``service/INSTANCE`` whether commands are carried out now."""
        if available != self._available:
            self._available = available
            self._availability_changed.set()

    async def run(self) -> None:
        """Serve until cancelled; whatever becomes of the broker, this goes on.

        After a cancellation it takes twice ``closing_seconds`` at most: what waits is sent, then ``offline``.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._replies.tell_outcomes(), name="mqtt outcomes")
            tasks.create_task(self._replies.settle_told(), name="mqtt outcomes that were told")
            tasks.create_task(self._publication.run(), name="mqtt publication")
            await self._stay_connected(tasks)

    # the connection

    def _looks_taken(self, now: float, began: float) -> bool:
        """Return whether a broker that is well has closed a connection soon after its opening once too often."""
        if now - began > _SHORT_SECONDS:
            return False
        self._closed.append(now)
        often = len(self._closed) == self._closed.maxlen and now - self._closed[0] < _OFTEN_SECONDS
        if often:
            self._closed.clear()
        return often

    def _session_was_taken(self, error: BrokerError) -> None:
        # Who has taken it gets what comes to it. Under an id that nobody knows there is one of ours again; what was on
        # its way meanwhile gets no reply, and is to be sent again.
        self._renew_client_id()
        self._taken()
        why = "another client uses our id; see the broker's log for which, and take its rights away"
        if self._config.shared:
            why += ", unless it is the controller that acts and took this one for gone"
        self._log.warning(f"session taken over: {why}", error=str(error))

    def _renew_client_id(self) -> None:
        self._client_id = self._config.new_client_id()
        try:
            self._keep_client_id(self._client_id)
        except JournalError as error:
            # It serves for now; the next service begins a session of its own.
            self._log.warning("client id not kept", error=str(error))

    async def _stay_connected(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        pause, complaint = _FIRST_PAUSE_SECONDS, ""
        while True:
            began = loop.time()
            # What has long ended is not kept for a broker that stays away: it is found to be stale there.
            self._publication.clear_ended()
            try:
                await self._connect_once(tasks)
            except (SessionTaken, ClosedByBroker) as error:
                if isinstance(error, SessionTaken) or self._looks_taken(loop.time(), began):
                    self._session_was_taken(error)
                else:
                    self._log.warning("no broker", error=str(error))
            except UnsupportedVersion as error:
                if self._config.section.protocol == "auto":
                    self._version = Version.V311 if self._version is Version.V5 else Version.V5
                self._log.warning("mqtt version refused", error=str(error), next=self._version.name)
            except BrokerError as error:
                self._closed.clear()  # it was away itself
                # Of an outage that goes on one line is enough.
                if str(error) != complaint:
                    self._log.warning("no broker", error=str(error))
                complaint = str(error)
            if loop.time() - began > _STEADY_SECONDS + self._config.section.timeout:
                pause, complaint = _FIRST_PAUSE_SECONDS, ""
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause = min(pause * 2, self._config.longest_pause_seconds)

    async def _connect_once(self, tasks: asyncio.TaskGroup) -> None:
        connection = BrokerConnection(
            config=self._config,
            client_id=self._client_id,
            version=self._version,
            will=(self._topics.service, b"offline"),
        )
        await connection.open()
        try:
            # The session may hold commands: from here on they come.
            await self._subscribe(connection)
            await self._publish_availability(connection)
            self._outbox.opened()
            self.connected = True
            self._log.info("connected", version=self._version.name)
            # A task of its own: of a TaskGroup that fails Python 3.11 leaves its task marked as cancelled.
            serving = asyncio.create_task(self._serve(connection, tasks), name="mqtt serving")
            try:
                await asyncio.wait({serving})
            except asyncio.CancelledError:
                await self._farewell(connection, serving)
                raise
            else:
                await serving
            finally:
                self._outbox.closed()
                self._reception.lost()
                self.connected = False
        except NotAllowed:
            raise
        except BrokerError as error:
            raise connection.why_lost(error) from error
        finally:
            await connection.close()

    async def _subscribe(self, connection: BrokerConnection) -> None:
        ours, others = self._topics.commands, self._topics.shared_commands
        if self._config.shared:
            ours, others = others, ours
        await connection.subscribe(ours, qos=1, retained=False)
        # The session may be from before it was shared, or from after; then each command would come twice.
        await connection.unsubscribe(others)

    async def _serve(self, connection: BrokerConnection, tasks: asyncio.TaskGroup) -> None:
        try:
            async with asyncio.TaskGroup() as serving:
                serving.create_task(self._receive(connection, tasks), name="mqtt receiving")
                serving.create_task(self._send(connection), name="mqtt sending")
                serving.create_task(self._publication.keep_retained(connection), name="mqtt retained state")
                serving.create_task(self._follow_availability(connection), name="mqtt availability")
        except BaseExceptionGroup as group:  # what is not the broker's, a cancellation too, is raised again
            lost, other = group.split(BrokerError)
            if other is not None or lost is None:
                raise
            raise _first(lost) from None

    async def _receive(self, connection: BrokerConnection, tasks: asyncio.TaskGroup) -> None:
        await self._reception.receive(connection, Receipts(connection), tasks)

    async def take_commands_of(self, client_id: str) -> None:
        """Carry out the commands that the broker keeps for a controller which is gone; then it keeps no more for it.

        :param client_id: of its session. If it lives after all it loses its connection, and begins a session anew.
        :raise BrokerError: they are not all carried out, and still at the broker.
        """
        if self._tasks is None:
            return
        connection = BrokerConnection(
            config=self._config, client_id=client_id, version=self._version, will=None
        )
        await connection.open()
        receipts = Receipts(connection)
        try:
            for topic in (self._topics.commands, self._topics.shared_commands):
                await connection.unsubscribe(topic)
            receiving = asyncio.create_task(
                self._reception.receive(connection, receipts, self._tasks), name="mqtt commands of another"
            )
            emptied = asyncio.create_task(receipts.none_for(_EMPTY_SECONDS), name="mqtt no more commands")
            try:
                await asyncio.wait(
                    {receiving, emptied},
                    timeout=_ANOTHERS_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if receiving.done():
                    await receiving  # the connection was lost
                elif not emptied.done():
                    raise BrokerError("commands of a controller that is gone are not carried out yet")
            finally:
                for task in (receiving, emptied):
                    task.cancel()
                await asyncio.wait({receiving, emptied})
            self._log.info("commands of a controller that is gone were carried out", number=receipts.given)
        finally:
            await connection.close()

    async def _farewell(self, connection: BrokerConnection, serving: asyncio.Task[None]) -> None:
        """Send what waits, and that we go; within a bound."""
        seconds = self._config.closing_seconds
        try:
            await self._reception.close(seconds / 2)
            rest = asyncio.create_task(self._all_told(), name="mqtt sending the rest")
            await asyncio.wait({rest, serving}, timeout=seconds / 2, return_when=asyncio.FIRST_COMPLETED)
            rest.cancel()
        finally:
            serving.cancel()
            await asyncio.wait({serving})
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(seconds / 2):
                await connection.publish(self._topics.service, b"offline", qos=1, retain=True)

    async def _all_told(self) -> None:
        await self._publication.all_queued()
        await self._outbox.drained()
        await self._replies.all_settled()

    async def _follow_availability(self, connection: BrokerConnection) -> None:
        while True:
            await self._availability_changed.wait()
            await self._publish_availability(connection)

    async def _publish_availability(self, connection: BrokerConnection) -> None:
        self._availability_changed.clear()
        status = b"online" if self._available else b"offline"
        await connection.publish(self._topics.service, status, qos=1, retain=True)

    # out

    async def _send(self, connection: BrokerConnection) -> None:
        """Publish what waits, several at a time and in order; what was not taken waits again afterwards."""
        sending: dict[Outgoing, None] = {}
        window = asyncio.Semaphore(_WINDOW)

        async def send(outgoing: Outgoing) -> None:
            await self._publish(connection, outgoing)
            del sending[outgoing]
            self._outbox.done(outgoing)
            window.release()

        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await window.acquire()
                    outgoing = await self._outbox.get()
                    sending[outgoing] = None
                    tasks.create_task(send(outgoing), name="mqtt publishing")
        finally:
            self._outbox.put_back(sending)

    async def _publish(self, connection: BrokerConnection, outgoing: Outgoing) -> None:
        await connection.publish(
            outgoing.topic,
            outgoing.data,
            qos=outgoing.qos,
            retain=outgoing.retain,
            correlation=outgoing.correlation,
        )


def _first(group: BaseExceptionGroup[BrokerError]) -> BrokerError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
