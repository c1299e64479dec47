"""The SSH connection to one host: opened when it is first needed, and again after it was lost."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Callable
from pathlib import Path

import asyncssh

from migrator.errors import HostError
from migrator.hosts.ssh_config import SshConfig

#: Files in which the keys of hosts are looked up, where the configuration names none.
_KNOWN_HOSTS = (Path("~/.ssh/known_hosts"), Path("/etc/ssh/ssh_known_hosts"))
#: Seconds between two attempts to connect, after the first that failed; doubled up to the second.
_PAUSES_SECONDS = (0.2, 5.0)
_KEEPALIVES = 3
#: How often a connection is asked whether it lives while nothing depends on it: there may be a thousand of them.
_IDLE_SECONDS = 30.0


class SshConnection:
    """The connection to one host.

    :param in_use: tells whether a migration or a command depends on the present connection.
    """

    def __init__(self, name: str, config: SshConfig, *, in_use: Callable[[], bool]) -> None:
        self.name = name
        self._config = config
        self._in_use = in_use
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting: asyncio.Task[asyncssh.SSHClientConnection] | None = None
        self._pause = 0.0
        self._closed = False
        #: Keys are others than those that the connection was opened with.
        self._outdated = False

    def configure(self, config: SshConfig) -> None:
        """Use this configuration from now on.

        A connection that was opened with other keys is given up as soon as no migration, and no command, depends on it.
        """
        old, self._config = self._config, config
        if (config.key, config.known_hosts) != (old.key, old.known_hosts):
            self._outdated, self._pause = True, 0.0
        if config.keepalive_seconds != old.keepalive_seconds:
            self.check_often()

    async def opened(self) -> asyncssh.SSHClientConnection:
        """Return the connection, opened if there is none. One caller that stops waiting does not stop the others."""
        if self._closed:
            raise HostError(self.name, "it was let go of")
        if self._outdated and not (self._connecting or self._in_use()):
            self._outdated = False
            if self._connection is not None:
                self._connection.abort()
                self._connection = None
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name=f"connect to {self.name}")
            self._connecting.add_done_callback(self._note_connected)
        return await asyncio.shield(self._connecting)

    def _note_connected(self, task: asyncio.Task[asyncssh.SSHClientConnection]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._connection = task.result()

    async def _connect(self) -> asyncssh.SSHClientConnection:
        await asyncio.sleep(self._pause)
        config = self._config
        try:
            async with asyncio.timeout(config.connect_seconds):
                connection = await asyncssh.connect(
                    config.host,
                    config.port or (),
                    username=config.user or (),
                    client_keys=[str(config.key)] if config.key else (),
                    known_hosts=self._known_hosts(),
                    password_auth=False,
                    kbdint_auth=False,
                    keepalive_interval=max(_IDLE_SECONDS, config.keepalive_seconds),
                    keepalive_count_max=_KEEPALIVES,
                    connect_timeout=None,
                    login_timeout=config.connect_seconds,
                )
        except (OSError, asyncssh.Error, ValueError) as error:  # TimeoutError is an OSError
            shortest, longest = _PAUSES_SECONDS
            self._pause = min(longest, max(shortest, 2 * self._pause))
            raise HostError(self.name, self._why(error)) from error
        self._pause = 0.0
        return connection

    def check_often(self) -> None:
        """Find out soon when this connection is dead."""
        if self._connection is not None and not self._connection.is_closed():
            self._connection.set_keepalive(interval=self._config.keepalive_seconds)

    def _known_hosts(self) -> asyncssh.SSHKnownHosts:
        files = [self._config.known_hosts] if self._config.known_hosts else _KNOWN_HOSTS
        text = ""
        for file in files:
            try:
                text += file.expanduser().read_text(encoding="utf-8", errors="replace") + "\n"
            except FileNotFoundError:
                pass  # then no host is known by it
        return asyncssh.import_known_hosts(text)

    def _why(self, error: Exception) -> str:
        config = self._config
        where = f"{config.host}, port {config.port}" if config.port else config.host
        if isinstance(error, TimeoutError):
            return f"no SSH connection to {where} within {config.connect_seconds:g} s"
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            file = config.known_hosts or _KNOWN_HOSTS[0]
            port = "" if config.port in (0, 22) else f"-p {config.port} "
            return (
                f"the key of the SSH server at {where} is not the one in {file}, or there is none: compare what "
                f"'ssh-keyscan {port}{config.host} | ssh-keygen -lf -' shows with the host's own, then "
                f"add it with 'ssh-keyscan {port}{config.host} >> {file}'{_as_whom(file)}"
            )
        if isinstance(error, asyncssh.PermissionDenied):
            key = f"the key {config.key}" if config.key else "any key of the agent or of ~/.ssh"
            return (
                f"the SSH server at {where} does not let user {config.user or 'of this name'!r} in with {key}: add the "
                "public key to authorized_keys there"
            )
        if isinstance(error, asyncssh.KeyImportError):
            return (
                f"the SSH key cannot be used: {error}; give one without a passphrase, or put it into an agent"
            )
        text = str(error)
        if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
            text = ": ".join(filter(None, (error.filename, os.strerror(error.errno))))
        return f"no SSH connection to {where}: {' '.join(text.split()) or type(error).__name__}"

    async def close(self) -> None:
        """Give it up, for good."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        if self._connection is not None:
            self._connection.abort()
            await self._connection.wait_closed()
            self._connection = None


def _as_whom(file: Path) -> str:
    """Return as which user a file of known keys is to be written, where that is not everybody's."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = f"uid {os.geteuid()}"
    return f" as {user}" if str(file).startswith("~") else f" as root, so that {user} can read it"
