"""Commands as they come: from whom, and under which key of the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from migrator import host_scope
from migrator.api.commands import Role
from migrator.api.replies import Refusal
from migrator.api.trace_context import TraceContext


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The sender of a command."""

    #: ``unix:UID``, a token's name, or the user in an MQTT topic.
    user: str
    role: Role
    #: ``http`` or ``mqtt``.
    interface: str
    #: From where: an address, a topic.
    origin: str = ""
    #: What it asks for as part of, where it said so; kept with what is begun.
    trace: TraceContext | None = None
    #: Patterns of the hosts that its rights end at; ``None``: they reach every host.
    hosts: tuple[str, ...] | None = None

    def covers(self, *hosts: str) -> bool:
        """Tell whether its rights reach every one of these hosts; of none, only whether they reach all."""
        return host_scope.covers_all(self.hosts, hosts)

    def told_of(self, host: str) -> str:
        """Return the name of a host that something of his turned up on; not where his rights do not reach it."""
        return host if self.covers(host) else "another host"

    def outside(self, what: str) -> Refusal:
        """Return the refusal of what is not within its rights; the same whether or not there is such a thing."""
        return Refusal("forbidden", f"{self.user} is limited to {', '.join(self.hosts or ())}: {what}")


@dataclass(frozen=True)
class CommandKey:
    """The name of a command in the journal: who gave it, and the id that he gave it. The same again is a repetition."""

    user: str
    #: Empty for a command without one, which is never repeated.
    id: str

    def __str__(self) -> str:
        """The key as the journal keeps it; never empty."""
        return f"{self.user}\n{self.id}"

    @classmethod
    def read(cls, text: str) -> CommandKey:
        """Return the key that has this text."""
        user, _, identifier = text.partition("\n")
        return cls(user, identifier)


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """A command as it came."""

    verb: str
    body: Mapping[str, Any]
    caller: Caller
    #: The caller's own; with the user it names the command. ``None``: it cannot be repeated safely.
    id: str | None = None
    #: MQTT: when it was sent, and until when it may be begun.
    expires_at: datetime | None = None

    @property
    def key(self) -> CommandKey | None:
        """The command's key; ``None`` where it has no id."""
        return CommandKey(self.caller.user, self.id) if self.id else None
