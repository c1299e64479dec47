"""The work of the process that answers while its controller acts, and while it stands by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from migrator import __version__, faults
from migrator.api.replies import Reply
from migrator.api.requests import Envelope
from migrator.api.service_documents import ServiceDocument
from migrator.errors import Unavailable
from migrator.ports import Grant, Lease
from migrator.replica.follower import JournalFollower
from migrator.replica.live_writer import LiveDocumentWriter
from migrator.replica.requests import SteeringRequests
from migrator.replica.state import ReplicaState
from migrator.service.entrance_commands import EntranceCommands
from migrator.service.entrance_requests import GRANT
from migrator.service.forwarded_commands import ForwardedCommands
from migrator.service.reports import ServiceReport
from migrator.store.journal import SqlJournal
from migrator.store.tokens import Tokens

#: What is shown by one that stands by is said to be old after so long.
_STALE_SECONDS = 5.0


class ControllerRole:
    """Follows what the controller says of itself; from standing by it goes to acting once, and never back.

    :ivar acts: set once the controller acts: its own process tells everything from then on.
    """

    def __init__(self, state: ReplicaState) -> None:
        self._state = state
        self._report: ServiceReport | None = None
        self._received_at = 0.0
        self._known = asyncio.Event()
        self.acts = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._following: asyncio.Task[None] | None = None
        self._follower: JournalFollower | None = None

    def receive(self, body: bytes) -> None:
        """Take over what the controller says of itself.

        :raise ValueError: it cannot be read.
        """
        self._report = ServiceReport.model_validate_json(body)
        self._received_at = time.monotonic()
        self._known.set()
        if self._report.document.role in ("acting", "alone") and not self.acts.is_set():
            self.acts.set()
            if self._following is not None:
                self._following.cancel()  # nothing of what it was about to read is taken over any more

    async def begin(self, journal: SqlJournal, forwarded: ForwardedCommands) -> None:
        """Follow the controller that acts while this one does not, and write for others once it does."""
        await self._known.wait()
        if not journal.shared:
            return
        assert self._report is not None
        writer = LiveDocumentWriter(self._state, journal.live, name=self._report.name, right=self._right)
        self._begin("live documents", writer.run)
        if not self.acts.is_set():
            self._begin("answers to commands", forwarded.run)
            self._follower = JournalFollower(self._state, journal)
            self._following = self._begin("follower", self._follower.run)

    def _begin(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(faults.keep_going(name, work), name=name)
        self._tasks.append(task)
        return task

    async def end(self) -> None:
        """Stop all of it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _right(self) -> Lease | None:
        right = self._report.right if self._report is not None else None
        return right.lease() if right is not None else None

    def document(self) -> ServiceDocument:
        """Return this controller and the others, with how old what is shown may be."""
        if self._report is None:
            return ServiceDocument(instance="", version=__version__, role="standby")
        document = _aged(self._report.document, time.monotonic() - self._received_at)
        if self.acts.is_set():
            return document
        stale = self._follower.stale_seconds() if self._follower is not None else None
        return document.model_copy(update={"stale_seconds": stale, "complaints": self.complaints()})

    def acting(self) -> str:
        """Return who acts, with where it answers; empty: nobody is known to."""
        if self._report is None or not (acting := self._report.document.acting):
            return ""
        url = self._report.document.acting_url
        return f"{acting} ({url})" if url else acting

    def complaints(self) -> list[str]:
        """Return why one that stands by is no good now: nobody acts, or it does not know what is new."""
        if self.acts.is_set() or self._report is None:
            return []
        found = []
        if not self._report.document.acting:
            found.append("no controller acts: commands wait for one that takes over")
        if self._follower is not None and (self._follower.complaint or self.stale()):
            age = self._follower.stale_seconds()
            how_old = "is not known" if age is None else f"is {age:.0f} s old"
            why = self._follower.complaint or "the journal does not answer: see whether its server does"
            found.append(f"what this controller shows {how_old}: {why}")
        else:
            found += self._report.document.complaints
        return found

    def stale(self) -> bool:
        """Return whether what is shown is older than it should be."""
        if self.acts.is_set() or self._follower is None:
            return False
        age = self._follower.stale_seconds()
        return age is None or age > _STALE_SECONDS or bool(self._follower.complaint)


def _aged(document: ServiceDocument, seconds: float) -> ServiceDocument:
    """Return `document` as it is to be read so many seconds later: nobody was heard of since."""
    return document.model_copy(
        update={
            "controllers": [
                each.model_copy(update={"age_seconds": each.age_seconds + seconds})
                for each in document.controllers
            ],
            "leases": [
                each.model_copy(
                    update={
                        "age_seconds": each.age_seconds + seconds,
                        "left_seconds": each.left_seconds - seconds,
                    }
                )
                for each in document.leases
            ],
        }
    )


class RoleCommands:
    """Has commands carried out by this controller, or by the one that acts; see
    :class:`migrator.ports.commands.CommandExecutor`."""

    def __init__(self, role: ControllerRole, here: EntranceCommands, elsewhere: ForwardedCommands) -> None:
        self._role, self._here, self._elsewhere = role, here, elsewhere

    async def execute(self, envelope: Envelope) -> Reply:
        """See :meth:`migrator.ports.commands.CommandExecutor.execute`."""
        executor = self._here if self._role.acts.is_set() else self._elsewhere
        return await executor.execute(envelope)


class RoleTokens:
    """Tokens and sessions as the journal has them. While this controller acts, its other process writes them."""

    def __init__(self, role: ControllerRole, tokens: Tokens, requests: SteeringRequests) -> None:
        self._role, self._tokens, self._requests = role, tokens, requests
        self.verify, self.session, self.holding = tokens.verify, tokens.session, tokens.holding

    async def begin_session(self, token: Grant, *, seconds: float) -> tuple[str, Grant]:
        """See :meth:`migrator.store.tokens.Tokens.begin_session`."""
        if not self._role.acts.is_set():
            return await self._tokens.begin_session(token, seconds=seconds)
        given = GRANT.dump_python(token, mode="json")
        secret, grant = await self._requests.ask("begin_session", token=given, seconds=seconds)
        return secret, GRANT.validate_python(grant)

    async def end_session(self, secret: str) -> None:
        """See :meth:`migrator.store.tokens.Tokens.end_session`."""
        if not self._role.acts.is_set():
            await self._tokens.end_session(secret)
            return
        await self._requests.ask("end_session", secret=secret)


class RoleRequests(SteeringRequests):
    """Asks the process that drives migrations; one that stands by drives none, and some things go without."""

    def __init__(self, role: ControllerRole) -> None:
        super().__init__()
        self._role = role

    async def ask(self, what: str, **given: Any) -> Any:
        """See :meth:`migrator.replica.requests.SteeringRequests.ask`."""
        if not self._role.acts.is_set():
            if what in ("refresh", "flush_samples"):
                return None  # the controller that acts looks at hosts and writes figures by itself
            if what != "metrics":
                raise Unavailable("this controller stands by")
        return await super().ask(what, **given)
