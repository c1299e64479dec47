"""A directory of every lab host's own, for disks that hosts do not share."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from migrator.testing.network import NetworkError
from migrator.testing.site import LabSite


@contextlib.contextmanager
def own_images(site: LabSite, *, size: str = "64m") -> Iterator[Path]:
    """Give every host of a site a directory of its own, and return its path, the same on all.

    Before a guest is started or the service is configured; for hosts that are namespaces.

    :param size: what each may hold, as ``mount`` takes it.
    :raise NetworkError: when it cannot be made.
    """
    directory = site.directory / "images"
    directory.mkdir()
    script = 'mount -t tmpfs -o "size=$0" images "$1" && echo ready && exec sleep infinity'
    with contextlib.ExitStack() as stack:
        for host in site.hosts:
            holder = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"),
                    *("sh", "-c", script, size, str(directory)),
                ],
                stdout=subprocess.PIPE,
            )
            stack.enter_context(holder)
            stack.callback(holder.kill)
            assert holder.stdout is not None
            if holder.stdout.readline() != b"ready\n":
                raise NetworkError(f"{host!r} cannot be given files of its own")
            host.mounts = holder.pid
        site.write_config()
        yield directory
