"""Guests that are shut off: started without running, so that they can be moved as others are, and put away again."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence

from migrator.core.inventory import Guest
from migrator.core.model import RunState
from migrator.core.process.command_line import CommandLine
from migrator.core.shut_off_guest import ShutOffGuest, read
from migrator.errors import HostError, QemuError, UsageError
from migrator.hosts.launch import Launcher
from migrator.hosts.run_directories import RunDirectory, finish_cleanup
from migrator.site.connections import HostConnections
from migrator.site.from_settings import ConfiguredSite
from migrator.site.host_directory import image_paths
from migrator.site.launch_config import place
from migrator.site.replication import launcher_at

#: Time-out of a small command, and until a QEMU that was started answers, in seconds.
_SHORT, _START_SECONDS = 15.0, 20.0
# Arguments: a path, its owner and its mode. What is there already is not written over; the same content is let pass.
_PUT = r"""
t=$1.migrator-$$
umask 077
cat >"$t" && { [ "$(id -u)" != 0 ] || chown -- "$2" "$t"; } && chmod -- "$3" "$t" && sync -- "$t" ||
  { rm -f -- "$t"; exit 1; }
ln -T -- "$t" "$1" 2>/dev/null || cmp -s -- "$t" "$1" || { rm -f -- "$t"; echo "$1 is there already" >&2; exit 1; }
rm -f -- "$t"
"""


class ShutOffGuests:
    """Handles descriptions of guests that are shut off, and their QEMUs that never run."""

    def __init__(self, site: ConfiguredSite) -> None:
        self._site = site
        self._connections: HostConnections = site.connections

    async def text(self, host: str, path: str) -> str:
        """Return a description as it is.

        :raise HostError: it cannot be read.
        """
        return await self._run(host, "cat", "--", path)

    async def read(self, host: str, path: str) -> ShutOffGuest:
        """Return whose description a file is.

        :raise UsageError: it is none.
        """
        return read(await self.text(host, path), f"{path} on {host}")

    def check_paths(self, guest: ShutOffGuest, *, source: str, target: str) -> None:
        """Refuse a guest whose disks have other paths at a target: what starts it would name those that they have here.

        :raise UsageError: it has one.
        """
        paths = image_paths(self._connections, source, target)
        for image in CommandLine(guest.arguments).images():
            if (there := paths.at_target(image.path)) != image.path:
                raise UsageError(
                    f"{image.path} would be {there} on {target} (image_directories), and what starts the guest names "
                    "its path here: move it while it runs, or to a host where the path is the same"
                )

    async def start(self, host: str, guest: ShutOffGuest) -> str:
        """Start its QEMU, which does not run it; return the path of its monitor.

        :raise HostError: it does not start, in its own words; nothing is left.
        """
        launcher = self._launcher(host)
        run_dir = await launcher.choose_run_directory(guest.uuid)
        await launcher.make(run_dir, guest.uuid)
        where = place(run_dir)
        argv = guest.paused(pid_file=run_dir.pid_file, monitors=[where.control, where.rescue])
        await launcher.start(run_dir, argv)
        try:
            await self._answers(host, where.control, launcher, run_dir)
        except BaseException:
            await finish_cleanup(launcher.discard(run_dir), name=f"clear {run_dir.path}")
            raise
        return where.control

    async def _answers(self, host: str, socket: str, launcher: Launcher, run_dir: RunDirectory) -> None:
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while True:
            try:
                end = await self._connections.open(host, socket, role="source")
            except (QemuError, HostError):
                if not await launcher.is_running(run_dir) or asyncio.get_running_loop().time() > deadline:
                    raise HostError(host, await launcher.explain_exit(run_dir)) from None
                await asyncio.sleep(0.1)
            else:
                await end.close()
                return

    async def put_away(self, host: str, uuid: str) -> None:
        """End the QEMU of a guest that has never run.

        :raise UsageError: it is not there, or it runs, or ran.
        :raise QemuError: it cannot be asked, or does not end.
        """
        found = [each for each in (await self._site.look(host)).guests if each.uuid == uuid]
        if len(found) != 1:
            raise UsageError(f"guest {uuid} is not on {host}")
        socket = found[0].socket
        end = await self._connections.open(host, socket, role="source")
        try:
            run = (await end.observe()).run
            if run not in (RunState.PRELAUNCH, RunState.INMIGRATE):
                raise UsageError(
                    f"guest {uuid} on {host} is not shut off any more: it is {run}; nothing was ended"
                )
            if not await end.quit():
                raise QemuError(end.name, "it does not end")
        finally:
            await end.close()
        await self._site.clear(found[0])

    async def copy_description(self, path: str, *, source: str, target: str) -> None:
        """Have a description at the target too, with the owner and mode that it has.

        :raise HostError: something else is there under that name, or it cannot be written.
        """
        text = await self.text(source, path)
        owner, mode = (await self._run(source, "stat", "-L", "-c", "%u:%g %a", "--", path)).split()
        await self._run(target, "sh", "-c", _PUT, "sh", path, owner, mode, stdin=text.encode())

    async def put_aside(self, host: str, path: str, *, migration: str) -> str:
        """Give the description of a guest that has left another name; return that.

        :raise HostError: it cannot be done.
        """
        aside = f"{path}.left-{migration}"
        await self._run(host, "mv", "-n", "-T", "--", path, aside)
        return aside

    def _launcher(self, host: str) -> Launcher:
        return launcher_at(self._connections, host, self._site.how(Guest(key="", host=host), host))

    async def _run(self, host: str, *argv: str, stdin: bytes = b"") -> str:
        done = await self._connections.access(host).run(argv, timeout=_SHORT, stdin=stdin)
        if done.status:
            raise HostError(host, f"{shlex.join(argv[:1])}: {done.complaint or f'status {done.status}'}")
        return done.text


def described_paths(paths: Sequence[str]) -> None:
    """Refuse paths of descriptions that depend on where a command is run.

    :raise UsageError: one is relative.
    """
    for path in paths:
        if not path.startswith("/"):
            raise UsageError(f"{path} is no absolute path on the host")
