"""How the broker is reached, who may ask for what, and the bounds of it all."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from migrator.api.commands import Role
from migrator.errors import UsageError

#: Ids, hosts, sites, instances and users: what may be a level of a topic.
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class MqttSettings:
    """Everything :class:`migrator.mqtt.Mqtt` is told.

    :raise UsageError: values that cannot be used, with the field's name.
    """

    host: str
    port: int = 1883
    #: Speak TLS; with :attr:`tls_ca` empty the system's authorities are believed.
    tls: bool = False
    tls_ca: Path | None = None
    #: The service's own certificate and its key, where the broker asks for one.
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    site: str
    #: Of this service.
    instance: str
    #: Users, as in ``command/<user>/…``, that may ask for everything.
    operators: frozenset[str] = frozenset()
    #: Users that may ask for what changes nothing.
    viewers: frozenset[str] = frozenset()
    #: ``auto``: 5, and 3.1.1 where the broker says that it does not know 5.
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    #: A broker that says nothing is given up after at most twice as long.
    keepalive_seconds: int = 15
    #: Of connecting and of each acknowledgement.
    timeout_seconds: float = 5.0
    #: Between two attempts at most; short, so that retained state is true again soon after the broker is back.
    longest_pause_seconds: float = 3.0
    #: How long the broker keeps the session, with the commands that came meanwhile, of a service that is away.
    session_expiry_seconds: int = 86_400
    #: Of saying goodbye: what is still to be sent, and ``offline``.
    closing_seconds: float = 2.0
    #: How many states and decisions, and how many replies, wait for the broker; the oldest go first.
    queue_limit: int = 10_000
    #: A larger command is refused.
    max_command_bytes: int = 65_536
    #: The document in a larger reply is left out.
    max_reply_bytes: int = 1 << 20
    #: How many commands are carried out at a time; of one user a quarter.
    max_commands: int = 32
    #: How many more of one user wait; further ones are refused.
    max_waiting_commands: int = 64
    #: When a command without ``expires_at`` expires, from ``sent_at``.
    command_lifetime_seconds: float = 600.0
    #: And how late at most ``expires_at`` may be, from ``sent_at``.
    longest_lifetime_seconds: float = 86_400.0
    #: How far ahead of ours a caller's clock may be.
    clock_tolerance_seconds: float = 300.0
    #: How long the retained state of what has ended stays.
    keep_ended_seconds: float = 86_400.0
    #: The least time between two messages of progress of one migration.
    progress_interval_seconds: float = 1.0

    def __post_init__(self) -> None:
        for what, name in (("site", self.site), ("instance", self.instance)):
            if not NAME.fullmatch(name):
                raise UsageError(f"mqtt.{what} is {name!r}; it must match {NAME.pattern}")
        for user in sorted(self.operators | self.viewers):
            if not NAME.fullmatch(user):
                raise UsageError(
                    f"mqtt: the user {user!r} must match {NAME.pattern}, as it is part of a topic"
                )
        if self.tls_key is not None and self.tls_certificate is None:
            raise UsageError("mqtt.tls_key is of no use without mqtt.tls_certificate")
        if not self.tls and (self.tls_ca or self.tls_certificate):
            raise UsageError("mqtt.tls_ca and mqtt.tls_certificate are of no use without mqtt.tls = true")
        if self.password is not None and self.username is None:
            raise UsageError("mqtt.password is of no use without mqtt.username")
        if min(self.queue_limit, self.max_commands, self.max_waiting_commands) < 1:
            raise UsageError(
                "mqtt.queue_limit, mqtt.max_commands and mqtt.max_waiting_commands must be at least 1"
            )

    def new_client_id(self) -> str:
        """A client's id that nobody can guess: whoever connects under it has the session and all that comes to it."""
        return f"{self._client_id_head}{secrets.token_hex(16)}"

    def is_client_id(self, text: str) -> bool:
        """Whether it is one of this service, as :meth:`new_client_id` makes them."""
        return re.fullmatch(re.escape(self._client_id_head) + "[0-9a-f]{32}", text) is not None

    @property
    def _client_id_head(self) -> str:
        return f"migrator-{self.site}-{self.instance}-"

    @property
    def address(self) -> str:
        """Of the broker, for a person."""
        return f"{self.host}:{self.port}"

    def role(self, user: str) -> Role | None:
        """What that user may do; ``None``: nothing."""
        if user in self.operators:
            return Role.OPERATOR
        return Role.VIEWER if user in self.viewers else None
