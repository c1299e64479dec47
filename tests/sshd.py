"""A real sshd of a test's own: its host key, its authorized_keys, its port; on a host of its own if wanted.

::

    with Sshd(tmp_path / "sshd", address=host.address, prefix=host.prefix) as sshd:
        access = SshAccess("alpha", sshd.config())
"""

from __future__ import annotations

import contextlib
import getpass
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from migrator.hosts.ssh_config import SshConfig
from migrator.settings.models import LimitsSettings
from tests.ports import free_port

#: What the service goes by where nothing is configured.
_LIMITS = LimitsSettings()
_LIMIT_SECONDS = 20.0


def _make_key(path: Path) -> None:
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, timeout=20)


class Sshd:
    """One sshd. Whatever ran under it ends with it.

    :param directory: for its files; made if it is not there.
    :param address: where it listens.
    :param prefix: a command that it is run through, which has to exec.
    :param options: further lines of its configuration.
    :param key: the client's private key; one of its own by default.
    """

    def __init__(
        self,
        directory: Path,
        *,
        address: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        options: Sequence[str] = (),
        key: Path | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        self.directory = directory
        self.address = address
        self.prefix = tuple(prefix)
        #: The client's private key.
        self.key = key or directory / "client"
        self.known_hosts = directory / "known_hosts"
        _make_key(directory / "host")
        _make_key(self.key)
        shutil.copy(self.key.with_suffix(".pub"), directory / "authorized_keys")
        self.port = 22 if prefix else free_port(address)
        self.trust()
        Path("/run/sshd").mkdir(exist_ok=True)  # where it wants to separate its privileges
        (directory / "config").write_text(
            "\n".join(
                [
                    f"ListenAddress {address}",
                    f"Port {self.port}",
                    f"HostKey {directory / 'host'}",
                    f"AuthorizedKeysFile {directory / 'authorized_keys'}",
                    "PasswordAuthentication no",
                    "PermitRootLogin prohibit-password",
                    "StrictModes no",  # the directory of a test belongs to whoever runs it
                    "UsePAM no",
                    "PidFile none",
                    "SetEnv SHLVL=2",  # bash reads no ~/.bashrc then: it may take longer than a test
                    *options,
                ]
            )
            + "\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def host_key_line(self) -> str:
        """For a file of known hosts."""
        public = (self.directory / "host.pub").read_text().split()
        name = self.address if self.port == 22 else f"[{self.address}]:{self.port}"
        return f"{name} {public[0]} {public[1]}\n"

    def trust(self) -> None:
        """Make the client know the host's key."""
        self.known_hosts.write_text(self.host_key_line)

    def start(self) -> None:
        """Start it (again) and wait until it listens."""
        program = shutil.which("sshd") or "/usr/sbin/sshd"
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self.prefix,
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    program,
                    "-D",
                    "-e",
                    "-f",
                    self.directory / "config",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _LIMIT_SECONDS
        while b"Server listening" not in (self.directory / "log").read_bytes().rpartition(b"@")[2]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd did not start: {(self.directory / 'log').read_text()}")
            time.sleep(0.005)

    def sessions(self) -> list[int]:
        """The pids of its connections' processes."""
        assert self._process is not None
        return [pid for pid in _children(self._process.pid) if not ended(pid)]

    def break_connections(self) -> int:
        """Kill every connection, not the server; what ran in them goes on as it likes. Returns how many there were."""
        pids = self.sessions()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def stop(self) -> None:
        """Kill the server and its connections."""
        if self._process is None:
            return
        self.break_connections()
        self._process.kill()
        self._process.wait(timeout=_LIMIT_SECONDS)
        self._process = None
        with (self.directory / "log").open("ab") as log:
            log.write(b"@\n")

    def config(self, **different: Any) -> SshConfig:
        """How to reach it."""
        how: dict[str, Any] = {
            "host": self.address,
            "port": self.port,
            "user": getpass.getuser(),
            "key": self.key,
            "known_hosts": self.known_hosts,
            "max_sessions": _LIMITS.ssh_sessions,
            "connect_seconds": _LIMITS.ssh_connect_timeout,
            "keepalive_seconds": _LIMITS.ssh_keepalive,
        }
        return SshConfig(**{**how, **different})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def ended(pid: int) -> bool:
    """Whether there is no process of that pid, or only its zombie."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(fd)
