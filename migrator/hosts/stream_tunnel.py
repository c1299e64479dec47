"""A tunnel for a migration's stream, made of OpenSSH's client: from host to host, or through the controller's machine.

Both QEMUs see 127.0.0.1 of their own hosts alone. Each tunnel is an ``ssh`` that runs `cat` at its other end and reads
our end of a pipe: when we close it, or are killed, ``cat`` ends, and the client waits for the connections that it still
carries, and ends with the last of them. So a stream outlives the controller that began it, and its tunnel nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from migrator.addresses import host_port
from migrator.core.findings import finding
from migrator.core.migration.tunnel_queue import TunnelCounters
from migrator.core.model import Finding
from migrator.errors import HostError
from migrator.hosts.access import Coprocess, HostAccess
from migrator.hosts.local import LocalAccess
from migrator.hosts.ssh_config import SshConfig
from migrator.ports import GuestProcess, PathHealth

LOOPBACK = "127.0.0.1"
#: Seconds for a connection, and for all that making a tunnel takes.
_CONNECT_SECONDS, _BEGIN_SECONDS = 10, 20.0
#: A tunnel over which nothing comes for three times as long has ended: a network that is cut leaves none behind.
_ALIVE_SECONDS = 10
#: Which port is free is found by taking one; so many are tried.
_PORTS, _TRIES = range(49_152, 60_999), 8
_BASIC = (
    *("-T", "-a", "-x", "-S", "none"),
    *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no"),
    *("-o", f"ConnectTimeout={_CONNECT_SECONDS}", "-o", "PermitLocalCommand=no", "-o", "LogLevel=ERROR"),
    *("-o", f"ServerAliveInterval={_ALIVE_SECONDS}", "-o", "ServerAliveCountMax=3"),
    *("-o", "Compression=no", "-o", "ControlMaster=no", "-o", "ExitOnForwardFailure=yes"),
)
#: A route that was found so long ago is looked for again.
_KNOWN_SECONDS = 60.0
_READY = "migrator-tunnel"
#: So many bytes may wait unsent in each of its sockets at first, where they can be given options.
_UNSENT_BYTES = 128 << 10
#: Nothing listens there; OpenSSH says whether it would have led there.
_UNUSED_PORT = 1
_REFUSED_HERE = ("administratively prohibited", "unknown channel type")


class TunnelRoute(StrEnum):
    """Way of a tunnel."""

    #: The source's host logs in to the destination's.
    HOSTS = "hosts"
    #: The controller logs in to both, and what goes from one to the other goes through its machine.
    CONTROLLER = "controller"


@dataclass(frozen=True, kw_only=True)
class TunnelEnd:
    """One host of a tunnel."""

    access: HostAccess
    #: Name or address of its SSH server as other hosts know it.
    server: str
    #: 0, and an empty user: as their SSH configuration says.
    port: int = 0
    user: str = ""
    #: How the controller logs in; ``None``: it is on this machine.
    ssh: SshConfig | None = None

    @property
    def is_here(self) -> bool:
        """Return whether 127.0.0.1 is the same there as for this process."""
        return isinstance(self.access, LocalAccess) and not self.access.prefix

    def login(self) -> list[str]:
        """Return the arguments of ``ssh`` with which another host logs in there."""
        port = ["-p", str(self.port)] if self.port else []
        return [*port, *(["-l", self.user] if self.user else []), "--", self.server]

    def own_login(self) -> list[str]:
        """Return those with which this machine does."""
        if self.ssh is None:
            return self.login()
        key = ["-i", str(self.ssh.key), "-o", "IdentitiesOnly=yes"] if self.ssh.key else []
        hosts = []
        if self.ssh.known_hosts:  # that file and no other, as for the controller's own connections
            hosts = [
                "-o",
                f'UserKnownHostsFile="{self.ssh.known_hosts}"',
                "-o",
                "GlobalKnownHostsFile=/dev/null",
            ]
        return [*key, *hosts, *self.login()]


class KnownRoutes:
    """Ways that were found a moment ago between hosts: those of a whole evacuation are looked for once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[float, TunnelRoute, str]] = {}

    def note(self, source: str, target: str, route: TunnelRoute, why: str) -> None:
        """Note one.

        :param why: why it is not the better one.
        """
        self._found[source, target] = time.monotonic(), route, why

    def recent(self, source: str, target: str) -> tuple[TunnelRoute, str] | None:
        """Return the route and its reason, ``None`` where it has to be looked for."""
        at, route, why = self._found.get((source, target), (-_KNOWN_SECONDS, TunnelRoute.HOSTS, ""))
        return (route, why) if time.monotonic() - at < _KNOWN_SECONDS else None


