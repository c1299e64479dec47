"""Every topic, in one place. Names in them are checked: a guest's name never is part of one."""

from __future__ import annotations

from dataclasses import dataclass

from migrator.api.events import Subject
from migrator.settings.values import NAME

#: What has a retained state.
STATEFUL = (Subject.MIGRATION, Subject.EVACUATION, Subject.HOST)


@dataclass(frozen=True)
class Topics:
    """The topics of one service."""

    site: str
    instance: str

    @property
    def prefix(self) -> str:
        """Before all of them."""
        return f"migrator/v1/{self.site}"

    @property
    def service(self) -> str:
        """Topic that tells whether the service is connected; retained."""
        return f"{self.prefix}/service/{self.instance}"

    @property
    def commands(self) -> str:
        """The filter of everything that is meant as a command."""
        return f"{self.prefix}/command/#"

    @property
    def shared_commands(self) -> str:
        """The filter of a share of them: the broker gives each command to one of those who subscribe to it."""
        return f"$share/migrator/{self.commands}"

    @property
    def states(self) -> tuple[str, ...]:
        """The filters of all retained state of this site."""
        return tuple(f"{self.prefix}/{subject}/+/state" for subject in STATEFUL)

    def about(self, subject: Subject, subject_id: str, what: str) -> str | None:
        """``state``, ``progress`` or ``decision`` of a subject; ``None`` where its id cannot be in a topic."""
        if subject not in STATEFUL or not NAME.fullmatch(subject_id):
            return None
        return f"{self.prefix}/{subject}/{subject_id}/{what}"

    def whose_state(self, topic: str) -> tuple[Subject, str] | None:
        """Return the subject whose retained state a topic is; ``None`` for another topic."""
        levels = self._below(topic)
        if len(levels) == 3 and levels[2] == "state" and levels[0] in STATEFUL:
            return Subject(levels[0]), levels[1]
        return None

    def command(self, topic: str) -> tuple[str, str] | None:
        """User and verb; ``None``: it is no command's topic."""
        levels = self._below(topic)
        if len(levels) == 3 and levels[0] == "command" and NAME.fullmatch(levels[1]):
            return levels[1], levels[2]
        return None

    def is_command(self, topic: str) -> bool:
        """Return whether a message came by the filter of commands, well formed or not."""
        return self._below(topic)[:1] == ["command"]

    def reply(self, user: str, identifier: str) -> str:
        """Where a caller finds the replies to one command."""
        return f"{self.prefix}/reply/{user}/{identifier}"

    def may_reply(self, user: str, topic: str) -> bool:
        """Return whether a response topic is that user's own, and can be published to."""
        below = topic.removeprefix(f"{self.prefix}/reply/{user}/")
        return below not in ("", topic) and len(topic) <= 1024 and not set(topic) & {"+", "#", "\0"}

    def _below(self, topic: str) -> list[str]:
        below = topic.removeprefix(f"{self.prefix}/")
        return [] if below == topic else below.split("/")
