"""The ``[mqtt]`` section beside what else the entrance must know: whom the service is at the broker."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from migrator.api.commands import Role
from migrator.settings import Settings
from migrator.settings.models import MqttSettings


@dataclass(frozen=True, kw_only=True)
class MqttConfig:
    """Everything :class:`migrator.mqtt.Mqtt` is told."""

    #: The broker, who may ask for what, and the bounds of it all.
    section: MqttSettings
    #: The first levels of each topic, and of this service at its site.
    site: str
    instance: str
    #: Several controllers of this site take commands, each a share of them.
    shared: bool = False
    #: How late at most ``expires_at`` of a command may be, in seconds from ``sent_at``. While a command may come the
    #: journal must know it, or it would be carried out twice.
    longest_lifetime_seconds: float = 86_400.0
    #: Between two attempts at most; short, so that retained state is true again soon after the broker is back.
    longest_pause_seconds: float = 3.0
    #: Of saying goodbye: what is still to be sent, and ``offline``.
    closing_seconds: float = 2.0

    @classmethod
    def of(cls, settings: Settings) -> MqttConfig:
        """Return what the configuration says."""
        return cls(
            section=settings.mqtt,
            site=settings.site.name,
            instance=settings.site.instance,
            shared=bool(settings.store.url),
            longest_lifetime_seconds=min(cls.longest_lifetime_seconds, settings.store.retention),
        )

    def new_client_id(self) -> str:
        """Return a client's id that nobody can guess: whoever connects under it has the session and all that comes."""
        return f"{self._client_id_head}{secrets.token_hex(16)}"

    def is_client_id(self, text: str) -> bool:
        """Tell whether it is one of this service, as :meth:`new_client_id` makes them."""
        return re.fullmatch(re.escape(self._client_id_head) + "[0-9a-f]{32}", text) is not None

    @property
    def _client_id_head(self) -> str:
        return f"migrator-{self.site}-{self.instance}-"

    @property
    def address(self) -> str:
        """Address of the broker, for a person."""
        return f"{self.section.host}:{self.section.broker_port}"

    def hosts(self, user: str) -> tuple[str, ...] | None:
        """Return the patterns of the hosts that a user's commands are limited to; ``None``: they are not."""
        return self.section.hosts.get(user)

    def role(self, user: str) -> Role | None:
        """Return what that user may do; ``None``: nothing."""
        if user in self.section.operators:
            return Role.OPERATOR
        return Role.VIEWER if user in self.section.viewers else None
