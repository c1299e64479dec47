"""The guests of one host: its QEMUs found, asked, and told apart.

What counts is the process. A QEMU that cannot be asked (its monitor is held, silent, closed to us, or nowhere to be
found) is a guest that cannot be asked, never one that is not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from migrator.core.inventory import Guest
from migrator.core.managed_guest import LIBVIRT
from migrator.core.model import RunState
from migrator.core.preflight.managers import ProcessSigns, find_manager
from migrator.errors import Fault, HostError, NobodyListens, Occupied, QemuError
from migrator.faults import contained
from migrator.hosts.access import HostAccess
from migrator.hosts.host_config import HostConfig
from migrator.hosts.processes import FoundProcess
from migrator.hosts.sockets import FoundSocket, HostSurvey, find_sockets, literal, survey_host
from migrator.machine import own_network
from migrator.qemu import naming
from migrator.qemu.identify import GuestIdentity, identify_at
from migrator.site import unreachable_guests
from migrator.site.connections import HostConnections
from migrator.site.guest_records import ELSEWHERE, guest_record, standing, with_distinct_keys

#: So often is looked again where a process may be at its end: where many end, another may be then.
_LOOKS_AT_ENDS = 3
#: Guests of one host that are asked at a time.
_ASKED_AT_ONCE = 16
#: Monitors of one process that are tried; one that is stopped greets at none.
_MONITORS_TRIED = 3
#: Seconds to wait for a greeting, and for that of a monitor that we wait at already.
_GREETING_SECONDS, _STILL_SECONDS = 1.0, 0.05
#: Seconds after which what may have been for a moment only is looked at again.
_AGAIN_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class _FoundQemu:
    """One QEMU, or what else listens at a socket under the patterns."""

    #: Under the patterns.
    sockets: tuple[FoundSocket, ...] = ()
    #: ``None``: it is no QEMU, or nobody can tell.
    process: FoundProcess | None = None


def _which(boot_id: str, process: FoundProcess | None) -> str:
    """Return which process it is, the same by whatever host of its machine it is seen; empty: that cannot be told."""
    if process is None or not (boot_id and process.network and process.started):
        return ""
    return f"{boot_id} {process.network} {process.pid} {process.started}"


def _has_own(found: _FoundQemu) -> bool:
    """Tell whether a socket under the patterns is the monitor that its process was started with."""
    paths = unreachable_guests.monitor_paths(found.process) if found.process is not None else ()
    return any(each.path in paths for each in found.sockets)


def _of_libvirt(guest: Guest, process: FoundProcess | None) -> Guest:
    """Return the guest with its manager where the arguments of its process alone tell that it is libvirt."""
    if process is None:
        return guest
    manager = find_manager(ProcessSigns(pid=process.pid, words=" ".join(process.words)))
    return replace(guest, managed_by=LIBVIRT) if manager.name == LIBVIRT else guest


class GuestDiscovery:
    """Looks at hosts; remembers every guest as it last could be asked."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections = connections
        #: By host and path of its socket.
        self.known: dict[tuple[str, str], Guest] = {}
        #: By host and pid, what a guest without a uuid is called whose first process that is.
        self._first: dict[tuple[str, int | None], str] = {}
        #: The host of every monitor that was silent, by its path on this machine.
        self.asked: dict[str, str] = {}
        #: Boot and network namespace of every host, as last seen.
        self._places: dict[str, tuple[str, str]] = {}
        #: Of every host, the pids of all QEMUs in its network, as last seen.
        self._qemus: dict[str, frozenset[int]] = {}
        #: Of every host, the processes that are its own: their monitors are, where their command lines have them.
        self._own: dict[str, frozenset[str]] = {}

    def qemus(self, host: str) -> frozenset[int]:
        """Pids of every QEMU in the network of a host, those that wait for a guest too, as last seen."""
        return self._qemus.get(host, frozenset())

    async def guests(self, host: str) -> list[Guest]:
        """Find the guests of a host.

        A guest whose monitor this controller holds as a source's is shown as it was before; a destination's is left
        out. QEMUs that only wait, or that a guest has left, are shown with the run state that says so.

        :raise HostError: the host cannot be asked, or not all of it.
        """
        access, config = self._connections.access(host), self._connections.config(host)
        waiting = self._waiting(host)
        seen = await survey_host(access, config.sockets)
        self._places[host] = seen.processes.boot_id, seen.processes.network
        self._first = {key: name for key, name in self._first.items() if key[0] != host}
        for each in seen.processes.qemus:
            named = {"boot_id": seen.processes.boot_id, "pid": each.pid, "start_time": each.started}
            self._first[host, each.pid] = each.named or naming.process_name(named)
        limit = asyncio.Semaphore(_ASKED_AT_ONCE)
        if config.processes and seen.processes.hidden:
            raise HostError(
                host,
                "the processes of other users are hidden there (hidepid), so whether guests run cannot be told: let "
                'the user that migrator has there into the group of gid= of /proc, or write look_for = "sockets"',
            )
        for _ in range(_LOOKS_AT_ENDS):
            if all(each.sure for each in seen.processes.qemus):
                break
            await asyncio.sleep(_AGAIN_SECONDS)  # it may have been at its end
            seen = await survey_host(access, config.sockets)
        seen = await self._with_room(access, host, seen)
        self._qemus[host] = frozenset(
            each.pid for each in seen.processes.qemus if each.network in ("", seen.processes.network)
        )
        found = self._without_others(host, seen, self._of(host, config, seen, waiting | self._waiting(host)))
        asked = await asyncio.gather(*(self._contained(host, config, each, limit) for each in found))
        boot_id = seen.processes.boot_id
        shown = [
            replace(_of_libvirt(guest, each.process), process=_which(boot_id, each.process))
            for guest, each in zip(asked, found, strict=True)
            if guest is not None
        ]
        guests = list(with_distinct_keys(shown))
        for key in [key for key in self.known if key[0] == host and self._connections.role(*key) is None]:
            del self.known[key]
        self.known |= {(host, guest.socket or f"pid {guest.pid}"): guest for guest in guests}
        return guests

    def opened(self, host: str, found: FoundSocket, identity: GuestIdentity, *, first: str) -> None:
        """Note the guest of a source that was opened to be driven before its host was looked at.

        Where a migration has stopped it, as at one that is taken up in postcopy, it counts at its host until that ends.
        """
        guest = guest_record(host, found, identity, first=first)
        self.known[host, found.path] = standing(guest, identity, self._connections.driver, ours=True)

    # --- finding -----------------------------------------------------------------------------------------------------

    async def _with_room(self, access: HostAccess, host: str, seen: HostSurvey) -> HostSurvey:
        """Where others wait to be accepted, looked at again: it may have been for a moment only."""
        waiting = [
            each.path for each in seen.sockets if each.waiting and not await self._knocked(host, each.path)
        ]
        if not waiting:
            return seen
        await asyncio.sleep(_AGAIN_SECONDS)
        again = {each.path: each for each in await find_sockets(access, [literal(path) for path in waiting])}
        return replace(seen, sockets=[again.get(each.path, each) for each in seen.sockets])

    async def _knocked(self, host: str, path: str) -> bool:
        return self._connections.pending_connects.is_pending(
            await self._connections.access(host).forward(path)
        )

    def _waiting(self, host: str) -> set[str]:
        """Return prefixes of the socket paths of our own destinations."""
        held = (
            path
            for (name, path), role in self._connections.held.items()
            if name == host and role == "destination"
        )
        return {*held, *(f"{directory}/" for directory in self._connections.starting_directories(host))}

    def _of(
        self, host: str, config: HostConfig, seen: HostSurvey, waiting: Collection[str]
    ) -> list[_FoundQemu]:
        """Sockets that somebody listens at, those of one process together; and QEMUs without one."""
        qemus = {each.pid: each for each in seen.processes.qemus}
        named = {path: each for each in qemus.values() for path in unreachable_guests.monitor_paths(each)}
        groups: dict[int | str, list[FoundSocket]] = {}
        for each in seen.sockets:
            pid = each.pid
            if not each.listening and each.path in named:
                pid = named[each.path].pid  # ss does not show what is in another network namespace
            elif not each.listening:
                continue
            groups.setdefault(each.path if pid is None else pid, []).append(replace(each, pid=pid))
        found = [
            _FoundQemu(sockets=tuple(sockets), process=qemus.get(key) if isinstance(key, int) else None)
            for key, sockets in groups.items()
        ]
        if config.processes:
            strangers = (each for each in qemus.values() if each.pid not in groups)
            found += [_FoundQemu(process=each) for each in self._ours(host, config, seen, strangers, waiting)]
        return found

    def _without_others(self, host: str, seen: HostSurvey, found: list[_FoundQemu]) -> list[_FoundQemu]:
        """Leave out the QEMUs that other hosts of this machine have as their own.

        A link among this one's sockets leads to such a QEMU where its guest moved there from here: it is made at the
        path by which people know the guest's monitor.
        """
        boot_id = seen.processes.boot_id
        self._own[host] = frozenset(
            {_which(boot_id, each.process) for each in found if _has_own(each)} - {""}
        )
        others = {which for name, own in self._own.items() if name != host for which in own}
        return [each for each in found if _has_own(each) or _which(boot_id, each.process) not in others]

    def _ours(
        self,
        host: str,
        config: HostConfig,
        seen: HostSurvey,
        strangers: Iterable[FoundProcess],
        waiting: Collection[str],
    ) -> Iterable[FoundProcess]:
        """Yield those QEMUs without a socket under the patterns that run on this host and are guests."""
        there = seen.processes
        # A prefix that leads into a network namespace makes that a host of its own on this machine.
        whole = there.whole_machine and (not config.prefix or there.network == own_network())
        others = {place for name, place in self._places.items() if name != host}
        with_sockets = {
            each.words
            for each in there.qemus
            if each.listens and any(s.pid == each.pid for s in seen.sockets)
        }
        started: set[tuple[str, ...]] = set()
        for each in strangers:
            elsewhere = each.network not in ("", there.network)
            if elsewhere and (not whole or (there.boot_id, each.network) in others):
                continue
            if any(
                path.startswith(tuple(waiting)) or self._connections.role(host, path) == "destination"
                for path in unreachable_guests.monitor_paths(each)
            ):
                continue
            if any(
                fnmatchcase(path, pattern)
                for path in unreachable_guests.monitor_paths(each)
                for pattern in config.others
            ):
                continue
            if not each.listens and each.monitors and each.daemonizes:
                # It waits until the QEMU that it began is up, and ends then.
                if each.words in with_sockets or each.words in started:
                    continue
                started.add(each.words)
            yield each

    # --- asking ------------------------------------------------------------------------------------------------------

    async def _contained(
        self, host: str, config: HostConfig, found: _FoundQemu, limit: asyncio.Semaphore
    ) -> Guest | None:
        """The guest in it; of one that we fail at nobody knows more than before, and the others do not notice."""
        try:
            with contained(f"the look at a guest of host {host}"):
                return await self._ask(host, config, found, limit)
        except Fault as fault:
            pid = found.process.pid if found.process is not None else None
            first = found.sockets[0] if found.sockets else FoundSocket(path="", pid=pid)
            return replace(
                self._as_known(host, first),
                lost_contact=True,
                obstacle=str(fault),
                obstacle_code="monitor-silent",
            )

    async def _ask(
        self, host: str, config: HostConfig, found: _FoundQemu, limit: asyncio.Semaphore
    ) -> Guest | None:
        """The guest in it; ``None`` where there is none."""
        if not found.sockets:
            return self._unmonitored(host, config, found)
        if held := self._held(host, found.sockets):
            return None if held[1] == "destination" else self._as_known(host, held[0])
        for each in found.sockets:
            if each.libvirt:
                text = "libvirt manages it: move it with virsh migrate"
                return replace(self._as_known(host, each), obstacle=text, obstacle_code="libvirt")
        silent: FoundSocket | None = None
        failure: QemuError | None = None
        for each in sorted(found.sockets, key=lambda each: each.busy)[:_MONITORS_TRIED]:
            try:
                async with limit:
                    identity = await self._identify(host, each)
                return standing(self._guest(host, each, identity), identity, self._connections.driver)
            except Occupied:
                silent = silent or each
            except QemuError as error:
                if not isinstance(error, NobodyListens):
                    failure = failure or error
        if held := self._held(host, found.sockets):  # we took it meanwhile
            return None if held[1] == "destination" else self._as_known(host, held[0])
        if silent is not None:
            return self._silent(host, silent)
        return await self._dumb(host, config, found, failure)

    def _silent(self, host: str, silent: FoundSocket) -> Guest:
        guest = replace(self._as_known(host, silent), lost_contact=True)
        if silent.busy:
            text = f"its monitor is held by {silent.holders}: close that, or give QEMU a second -qmp"
            return replace(guest, obstacle=text, obstacle_code="monitor-held")
        text = (
            f"its monitor {silent.path} does not greet: QEMU is stopped or stuck, or a client holds it that cannot be "
            "seen from its host"
        )
        return replace(guest, obstacle=text, obstacle_code="monitor-silent")

    async def _dumb(
        self, host: str, config: HostConfig, found: _FoundQemu, failure: QemuError | None
    ) -> Guest | None:
        """Nothing that speaks QMP could be opened: its process may have ended meanwhile."""
        paths = [literal(each.path) for each in found.sockets]
        seen = await survey_host(self._connections.access(host), paths)
        alive = {each.pid: each for each in seen.processes.qemus}
        process = alive.get(found.process.pid) if found.process is not None else None
        if found.process is not None and process is None:
            return None  # it has ended
        if process is None and not (
            failure and any(each.listening and each.pid is None for each in seen.sockets)
        ):
            return None  # nobody listens any more, or what does is no QEMU and speaks no QMP
        if failure is None:
            return self._unmonitored(host, config, replace(found, process=process))
        first = found.sockets[0]
        text = f"its monitor {first.path} cannot be used: {failure}"
        guest = self._as_known(host, first)
        return replace(guest, lost_contact=True, obstacle=text, obstacle_code="monitor-silent")

    def _unmonitored(self, host: str, config: HostConfig, found: _FoundQemu) -> Guest | None:
        process = found.process
        if process is None:
            return None
        known = next(
            (guest for (name, _), guest in self.known.items() if name == host and guest.pid == process.pid),
            None,
        )
        if known is None or (known.uuid and process.uuid not in ("", known.uuid)):
            identity = GuestIdentity(
                uuid=process.uuid, name=process.name, run=RunState.OTHER, memory_bytes=process.memory_bytes
            )
            known = self._guest(host, FoundSocket(path="", pid=process.pid), identity)
        return replace(
            known,
            lost_contact=True,
            monitored=False,
            obstacle=unreachable_guests.why_unreachable(config, process),
            obstacle_code="no-monitor",
        )

    def _held(self, host: str, sockets: Iterable[FoundSocket]) -> tuple[FoundSocket, str] | None:
        """The socket of these that this controller holds, with its role."""
        for each in sockets:
            if role := self._connections.role(host, each.path):
                return each, role
        return None

    async def _identify(self, host: str, found: FoundSocket) -> GuestIdentity:
        local = await self._connections.access(host).forward(found.path)
        name, pending_connects = f"{host}:{found.path}", self._connections.pending_connects
        waits = pending_connects.is_pending(local)
        if not waits and found.waiting:
            raise Occupied(name, "others wait for it already, and it accepts nobody")
        greeting = _STILL_SECONDS if waits else _GREETING_SECONDS
        try:
            return await identify_at(local, name=name, greeting=greeting, pending_connects=pending_connects)
        except Occupied:
            if pending_connects.is_pending(local):
                self.asked[local] = host
            raise

    def _as_known(self, host: str, found: FoundSocket) -> Guest:
        """A guest that cannot be asked: as it was, if it is the same process, else as its command line says."""
        known = self.known.get((host, found.path))
        if known is not None and found.pid in (known.pid, None):
            if known.run in ELSEWHERE:
                return known  # what stands in a migration stays in the way of all else: the host is not empty
            return replace(known, obstacle="", obstacle_code="", lost_contact=False, monitored=True)
        return self._guest(host, found, GuestIdentity(uuid=found.uuid, name=found.name))

    def _guest(self, host: str, found: FoundSocket, identity: GuestIdentity) -> Guest:
        return guest_record(host, found, identity, first=self._first.get((host, found.pid), ""))
