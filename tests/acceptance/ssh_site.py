"""Hosts of a served site that are reached over SSH, from a host of the service's own."""

from __future__ import annotations

import contextlib
import getpass
import json
from collections.abc import Iterator
from pathlib import Path

from tests.acceptance.service_site import LiveSite
from tests.sshd import Sshd

#: The host that the service runs on; it is none of those that the service knows.
CONTROL = "control"


@contextlib.contextmanager
def reached_over_ssh(
    site: LiveSite, directory: Path, *names: str, each_other: bool = False
) -> Iterator[dict[str, Sshd]]:
    """Give each of these hosts an sshd, and the service, which is not started yet, the way to it.

    :param names: all hosts of the site but :data:`CONTROL`, which is the last of them.
    :param each_other: the hosts can log in to each other.
    """
    within: tuple[str, ...] = ()
    if each_other:
        config = directory / "ssh_config"
        keys = "".join(f"IdentityFile {directory}/sshd-{name}/client\n" for name in names)
        known = " ".join(f"{directory}/sshd-{name}/known_hosts" for name in names)
        config.write_text(f"Host *\n{keys}UserKnownHostsFile {known}\n")
        script = 'mount --bind "$0" /etc/ssh/ssh_config && exec "$@"'
        within = ("unshare", "--mount", "sh", "-c", script, str(config))
    with contextlib.ExitStack() as stack:
        servers = {}
        for name in names:
            host = site.host(name)
            servers[name] = stack.enter_context(
                Sshd(directory / f"sshd-{name}", address=host.address, prefix=(*host.prefix, *within))
            )
            ssh = (
                f'ssh = "{getpass.getuser()}@{host.address}"\nkey_file = "{servers[name].key}"\n'
                f'known_hosts = "{servers[name].known_hosts}"'
            )
            # Over SSH a namespace looks like the whole machine, on which other tests have QEMUs.
            site.change_host(
                name,
                (f"prefix = {json.dumps(list(host.prefix))}", ssh),
                ('look_for = "processes"', 'look_for = "sockets"'),
            )
        before, _, _ = site.config.read_text().partition(f'[[hosts]]\nname = "{CONTROL}"')
        quick = 'ssh_keepalive = "1s"\nssh_connect_timeout = "5s"\nfirst_pause = "200ms"\nattempts = 9\n'
        site.config.write_text(before.replace("[limits]\n", f"[limits]\n{quick}"))
        site.prefix = site.host(CONTROL).prefix
        yield servers


def tunnels(site: LiveSite, target: str) -> list[int]:
    """Return the SSH clients that carry a stream to a host."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
            carries = words[0] == "ssh" and "ExitOnForwardFailure=yes" in words
            if carries and site.host(target).address in words:
                found.append(int(directory.name))
    return found
