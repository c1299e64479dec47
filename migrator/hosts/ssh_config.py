"""How a host is reached over SSH."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class SshConfig:
    """How to reach a host over SSH."""

    #: Name or address of its SSH server.
    host: str
    #: 0: as the user's SSH configuration says, else 22.
    port: int = 0
    #: Empty: as the user's SSH configuration says, else as whom the controller runs.
    user: str = ""
    #: Private key; ``None``: those of the agent, and the usual files of the user.
    key: Path | None = None
    #: ``None``: the user's ``~/.ssh/known_hosts`` and ``/etc/ssh/ssh_known_hosts``. Always checked.
    known_hosts: Path | None = None
    #: Commands at a time; OpenSSH's server allows 10 sessions a connection, two of which watch.
    max_sessions: int
    connect_seconds: float
    #: A connection over which a migration is steered is dropped when nothing came over it for three times as long.
    keepalive_seconds: float
