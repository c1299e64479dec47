"""This controller and those that it shares the journal with, as its process that answers is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel

from migrator import __version__
from migrator.api.documents import ControllerDocument, LeaseDocument, ServiceDocument
from migrator.ports import Lease
from migrator.store.presence import Heartbeat


class Right(BaseModel):
    """A lease, as far as a write under it has to name it."""

    name: str
    owner: str
    token: int

    def lease(self) -> Lease:
        """Return it; whether it holds is checked where something is written under it, and nowhere else."""
        return Lease(
            name=self.name, owner=self.owner, token=self.token, until=float("inf"), clock=lambda: 0.0
        )


class ServiceReport(BaseModel):
    """The things that the process that answers needs to know of this controller."""

    document: ServiceDocument
    #: This controller's; empty where the journal is its own.
    name: str = ""
    #: What gives the right to write documents for the others; ``None``: nobody is there who would read them.
    right: Right | None = None


@dataclass(kw_only=True)
class Reporter:
    """Makes reports.

    :param heartbeat: ``None``: the journal is this controller's own.
    :param seconds: of a lease.
    :param acts: the lease under which it acts, once it does.
    """

    instance: str
    heartbeat: Heartbeat | None = None
    seconds: float = 0.0
    acts: Callable[[], Lease | None] = lambda: None

    def report(self) -> ServiceReport:
        """Return how things are."""
        if self.heartbeat is None:
            document = ServiceDocument(
                instance=self.instance, version=__version__, role="alone", acting=self.instance
            )
            return ServiceReport(document=document)
        now, name = self.heartbeat.now, self.heartbeat.info.name
        # While the database is away what was found last grows older.
        since = time.monotonic() - now.found_at
        lease = self.acts()
        acting = now.acting
        document = ServiceDocument(
            instance=self.instance,
            version=__version__,
            role="standby" if lease is None else "acting",
            acting=self.instance if lease else acting.info.instance if acting else None,
            acting_url=acting.info.url if acting else "",
            controllers=[
                ControllerDocument(
                    **{field: getattr(each.info, field) for field in _DESCRIBED},
                    schema_revision=each.schema,
                    present=each.present,
                    started_at=each.started_at,
                    seen_at=each.seen_at,
                    age_seconds=each.age_seconds + since,
                )
                for each in now.controllers
            ],
            leases=[
                LeaseDocument(
                    name=each.name,
                    owner=each.owner,
                    token=each.token,
                    taken_at=each.taken_at,
                    left_seconds=each.left_seconds - since,
                    age_seconds=max(0.0, self.seconds - each.left_seconds + since),
                )
                for each in now.leases
            ],
            complaints=[now.complaint] if now.complaint else [],
        )
        right = None
        if lease is not None and now.others(name):
            right = Right(name=lease.name, owner=lease.owner, token=lease.token)
        return ServiceReport(document=document, name=name, right=right)

    def message(self) -> bytes:
        """Return :meth:`report` as JSON."""
        return self.report().model_dump_json().encode()


_DESCRIBED = ("name", "instance", "version", "url", "role", "detail")
