"""Why a QEMU without a monitor that can be seen cannot be asked, and what helps."""

from __future__ import annotations

from fnmatch import fnmatchcase

from migrator.hosts.host_config import HostConfig
from migrator.hosts.processes import FoundProcess


def monitor_paths(process: FoundProcess) -> list[str]:
    """The unix sockets that its command line gives it as monitors."""
    return [each.removeprefix("unix:") for each in process.monitors if each.startswith("unix:/")]


def why_unreachable(config: HostConfig, process: FoundProcess) -> str:
    """Why a QEMU without a monitor that we see cannot be asked, and what to do."""
    what = f"{process.program} (pid {process.pid})"
    for path in monitor_paths(process):
        if any(fnmatchcase(path, pattern) for pattern in config.sockets):
            return (
                f"the socket {path} of {what} is not to be seen there: it was removed, or the user that migrator is "
                "there may not enter its directory; give it that right, or start the guest anew"
            )
    for path in monitor_paths(process):
        return (
            f"the socket {path} of {what} is none of this host's sockets: add it to them in the configuration"
        )
    if process.monitors:
        return (
            f"the monitor of {what} is at {process.monitors[0]}, where migrator does not look: give it a second one, "
            "-qmp unix:/run/qemu/NAME.qmp,server=on,wait=off, at its next start"
        )
    return (
        f"{what} has no QMP monitor: give it one, -qmp unix:/run/qemu/NAME.qmp,server=on,wait=off, at its next start, "
        "and shut it down by other means until then"
    )
