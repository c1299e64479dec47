"""Hosts and guests as they were when they were last looked at, and what each host may be used for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from migrator import logs
from migrator.api.replies import Refusal
from migrator.awake import Absence
from migrator.core.inventory import Guest, Host, HostState, find
from migrator.core.link_speeds import LearnedSpeeds
from migrator.core.model import RunState
from migrator.engine.duplicates import Duplicates
from migrator.engine.known_hosts import KnownHost, KnownHosts
from migrator.engine.look_schedule import LookSchedule
from migrator.errors import MigratorError
from migrator.faults import contained
from migrator.ports import HostLook, Site
from migrator.settings.models import LimitsSettings

#: What is said of a host from its being configured until it is looked at for the first time.
NOT_LOOKED_AT = "not looked at yet"
#: The longest that one look at a host may take in all.
_LOOK_SECONDS = 60.0
#: Looks that are begun anew because this process did not run meanwhile.
_LOOKS_AWAY = 2
#: A QEMU in one of these is an end of a migration, not a guest to be found.
_NOT_A_GUEST = {RunState.INMIGRATE, RunState.POSTMIGRATE, RunState.FINISH_MIGRATE}


class Inventory:
    """Every host and every guest.

    :param hosts: as configured, with the state each had last.
    :param interval: seconds between two looks at a host on which nothing happens.
    :param rules: gives a guest what the configuration says of it (policy, group, what it requires).
    :param changed: called when something is different from before.
    """

    def __init__(
        self,
        hosts: Iterable[Host],
        *,
        site: Site,
        interval: float = LimitsSettings().refresh_interval,
        rules: Callable[[Guest], Guest] = lambda guest: guest,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._known = KnownHosts(replace(host, up=False, error=NOT_LOOKED_AT) for host in hosts)
        self.site = site
        self._rules = rules
        self._changed = changed
        self._looking = {name: asyncio.Lock() for name in self._known}
        #: Of every look under way: the guests that were heard to move or to end since it began.
        self._meanwhile: dict[str, set[str]] = {}
        #: Looks that somebody waits for and that have not begun yet.
        self._queued: dict[str, asyncio.Future[None]] = {}
        self._duplicates = Duplicates()
        #: Hosts that nobody has tried to look at yet.
        self._unseen = set(self._known)
        self._all_seen = asyncio.Event()
        #: When hosts are looked at; :meth:`LookSchedule.run` has to run.
        self.schedule = LookSchedule(
            self._known,
            site=site,
            look=self.look,
            looks_now=lambda name: self._looking[name].locked(),
            interval=interval,
        )
        self._log = logs.logger()

    # --- asking ------------------------------------------------------------------------------------------------------

    def hosts(self) -> list[Host]:
        """Return all hosts, in the order of the configuration."""
        return [known.host for known in self._known.values()]

    def host(self, name: str) -> Host | None:
        """Return the host of that name, or ``None``."""
        known = self._known.get(name)
        return known.host if known else None

    def memory_free(self, host: Host) -> int:
        """Return the free memory in bytes that its kernel reports, or what is left of less that was configured."""
        free = host.facts.memory_free_bytes
        if host.memory_bytes:
            taken = sum(guest.memory_bytes for guest in self.guests(host.name))
            free = min(free, max(0, host.memory_bytes - taken))
        return free

    def look_seconds(self, *names: str) -> float:
        """Return the seconds that the last looks at these hosts took, together."""
        return sum(self._known[name].took for name in names if name in self._known)

    def looked_at(self, name: str) -> datetime | None:
        """Return when that host last answered; ``None`` before it did."""
        return self._known[name].looked_at

    def looks(self) -> dict[str, tuple[float, float]]:
        """Return when the last look at each host began that showed its guests, and what the last one took."""
        return {name: (known.began, known.took) for name, known in self._known.items()}

    def guests(self, host: str | None = None) -> list[Guest]:
        """Return all guests, or those of one host."""
        chosen = self._known if host is None else (host,)
        return [guest for name in chosen for guest in self.guests_at(name)]

    def guests_at(self, host: str) -> tuple[Guest, ...]:
        """Return those of one host: the same object as before, where nothing of them is different."""
        guests = self._known[host].guests
        if not self._duplicates.marks:
            return guests
        return tuple(self._duplicates.marked(guest) for guest in guests)

    def find(self, which: str) -> list[Guest]:
        """Return every guest that may be meant; see :func:`migrator.core.inventory.find`."""
        if ":" not in which:
            called = self._known.called(which, which.partition("/")[2])
            found = find(which, (self._duplicates.marked(guest) for guest in called))
            if len(found) == 1:
                return found
        return find(which, self.guests())  # by its socket, or none, or several in the order of the hosts

    def guests_of(self, key: str) -> list[Guest]:
        """Return every guest of that key: one that was seen at two hosts is there twice."""
        return [
            self._duplicates.marked(guest)
            for known in self._known.holding(key)
            for guest in known.by_key[key]
        ]

    # --- changing ----------------------------------------------------------------------------------------------------

    def set_state(self, name: str, state: HostState) -> None:
        """Set what the host may be used for from now on."""
        known = self._known[name]
        if known.host.state is not state:
            known.host = replace(known.host, state=state)
            self._changed()

    def set_cordoned(self, name: str, cordoned: bool) -> None:
        """Say whether new guests may come there."""
        known = self._known[name]
        if known.host.cordoned is not cordoned:
            known.host = replace(known.host, cordoned=cordoned)
            self._changed()

    def learn(self, name: str, learned: LearnedSpeeds) -> None:
        """Note what a host's link and the paths from it carry; of one that is not known nothing is."""
        known = self._known.get(name)
        if known is not None and known.host.learned != learned:
            known.host = replace(known.host, learned=learned)
            self._changed()

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call this when something is different from before."""
        self._changed = changed

    def configure(
        self, hosts: Iterable[Host], *, rules: Callable[[Guest], Guest], interval: float | None = None
    ) -> None:
        """Take a new configuration over; hosts keep their state and what was read of them.

        :param interval: as for the class; ``None``: as before.
        """
        self._rules = rules
        self.schedule.interval = self.schedule.interval if interval is None else interval
        known: dict[str, KnownHost] = {}
        for host in hosts:
            old = self._known.get(host.name)
            if old is None:
                known[host.name] = KnownHost(replace(host, up=False, error=NOT_LOOKED_AT))
            else:
                kept = replace(
                    host,
                    state=old.host.state,
                    cordoned=old.host.cordoned,
                    up=old.host.up,
                    error=old.host.error,
                    facts=old.host.facts,
                    learned=old.host.learned,
                )
                old.shown = {}  # what the configuration says of guests may be another
                # The same object: a look that is under way writes to it.
                old.host = _with_link(kept)
                known[host.name] = old
            self._looking.setdefault(host.name, asyncio.Lock())
        self._known.configure(known)
        self.schedule.look_soon(*known)
        self._changed()

    def moved(self, guest: Guest, host: str, socket: str, pid: int | None) -> None:
        """Note that a guest has arrived at a host; both hosts are looked at soon, see :meth:`LookSchedule.notice`."""
        self._forget(guest.key)
        if host in self._known:
            self._known.put(
                host,
                guest.key,
                replace(guest, host=host, socket=socket, pid=pid, process="", disk_bytes_to={}),
            )
        for name in (guest.host, host):
            self.schedule.notice(name)
        self._changed()

    def gone(self, guest: Guest, *hosts: str) -> None:
        """Note that a guest is not on these hosts any more: it has ended, or somebody took it elsewhere."""
        self._forget(guest.key, hosts)
        self._changed()

    def _forget(self, key: str, hosts: Collection[str] = ()) -> None:
        """Drop a guest from these hosts, or from all where none is named; looks under way are not believed of it."""
        for known in self._known.holding(key):
            if not hosts or known.host.name in hosts:
                self._known.put(known.host.name, key)
        for name, meanwhile in self._meanwhile.items():
            meanwhile.add(key)
            self.schedule.notice(name)

    def note_dirty_rate(self, key: str, bytes_per_second: float) -> None:
        """Note a dirty rate that was just measured."""
        for known in self._known.holding(key):
            rated = [
                replace(guest, dirty_rate_bytes_per_second=bytes_per_second) for guest in known.by_key[key]
            ]
            self._known.put(known.host.name, key, *rated)

    def note_disk_bytes(self, key: str, target: str, copied: int) -> None:
        """Note how much of a guest's disks would be copied to a host, as was just found."""
        for known in self._known.holding(key):
            guests = known.by_key[key]
            if all(guest.disk_bytes_to.get(target, 0) == copied for guest in guests):
                continue
            noted = [
                replace(guest, disk_bytes_to={**guest.disk_bytes_to, target: copied}) for guest in guests
            ]
            self._known.put(known.host.name, key, *noted)
            self._changed()

    # --- looking -----------------------------------------------------------------------------------------------------

    async def look(self, name: str) -> Host:
        """Look at one host now; never raises for a host that cannot be reached: it is then down, with its reason."""
        async with self._looking[name]:
            known = self._known[name]
            before = (known.host, known.guests)
            meanwhile = self._meanwhile[name] = set()
            self.schedule.begun(name)
            began = asyncio.get_running_loop().time()
            try:
                look = await self._seen(name)
                with contained(f"the look at host {name}"):
                    guests = self._take(known, look.guests, meanwhile)
            except (MigratorError, TimeoutError) as error:
                why = str(error) or f"host {name}: it did not answer within {_LOOK_SECONDS:.0f} s"
                if known.host.up:
                    self._log.warning("host is down", host=name, error=why)
                known.host = replace(known.host, up=False, error=why)
            else:
                host = _with_link(replace(known.host, up=True, error="", facts=look.facts))
                if host != known.host:
                    known.host = host
                if guests != known.guests:
                    self._known.replace(known, guests)
                known.looked_at, known.began = datetime.now(UTC), began
            finally:
                self._meanwhile.pop(name, None)
                known.ended = asyncio.get_running_loop().time()
                known.took = known.ended - began
            self._unseen.discard(name)
            if not self._unseen:
                self._all_seen.set()
            marks = self._duplicates.marks
            self._judge_duplicates(name)
            if (known.host, known.guests) != before or self._duplicates.marks != marks:
                self._changed()
            return known.host

    async def _seen(self, name: str) -> HostLook:
        """Look at a host; again where that failed because this process did not run, which says nothing of the host."""
        for left in range(_LOOKS_AWAY, -1, -1):
            with Absence() as away:
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        with contained(f"the look at host {name}"):
                            return await self.site.look(name)
                except (MigratorError, TimeoutError) as error:
                    if not left or not away.seconds:
                        raise
                    self._log.info("looked at again: this process did not run", host=name, error=str(error))
        raise AssertionError

    async def first_look(self, timeout: float) -> None:
        """Wait until every host was looked at once, whether it answered or not, but no longer than `timeout`."""
        try:
            async with asyncio.timeout(timeout if self._unseen else 0):
                await self._all_seen.wait()
        except TimeoutError:
            pass  # one of them is slow: what the others said is all there is

    def _take(self, host: KnownHost, new: Sequence[Guest], meanwhile: set[str]) -> tuple[Guest, ...]:
        before, shown = host.by_key, host.shown
        # It may have been seen before it went, or not yet.
        seen = [guest for key in meanwhile for guest in before.get(key, ())]
        for guest in new:
            if guest.key in meanwhile or (guest.run in _NOT_A_GUEST and not guest.obstacle):
                continue
            known = before[guest.key][-1] if guest.key in before else None
            # The same object where it is as before: whoever has looked at that need not again.
            if known is not None and shown.get(guest.key) == guest:
                seen.append(known)
                continue
            rate = known.dirty_rate_bytes_per_second if known is not None else None
            disks = known.disk_bytes_to if known is not None else {}
            now = self._rules(replace(guest, dirty_rate_bytes_per_second=rate, disk_bytes_to=disks))
            seen.append(known if known is not None and known == now else now)
        host.shown = {guest.key: guest for guest in new}
        return tuple(sorted(seen, key=lambda guest: (guest.name, guest.key)))

    def doubled(self) -> Mapping[str, tuple[str, ...]]:
        """Return by uuid the hosts on which each guest that runs more than once was seen to run."""
        return self._duplicates.found

    def _judge_duplicates(self, looked_at: str) -> None:
        loop = asyncio.get_running_loop()
        again = self._duplicates.judge(
            self._known.take_changed(),
            looked_at=looked_at,
            began=lambda name: self._known[name].began if name in self._known else math.inf,
            now=loop.time(),
        )
        self.schedule.look_soon(*again)

    async def refresh(self, *names: str) -> None:
        """Look at these hosts, or at all: each look begins after this was called. Several who ask wait for the same."""
        async with asyncio.TaskGroup() as group:
            for name in names or self._known:
                group.create_task(self._refresh(name), name=f"refresh host {name}")

    async def _refresh(self, name: str) -> None:
        while (queued := self._queued.get(name)) is not None:
            await asyncio.wait({queued})
            if not queued.cancelled():
                return
        mine = self._queued[name] = asyncio.get_running_loop().create_future()
        try:
            async with self._looking[name]:
                pass  # one that is under way began before
            self._queued.pop(name)
            await self.look(name)
            mine.set_result(None)
        finally:
            if self._queued.get(name) is mine:
                del self._queued[name]
            mine.cancel()

    async def look_at_all(self, *, only_up: bool = False) -> None:
        """Look at every host once, together; or only at those that answered last."""
        async with asyncio.TaskGroup() as group:
            for name, known in self._known.items():
                if only_up and not known.host.up:
                    continue
                group.create_task(self.look(name), name=f"look at host {name}")


def _with_link(host: Host) -> Host:
    """Return the host with the speed that its card says, where none is configured."""
    read = host.facts.link_bytes_per_second
    if not read or (host.link_bytes_per_second and not host.link_is_read):
        return host
    return replace(host, link_bytes_per_second=read, link_is_read=True)


def one_guest(inventory: Inventory, which: str) -> Guest:
    """Return the guest of that key, uuid, name or HOST/NAME.

    :raise Refusal: there is none, or more than one.
    """
    found = inventory.find(which)
    if not found:
        raise Refusal("not-found", f"there is no guest {which}; see: migrator guests")
    if len(found) > 1:
        candidates = ", ".join(f"{guest.host}/{guest.name} ({guest.key})" for guest in found)
        raise Refusal("ambiguous", f"{which} may be any of {candidates}")
    return found[0]
