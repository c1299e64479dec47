"""Lists of hosts and guests as they are asked for: searched, filtered, sorted, and a part of them at a time.

Both functions take every document and look at each once or twice: some 20 ms for 20,000 guests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.core.inventory import HostState

#: Stands for those that nobody else manages, where it is asked for by who does.
NOBODY = "-"

GuestOrder = Literal[
    "host",
    "-host",
    "name",
    "-name",
    "run_state",
    "-run_state",
    "memory_bytes",
    "-memory_bytes",
    "vcpus",
    "-vcpus",
    "dirty_rate_bytes_per_second",
    "-dirty_rate_bytes_per_second",
    "policy",
    "-policy",
    "managed_by",
    "-managed_by",
]
HostOrder = Literal[
    "host",
    "-host",
    "state",
    "-state",
    "guests",
    "-guests",
    "guests_not_movable",
    "-guests_not_movable",
    "memory_free_bytes",
    "-memory_free_bytes",
    "memory_total_bytes",
    "-memory_total_bytes",
    "cpus",
    "-cpus",
    "link_bytes_per_second",
    "-link_bytes_per_second",
]
_Document = TypeVar("_Document", GuestDocument, HostDocument)


@dataclass(frozen=True, kw_only=True)
class _Query:
    """A part of a sorted list.

    :ivar search: words that are all somewhere in what each is known by; case does not matter.
    :ivar limit: at most so many; ``None``: all.
    :ivar offset: so many are left out first.
    """

    search: str = ""
    limit: int | None = None
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class GuestQuery(_Query):
    """Guests that are asked for: those that agree with every field that is not ``None`` or empty.

    :ivar states: run states, one of which it has.
    :ivar managed_by: who else manages it, ``systemd`` for every unit of systemd; see also :data:`NOBODY`.
    :ivar moving: a migration of it is under way.
    :ivar sort: by a field, then by host and name; ``-`` before it: the largest first. What is not known is last.
    """

    states: frozenset[str] = frozenset()
    managed_by: str | None = None
    policy: str | None = None
    movable: bool | None = None
    moving: bool | None = None
    duplicate: bool | None = None
    monitored: bool | None = None
    sort: GuestOrder = "host"

    @property
    def filters(self) -> bool:
        """Some may not be asked for, whatever their words are."""
        asked = (self.managed_by, self.policy, self.movable, self.moving, self.duplicate, self.monitored)
        return bool(self.states) or any(each is not None for each in asked)

    def fits(self, guest: GuestDocument) -> bool:
        """Return whether `guest` is asked for, whatever its words are."""
        return (
            (not self.states or guest.run_state in self.states)
            and (
                self.managed_by is None
                or self.managed_by in (guest.managed_by or NOBODY, _manager(guest.managed_by))
            )
            and self.policy in (None, guest.policy)
            and self.movable in (None, guest.movable)
            and self.moving in (None, guest.migration is not None)
            and self.duplicate in (None, guest.duplicate)
            and self.monitored in (None, guest.monitored)
        )


@dataclass(frozen=True, kw_only=True)
class HostQuery(_Query):
    """Hosts that are asked for: those that agree with every field that is not ``None`` or empty.

    :ivar states: one of which it is in.
    :ivar sort: by a field, then by name; ``-`` before it: the largest first. What is not known is last.
    """

    states: frozenset[HostState] = frozenset()
    up: bool | None = None
    cordoned: bool | None = None
    sort: HostOrder = "host"

    def fits(self, host: HostDocument) -> bool:
        """Return whether `host` is asked for, whatever its words are."""
        return (
            (not self.states or host.state in self.states)
            and self.up in (None, host.up)
            and self.cordoned in (None, host.cordoned)
        )


class GuestCounts(BaseModel):
    """Counts of the guests that have the words and the host that were asked for, whatever else was."""

    #: By run state.
    run_state: dict[str, int]
    #: By who else manages them, all units of systemd together; nobody is the empty word.
    managed_by: dict[str, int]
    not_movable: int
    #: In a migration.
    moving: int
    duplicate: int
    unmonitored: int


class GuestList(BaseModel):
    """Guests, by host and name where nothing else was asked for."""

    items: list[GuestDocument]
    #: So many were asked for, on all pages together.
    total: int
    #: Give it as ``offset`` for the next page; ``null``: this was the last.
    next: int | None = None
    counts: GuestCounts


class HostCounts(BaseModel):
    """Counts of the hosts that have the words that were asked for, whatever else was."""

    state: dict[HostState, int]
    down: int
    cordoned: int
    #: Of all of these together: their guests, and those that cannot be moved.
    guests: int
    guests_not_movable: int


class HostList(BaseModel):
    """Hosts, by name where nothing else was asked for."""

    items: list[HostDocument]
    #: So many were asked for, on all pages together.
    total: int
    #: Give it as ``offset`` for the next page; ``null``: this was the last.
    next: int | None = None
    counts: HostCounts


def _manager(managed_by: str) -> str:
    """Return who else manages a guest, without which unit of it; empty where nobody does."""
    return managed_by.partition(":")[0]


def guest_list(guests: Iterable[GuestDocument], query: GuestQuery) -> GuestList:
    """Return the part of `guests`, which are in the order of host and name, that is asked for."""
    worded = _with_words(guests, query.search, _guest_words)
    fitting = [guest for guest in worded if query.fits(guest)] if query.filters else worded
    ordered = _ordered(fitting, query.sort, as_it_is="host")
    items, following = _part(ordered, query)
    return GuestList.model_construct(
        items=items, total=len(fitting), next=following, counts=_guest_counts(worded)
    )


def _guest_counts(guests: Iterable[GuestDocument]) -> GuestCounts:
    # Most are like many others: what they are like is counted first.
    alike = Counter(
        (
            guest.run_state,
            guest.managed_by,
            guest.movable,
            guest.migration is None,
            guest.duplicate,
            guest.monitored,
        )
        for guest in guests
    )
    run_state, managed_by = Counter[str](), Counter[str]()
    not_movable = moving = duplicate = unmonitored = 0
    for (state, by, movable, rests, doubled, monitored), number in alike.items():
        run_state[state] += number
        managed_by[_manager(by)] += number
        not_movable += 0 if movable else number
        moving += 0 if rests else number
        duplicate += number if doubled else 0
        unmonitored += 0 if monitored else number
    return GuestCounts(
        run_state=run_state,
        managed_by=managed_by,
        not_movable=not_movable,
        moving=moving,
        duplicate=duplicate,
        unmonitored=unmonitored,
    )


def host_list(hosts: Iterable[HostDocument], query: HostQuery) -> HostList:
    """Return the part of `hosts`, which are in the order of their names, that is asked for."""
    worded = _with_words(hosts, query.search, _host_words)
    fitting = [host for host in worded if query.fits(host)]
    ordered = _ordered(fitting, query.sort, as_it_is="host")
    items, following = _part(ordered, query)
    counts = HostCounts(
        state=Counter(host.state for host in worded),
        down=sum(not host.up for host in worded),
        cordoned=sum(host.cordoned for host in worded),
        guests=sum(host.guests for host in worded),
        guests_not_movable=sum(host.guests_not_movable for host in worded),
    )
    return HostList.model_construct(items=items, total=len(fitting), next=following, counts=counts)


def _guest_words(guest: GuestDocument) -> str:
    return f"{guest.name}\n{guest.guest}\n{guest.uuid}\n{guest.identity}\n{guest.host}"


def _host_words(host: HostDocument) -> str:
    labels = "\n".join(f"{name}={value}" for name, value in host.labels.items())
    versions = "\n".join(host.qemus.values())
    return f"{host.host}\n{host.address}\n{labels}\n{versions}\n{host.error}"


def _with_words(
    documents: Iterable[_Document], search: str, words_of: Callable[[_Document], str]
) -> list[_Document]:
    if not (words := search.casefold().split()):
        return list(documents)
    first, *others = words
    found = [(each, text) for each in documents if first in (text := words_of(each).casefold())]
    return [each for each, text in found if all(word in text for word in others)]


def _ordered(documents: list[_Document], order: str, *, as_it_is: str) -> list[_Document]:
    field, falling = order.removeprefix("-"), order.startswith("-")
    if field == as_it_is:
        return documents[::-1] if falling else documents
    known, unknown = list[tuple[Any, _Document]](), list[_Document]()
    for each in documents:
        value = getattr(each, field)
        if value is None:
            unknown.append(each)
        else:
            known.append((value, each))
    # Those of the same value stay in the order they are in, with the largest first too.
    known.sort(key=lambda pair: pair[0], reverse=falling)
    return [each for _, each in known] + unknown


def _part(documents: Sequence[_Document], query: _Query) -> tuple[list[_Document], int | None]:
    if query.limit is None:
        return list(documents[query.offset :]), None
    end = query.offset + query.limit
    return list(documents[query.offset : end]), end if query.limit and end < len(documents) else None
