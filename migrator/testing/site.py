"""A whole site on this machine: hosts, guests in real QEMUs, and a service of its own; for the demo and for tests.

::

    with Site("alpha", "beta", "gamma", bytes_per_second=100e6) as site:
        await site.boot(Machine(name="web"), "alpha")
        site.serve()
        await site.until_served()
        site.command("evacuate", "alpha", "--wait")     # a `migrator` that asks this service
        site.instances(machine)                         # every process of that guest, whoever started it

Hosts are network namespaces where they can be made, else directories. Nothing of it outlives the block,
nor a process that is killed inside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from migrator.testing.cleanup_process import CleanupProcess
from migrator.testing.lab import GuestMachine, Lab, LabError, LabQemu, until
from migrator.testing.network import LabHost, LabHosts

#: What a link carries of payload.
_PAYLOAD_RATIO = 0.95


class LabSite:
    """Hosts of these names; see the module.

    :param bytes_per_second: of every host's link; ``None``: as fast as the machine goes.
    :param isolated: make network namespaces; by default where that is possible.
    :param extra: more lines of the configuration, before the hosts.
    :param host_extra: more lines for hosts, by name; read whenever the configuration is written.
    :param refresh_interval: of the service: between two looks at a host on which nothing happens.
    :param page: the service listens on loopback too, for a browser; see :meth:`page_url`.
    """

    def __init__(
        self,
        *names: str,
        bytes_per_second: float | None = None,
        isolated: bool | None = None,
        extra: str = "",
        host_extra: Mapping[str, str] | None = None,
        page: bool = False,
        refresh_interval: str = "5s",
    ) -> None:
        self._page = page
        self._refresh_interval = refresh_interval
        self._names = names
        self._speed = bytes_per_second
        self._extra = extra
        self._host_extra = {} if host_extra is None else host_extra
        self._stack = contextlib.ExitStack()
        self.hosts = LabHosts(*names, bytes_per_second=bytes_per_second, isolated=isolated)
        self.lab: Lab
        self.service: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.hosts)
            self.lab = stack.enter_context(Lab())
            self.directory = self.lab.directory
            stack.enter_context(CleanupProcess(self.directory))
            stack.callback(self._end_everything)
            (self.directory / "state").mkdir(mode=0o700)
            self.write_config()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # --- hosts and guests --------------------------------------------------------------------------------------------

    def host(self, name: str) -> LabHost:
        """Return one of the hosts."""
        return self.hosts[name]

    async def start(
        self, machine: GuestMachine, host: str, *, extra: Sequence[str] = (), **how: Any
    ) -> LabQemu:
        """Start a QEMU on a host; its guest may still be in its firmware."""
        label = f"{host}-{machine.uuid.hex[:8]}"
        return await self.lab.start(
            machine, prefix=self.hosts[host].prefix, label=label, extra=tuple(extra), **how
        )

    async def boot(
        self, machine: GuestMachine, host: str, *, extra: Sequence[str] = (), **how: Any
    ) -> LabQemu:
        """Start a guest on a host, and wait until it runs."""
        qemu = await self.start(machine, host, extra=extra, **how)
        await qemu.wait_beating()
        return qemu

    def instances(self, machine: GuestMachine) -> list[LabQemu]:
        """Return every living process that is, was or may become this guest, to be looked at by its rescue monitor."""
        return self.instances_of([machine])[machine.uuid]

    def instances_of(
        self, machines: Iterable[GuestMachine], *, among: Iterable[int] | None = None
    ) -> dict[UUID, list[LabQemu]]:
        """Return :meth:`instances` of several guests by uuid, from one look at the processes.

        :param among: only processes with one of these pids.
        """
        found: dict[UUID, list[LabQemu]] = {machine.uuid: [] for machine in machines}
        guests = {str(machine.uuid): machine for machine in machines}
        for pid, argv in self.processes(among):
            for word in guests.keys() & set(argv):
                with contextlib.suppress(ProcessLookupError):
                    found[guests[word].uuid].append(LabQemu.attach(guests[word], pid, _rescue(argv)))
        return found

    async def running(self, machine: GuestMachine) -> list[LabQemu]:
        """Return those of :meth:`instances` whose guest runs now."""
        return [qemu for qemu in self.instances(machine) if await qemu.runs()]

    def where(self, qemu: LabQemu) -> str:
        """Return the host that a process is on."""
        for name in self._names:
            # One that came from elsewhere may still name files of the host it was started on.
            if f"/run-{name}/" in _command(qemu.pid):
                return name
        for name in self._names:
            if f"-{name}-" in _command(qemu.pid):
                return name
        return "?"

    def processes(self, among: Iterable[int] | None = None) -> Iterator[tuple[int, list[str]]]:
        """Yield every QEMU of this site, with its arguments.

        :param among: only those with one of these pids.
        """
        everybody = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        for pid in everybody if among is None else among:
            argv = _command(pid).split("\0")
            if "qemu" in argv[0] and any(str(self.directory) in word for word in argv):
                yield pid, argv

    # --- the service -------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        """Path of the service's configuration."""
        return self.directory / "migrator.toml"

    @property
    def server(self) -> str:
        """Address of the service for ``--server``."""
        return f"unix:{self.directory}/api.sock"

    def write_config(self) -> None:
        """Write :attr:`config`, before the service starts or for it to reload."""
        lines = [
            '[http]\nsocket = "api.sock"\nmetrics_listen = "127.0.0.1:0"'
            + ('\nlisten = "127.0.0.1:0"' if self._page else ""),
            '[store]\npath = "state/journal.db"',
            f'[limits]\nlink_reserve = 0.05\nrefresh_interval = "{self._refresh_interval}"',
            # These guests are of this project's own making, for which it does not matter.
            '[[guests]]\nmatch = "*"\naccept = ["tcg-loses-writes"]',
            self._extra,
        ]
        for name in self._names:
            host, base = self.hosts[name], self.directory
            speed = "" if self._speed is None else f'link_speed = "{int(self._speed * _PAYLOAD_RATIO)}"\n'
            lines.append(
                f'[[hosts]]\nname = "{name}"\naddress = "{host.address}"\n'
                f"prefix = {json.dumps(list(host.prefix))}\n"
                f'sockets = ["{base}/*-{name}-*.qmp", "{base}/run-{name}/*/*.qmp"]\n'
                f'run_dir = "{base}/run-{name}"\nlog_dir = "{base}/log-{name}"\n'
                f'look_for = "{"sockets" if host.namespace is None else "processes"}"\n'
                f'memory = "4GiB"\nmemory_reserve = "0"\n{speed}{self._host_extra.get(name, "")}'
            )
        self.config.write_text("\n\n".join(lines) + "\n", encoding="utf-8")

    def serve(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the service; its log is in ``service.log``."""
        with (self.directory / "service.log").open("ab") as log:
            self.service = subprocess.Popen(
                [sys.executable, "-m", "migrator", "serve", "--config", str(self.config), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.service

    async def until_served(self, within: float = 60.0) -> None:
        """Wait until it answers.

        :raise LabError: with its log when it ends instead.
        """

        def answers() -> bool:
            if self.service is None or self.service.poll() is not None:
                raise LabError(f"the service ended: {self.log()}")
            with socket.socket(socket.AF_UNIX) as probe:  # its file is there before it listens
                return probe.connect_ex(str(self.directory / "api.sock")) == 0

        await until(answers, what="the service", within=within)

    def log(self) -> str:
        """Log of the service."""
        return (self.directory / "service.log").read_text(encoding="utf-8", errors="replace")

    def page_url(self) -> str:
        """Return where a browser finds the service's page; empty where it does not listen for one."""
        found = re.search(r"unix:[^\s\"']+api\.sock[\"', ]+(http://127\.0\.0\.1:\d+)", self.log())
        return found[1] if found and self._page else ""

    def stop(self, within: float = 60.0) -> int:
        """Send SIGTERM, and wait for its end; return its exit status."""
        if self.service is None:
            return 0
        self.service.terminate()
        try:
            return self.service.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.service is not None and self.service.poll() is None:
            self.service.kill()
            self.service.wait()

    def command(self, *words: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run ``migrator`` against this service."""
        return subprocess.run(
            [sys.executable, "-m", "migrator", *words],
            env={**os.environ, "MIGRATOR_SERVER": self.server, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def _end_everything(self) -> None:
        self.kill()
        # What the service started outlives it, as it should; not this site.
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            pids = [pid for pid, _ in self.processes()]
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _command(pid: int) -> str:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return ""


def _rescue(argv: Sequence[str]) -> Path:
    """Return the socket of the monitor that nobody uses."""
    for word in argv:
        if "rescue" in word:
            for part in word.replace("unix:", "path=").split(","):
                if part.startswith("path="):
                    return Path(part.removeprefix("path="))
    raise LabError(f"no rescue monitor in {argv}")