class SshTunnel:
    """Implements :class:`migrator.ports.StreamTunnel`.

    :param known: ways between hosts, shared with the tunnels of other migrations.
    """

    #: Where the destination listens.
    addresses = (LOOPBACK,)

    def __init__(self, source: TunnelEnd, target: TunnelEnd, *, known: KnownRoutes | None = None) -> None:
        self._source, self._target = source, target
        self._known = known or KnownRoutes()
        self._here = TunnelEnd(access=LocalAccess("this machine"), server=LOOPBACK)
        self._way: TunnelRoute | None = None
        #: Why it is not the better one.
        self._why = ""
        self._open: list[Coprocess] = []
        #: Those that take what is sent at its source: each process, and the port at which it does.
        self._senders: list[tuple[GuestProcess, int]] = []
        #: The sockets of such a process can be taken; ``None``: it was not tried.
        self._can_reach: bool | None = None

    @property
    def route(self) -> str:
        """See :meth:`migrator.ports.StreamTunnel.route`."""
        names = self._source.access.name, self._target.access.name
        match self._way:
            case TunnelRoute.HOSTS:
                return f"SSH from {names[0]} to {names[1]}"
            case TunnelRoute.CONTROLLER if self._passes_through:
                return f"SSH from {names[0]} to the controller's machine and from there to {names[1]}"
            case TunnelRoute.CONTROLLER:
                return f"SSH between {names[0]} and {names[1]}, of which one is the controller's machine"
        return ""

    @property
    def _passes_through(self) -> bool:
        """Return whether the controller's machine is a third one."""
        return not (self._source.is_here or self._target.is_here)

    async def probe(self, _: str, /) -> PathHealth:
        """Return whether the hosts can log in where the tunnel does, which takes packets of full size both ways."""
        try:
            if self._way is None:
                found = await self.check()
                return PathHealth(carries=self._way is not None, why=found[0].message if found else "")
            why = "; ".join(filter(None, [await self._login(*each) for each in self._logins()]))
        except HostError as error:
            return PathHealth(carries=None, why=str(error))
        return PathHealth(carries=not why, why=why)

    def _logins(self) -> list[tuple[TunnelEnd, Sequence[str], TunnelEnd]]:
        if self._way is TunnelRoute.HOSTS:
            return [(self._source, self._target.login(), self._target)]
        others = [end for end in (self._source, self._target) if not end.is_here]
        return [(self._here, end.own_login(), end) for end in others]

    # --- before anything is begun ------------------------------------------------------------------------------------

    async def check(self) -> Sequence[Finding]:
        """See :meth:`migrator.ports.StreamTunnel.check`."""
        names = self._source.access.name, self._target.access.name
        if self._way is None and (recent := self._known.recent(*names)) is not None:
            self._way, self._why = recent
        if self._way is not None:
            return self._findings(self._why)
        direct = await self._try(self._source, self._target.login(), self._target)
        if not direct:
            self._way = TunnelRoute.HOSTS
            self._known.note(*names, self._way, "")
            return ()
        others = [end for end in (self._source, self._target) if not end.is_here]
        reachable = all(end.ssh is not None for end in others)
        whys = [await self._try(self._here, end.own_login(), end) for end in others if reachable]
        if reachable and not any(whys):
            self._way, self._why = TunnelRoute.CONTROLLER, direct
            self._known.note(*names, self._way, self._why)
            return self._findings(self._why)
        text = "; ".join(dict.fromkeys([direct, *filter(None, whys)]))
        return (finding("stream-route", f"no SSH tunnel can be made: {text}"),)

    def _findings(self, why: str) -> Sequence[Finding]:
        if self._way is not TunnelRoute.CONTROLLER or not self._passes_through:
            return ()
        text = f"the stream goes by {self.route}, which has to carry all of it twice"
        return (finding("stream-through-controller", f"{text}: {why}" if why else text),)

    async def _try(self, runs: TunnelEnd, login: Sequence[str], to: TunnelEnd) -> str:
        """Return why one host cannot be logged in to from another, or forwards nothing; empty where it can."""
        if why := await self._login(runs, login, to):
            return why
        leads = await runs.access.run(
            ["ssh", "-o", "LogLevel=INFO", *_BASIC, "-W", f"{LOOPBACK}:{_UNUSED_PORT}", *login],
            timeout=_BEGIN_SECONDS,
        )
        if any(words in leads.complaint for words in _REFUSED_HERE):
            return f"{_from_to(runs, to)}: the SSH server there does not forward (AllowTcpForwarding)"
        return ""

    async def _login(self, runs: TunnelEnd, login: Sequence[str], to: TunnelEnd) -> str:
        can = await runs.access.run(["ssh", *_BASIC, *login, "true"], timeout=_BEGIN_SECONDS)
        return (
            f"{_from_to(runs, to)}: {can.complaint or f'ssh ended with {can.status}'}" if can.status else ""
        )

    # --- the tunnel --------------------------------------------------------------------------------------------------

    async def lead(self, uri: str) -> str:
        """See :meth:`migrator.ports.StreamTunnel.lead`."""
        if self._way is None and (found := await self.check()) and self._way is None:
            raise HostError(self._source.access.name, found[0].message)
        _, port = host_port(uri.partition(":")[2])
        if self._way is TunnelRoute.HOSTS:
            port = await self._begin(self._source, self._target.login(), "-L", port)
        else:
            if not self._target.is_here:
                port = await self._begin(self._here, self._target.own_login(), "-L", port)
            if not self._source.is_here:
                port = await self._begin(self._here, self._source.own_login(), "-R", port)
        return f"tcp:{LOOPBACK}:{port}"

    async def _begin(self, runs: TunnelEnd, login: Sequence[str], option: str, port: int) -> int:
        """Begin one ``ssh``; return the port that leads to `port` at its other side.

        :param option: ``-L``: the port is where it runs; ``-R``: where it logs in.
        :raise HostError: it cannot be made.
        """
        said = ""
        for _ in range(_TRIES):
            taken = secrets.choice(_PORTS)
            forward = f"{LOOPBACK}:{taken}:{LOOPBACK}:{port}"
            words = ["ssh", *_BASIC, option, forward, *login, f"echo {_READY}; exec cat >/dev/null"]
            # Its own words come with its output, and nobody reads them once it is ready.
            prefix = runs.access.prefix if isinstance(runs.access, LocalAccess) else ()
            script = 'echo "$$"; exec "$@" 2>&1'
            process = await runs.access.coprocess([*prefix, "sh", "-c", script, "sh", *words])
            self._open.append(process)
            pid, said = await self._until_ready(process, runs.access.name)
            if not said:
                if runs is self._source or self._source.is_here:
                    await self._note_sender(runs.access, pid, taken)
                return taken
            self._open.remove(process)
            process.close()
            if "in use" not in said and "forwarding failed" not in said and "forwardings" not in said:
                break
        raise HostError(runs.access.name, f"the SSH tunnel to {login[-1]} cannot be made: {said}")

    async def _until_ready(self, process: Coprocess, host: str) -> tuple[int, str]:
        """Return its pid, and why a tunnel is not there; empty once it is."""
        pid, said = 0, list[str]()
        try:
            async with asyncio.timeout(_BEGIN_SECONDS):
                async for line in process.lines:
                    text = line.decode(errors="replace").strip()
                    if text == _READY:
                        return pid, ""
                    if text.isdecimal() and not pid:
                        pid = int(text)
                    else:
                        said = [*said[-5:], text]
        except TimeoutError:
            said.append(f"no answer within {_BEGIN_SECONDS:g} s")
        except OSError as error:
            raise HostError(host, f"the SSH tunnel cannot be made: {error}") from error
        return pid, " ".join(said)[-500:] or "ssh ended without a word"

    # --- what waits in it --------------------------------------------------------------------------------------------

    async def can_be_shaped(self) -> bool:
        """See :meth:`migrator.ports.StreamTunnel.can_be_shaped`."""
        if self._way is None or (self._way is TunnelRoute.CONTROLLER and not self._source.is_here):
            return False
        access = self._here.access if self._way is TunnelRoute.CONTROLLER else self._source.access
        if self._can_reach is None:
            self._can_reach = False
            with contextlib.suppress(HostError, TimeoutError):
                async with asyncio.timeout(_BEGIN_SECONDS):
                    self._can_reach = await _reaches(access)
        return self._can_reach

    async def _note_sender(self, access: HostAccess, pid: int, port: int) -> None:
        with contextlib.suppress(HostError):
            if (process := await access.process(pid)) is not None:
                self._senders.append((process, port))
                await self._ask_sender(process, port, _UNSENT_BYTES)

    async def _ask_sender(self, process: GuestProcess, port: int, unsent_bytes: int) -> TunnelCounters | None:
        answer = await process.ask_sockets({"do": "forwarder", "port": port, "unsent": unsent_bytes})
        found = answer.get("counted")
        if not isinstance(found, dict):
            return None
        said = [found.get(name) for name in ("at", "entered", "left", "unsent", "waiting")]
        numbers = [float(each) for each in said if isinstance(each, int | float) and 0 <= each < 2**53]
        if len(numbers) < len(said):
            return None
        at, entered, left, unsent, waiting = numbers
        return TunnelCounters(
            at=at,
            entered_bytes=int(entered),
            left_bytes=int(left),
            unsent_bytes=int(unsent),
            waiting_bytes=int(waiting),
            unsent_limit_bytes=unsent_bytes,
        )

    async def keep_short(self, unsent_bytes: int) -> TunnelCounters | None:
        """See :meth:`migrator.ports.StreamTunnel.keep_short`: of the one that was made last, which the stream takes."""
        if not self._senders:
            return None
        try:
            return await self._ask_sender(*self._senders[-1], unsent_bytes)
        except HostError:
            return None

    def close(self) -> None:
        """See :meth:`migrator.ports.StreamTunnel.close`."""
        for sender, _ in self._senders:
            sender.close()
        self._senders.clear()
        for process in self._open:
            process.close()
        self._open.clear()


async def _reaches(access: HostAccess) -> bool:
    """Tell whether what a process of ours has open at a host can be taken there.

    :raise HostError: the host cannot be asked.
    """
    running = await access.coprocess(["sh", "-c", 'echo "$$"; exec cat >/dev/null'])
    try:
        async for line in running.lines:
            process = await access.process(int(line))
            if process is None:
                return False
            try:
                return not (await process.ask_sockets({"do": "reach"})).get("refused", "")
            finally:
                process.close()
        return False
    finally:
        running.close()


def _from_to(runs: TunnelEnd, to: TunnelEnd) -> str:
    return f"from {runs.access.name} to {to.access.name}"
