"""Publication of states, decisions and progress: from where it was left, in order, and retained states as they are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from migrator import logs
from migrator.api.events import DecisionTaken, Event, MigrationProgressed, Subject
from migrator.errors import JournalError
from migrator.mqtt.config import MqttConfig
from migrator.mqtt.connection import BrokerConnection, NotAllowed, Received
from migrator.mqtt.outbox import Outbox, Outgoing, Priority
from migrator.mqtt.replies import Replies
from migrator.mqtt.retained_states import RetainedStates, StateQueries, ended_at, is_stateful
from migrator.mqtt.topics import Topics

#: Retained messages have all come when none came for so long; and they are not waited for longer than that.
_QUIET_SECONDS = 0.3
_SWEEP_SECONDS = 10.0
#: Between two looks for states to clear.
_CLEARING_SECONDS = 60.0

#: Asks for the last :attr:`Publication.published` that was kept; ``None``: none was.
PublishedUntil = Callable[[], Awaitable[int | None]]


class Publication:
    """Queues what is to be published while this controller acts, from its making on.

    :param replies: gives outcomes: whoever acts tells them.
    """

    def __init__(
        self,
        *,
        config: MqttConfig,
        queries: StateQueries,
        outbox: Outbox,
        replies: Replies,
        topics: Topics,
        published_until: PublishedUntil,
        now: Callable[[], datetime],
    ) -> None:
        self._config, self._queries, self._topics = config, queries, topics
        self._outbox, self._replies = outbox, replies
        self._published_until = published_until
        self._log = logs.logger(broker=config.address)
        self._states = RetainedStates(
            queries=queries, topics=topics, keep=timedelta(seconds=config.section.keep_ended), now=now
        )
        #: Whether it publishes, and how often that has changed.
        self._acts, self._passive, self._turn = asyncio.Event(), asyncio.Event(), 0
        #: What was said before this controller began to act is queued, or the broker has it.
        self._caught_up = asyncio.Event()
        #: Events that came while that was read.
        self._early: deque[Event] = deque(maxlen=config.section.queue_limit)
        #: Number of the last event that was queued, or that is not to be.
        self._queued_until = queries.bus.last_event_id
        #: What the broker has retained, while it is being asked; and when the last of it came.
        self._seen: dict[str, bytes] | None = None
        self._seen_at = 0.0
        queries.bus.subscribe(self._on_event, journalled=True)

    @property
    def published(self) -> int | None:
        """Number of an event that the broker has, with all before it; ``None``: not known."""
        if not self._caught_up.is_set():
            return None
        first = self._outbox.first_event_id
        return self._queued_until if first is None else first - 1

    def act(self, acts: bool) -> None:
        """Publish from now on, beginning with what nobody has published yet; or no more."""
        if acts == self._acts.is_set():
            return
        self._turn += 1
        self._caught_up.clear()
        self._early.clear()
        if acts:
            self._queued_until = self._queries.bus.last_event_id
            self._passive.clear()
            self._acts.set()
        else:
            self._acts.clear()
            self._passive.set()
            self._outbox.forget_events()

    async def all_queued(self) -> None:
        """Wait until what was heard is queued for the broker; at once where another publishes."""
        if self._acts.is_set():
            await self._caught_up.wait()

    async def run(self) -> None:
        """Catch up each time that this controller begins to act; until cancelled."""
        while True:
            await self._acts.wait()
            turn = self._turn
            await self._catch_up()
            if turn == self._turn:
                self._take_early()
                await self._passive.wait()

    async def _catch_up(self) -> None:
        self._states.forget_all()
        await self._states.load()
        try:
            await self._replies.recall()
            await self._queue_missed()
        except JournalError as error:
            self._log.warning("what was said before is not published", error=str(error))

    async def _queue_missed(self) -> None:
        """Queue the journalled events that the broker has not got, as many as may wait at most."""
        kept, last = await self._published_until(), self._queued_until
        if kept is None:
            return
        self._queued_until = max(kept, last - self._config.section.queue_limit)
        more = True  # the journal may be further than what was heard
        while more:
            page = await self._queries.events(after=self._queued_until)
            for event in page.items:
                self._queue(event)
            self._queued_until, more = max(self._queued_until, page.last), page.more

    def _take_early(self) -> None:
        read = self._queued_until
        while self._early:
            event = self._early.popleft()
            if event.event_id > read or not event.has_number:
                self._queue(event)
        self._caught_up.set()

    def _on_event(self, event: Event) -> None:
        """An event of the bus: queued for the broker. Called by the bus: returns at once and never raises."""
        if self._caught_up.is_set():
            self._queue(event)
        elif self._acts.is_set():
            self._early.append(event)

    def _queue(self, event: Event) -> None:
        if is_stateful(event):
            self._states.note(event)
            topic = self._topics.about(event.subject, event.subject_id, "state")
            if topic is not None:
                self._outbox.put(Outgoing(priority=Priority.EVENT, topic=topic, payload=event, retain=True))
            if event.subject is not Subject.HOST and ended_at(event) is not None:
                progress = self._topics.about(event.subject, event.subject_id, "progress")
                self._outbox.ended(progress or "")
                self._replies.ended(event)
        elif isinstance(event, DecisionTaken | MigrationProgressed):
            topic = self._topics.about(event.subject, event.subject_id, event.kind)
            priority = Priority.EVENT if isinstance(event, DecisionTaken) else Priority.PROGRESS
            if topic is not None:
                self._outbox.put(Outgoing(priority=priority, topic=topic, payload=event))
        if not isinstance(event, MigrationProgressed):
            self._queued_until = max(self._queued_until, event.event_id)

    # retained states

    def clear_ended(self) -> None:
        """Forget what has long ended: a broker that stays away is told nothing of it, only that it is stale."""
        self._states.clear()

    async def keep_retained(self, connection: BrokerConnection) -> None:
        """Make what the broker has retained true again, then clear what has ended in time; until cancelled."""
        while True:
            await self._caught_up.wait()
            turn = self._turn
            retained = await self._ask_retained(connection)
            self._states.forget_hosts()
            differences = await self._states.differences(retained, waits=self._outbox.waits)
            while turn == self._turn:
                for outgoing in differences:
                    self._outbox.put(outgoing)
                await asyncio.sleep(min(_CLEARING_SECONDS, self._config.section.keep_ended / 2))
                differences = [*self._states.clear(), *self._states.forget_hosts()]

    async def _ask_retained(self, connection: BrokerConnection) -> dict[str, bytes]:
        """No message says that these were all: silence does, or what the broker answers only after it has sent them.

        What comes later is looked at next time.
        """
        self._seen = {}
        limit = asyncio.get_running_loop().time() + _SWEEP_SECONDS
        try:
            for topic in self._topics.states:
                # Not acknowledged one by one: a broker would wait for that.
                await connection.subscribe(topic, qos=0, retained=True)
            self._seen_at = asyncio.get_running_loop().time()
            await self._quiet(limit)
            for topic in self._topics.states:
                await connection.unsubscribe(topic)
            # Was it silent because it is slow, then the rest has come before this answer.
            await self._quiet(limit)
            return self._seen
        except NotAllowed as error:
            # Then all is published anew, and what is stale stays.
            self._log.warning("retained state not checked", error=str(error))
            return {}
        finally:
            self._seen = None

    async def _quiet(self, limit: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < min(limit, self._seen_at + _QUIET_SECONDS):
            await asyncio.sleep(_QUIET_SECONDS / 3)

    def see(self, received: Received) -> None:
        """Take a message in that is no command: what the broker has retained, where it was asked."""
        if self._seen is not None:
            # Without the flag it is what was published just now, and is retained from now on.
            self._seen[received.topic] = received.payload
            if received.retain:
                self._seen_at = asyncio.get_running_loop().time()
