"""This controller and those that it shares the journal with, as its process that answers is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel

from migrator import __version__
from migrator.api.service_documents import ControllerDocument, LeaseDocument, ServiceDocument
from migrator.ports import HeldLease, Lease
from migrator.ports.controllers import PresentController, controller_lease
from migrator.store.presence import Heartbeat, Presence
from migrator.store.sole_use import NAME as SITE


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
    :param seconds: of this controller's leases; taken to be that of others' where they do not say.
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
        acting, planner = now.acting, now.planner
        # What is known of the others may be older than this controller's own lease.
        replaced = lease is not None and planner is not None and planner.token > lease.token
        if replaced:
            lease = None
        document = ServiceDocument(
            instance=self.instance,
            version=__version__,
            role="replaced" if replaced else "standby" if lease is None else "acting",
            acting=self.instance if lease else acting.info.instance if acting else None,
            acting_url=acting.info.url if acting else "",
            controllers=[
                ControllerDocument(
                    **{field: getattr(each.info, field) for field in _DESCRIBED},
                    role=_role(each, now),
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
                    age_seconds=self._age(each, now) + since,
                )
                for each in now.leases
            ],
            complaints=[now.complaint] if now.complaint else [],
        )
        right = None
        if lease is not None and now.others(name):
            right = Right(name=lease.name, owner=lease.owner, token=lease.token)
        return ServiceReport(document=document, name=name, right=right)

    def _age(self, lease: HeldLease, now: Presence) -> float:
        """Return seconds from when a lease was renewed until it was looked at."""
        owner = next((each for each in now.controllers if each.info.name == lease.owner), None)
        if owner is not None and owner.lease_seconds is None and lease.name == controller_lease(lease.owner):
            return owner.age_seconds  # it is renewed with each heartbeat
        seconds = owner.lease_seconds if owner is not None else None
        return max(0.0, (self.seconds if seconds is None else seconds) - lease.left_seconds)

    def message(self) -> bytes:
        """Return :meth:`report` as JSON."""
        return self.report().model_dump_json().encode()


_DESCRIBED = ("name", "instance", "version", "url", "detail", "migrations")


def _role(one: PresentController, now: Presence) -> str:
    """Return the role of a controller: the lease says who acts, and what it says of itself may be older."""
    site = next((each for each in now.leases if each.name == SITE), None)
    if one.info.role == "acting" and site is not None and site.owner != one.info.name:
        return "replaced"
    return one.info.role
