"""A guest that is shut off: the command line that starts it, kept in a file of its host. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from migrator.errors import UsageError

#: Options with which a guest would not stand still at its beginning, or not begin at it.
_REFUSED = frozenset({"incoming", "loadvm", "snapshot", "preconfig"})
#: Options that are given anew, with and without a value.
_DROPPED, _DROPPED_FLAGS = frozenset({"pidfile"}), frozenset({"daemonize", "S"})


@dataclass(frozen=True, kw_only=True)
class ShutOffGuest:
    """Description of a guest that is shut off."""

    uuid: str
    #: The command line, without what says where and how it is started.
    arguments: tuple[str, ...]

    def paused(self, *, pid_file: str, monitors: Sequence[str]) -> tuple[str, ...]:
        """Return the command line that starts its QEMU and does not let it run.

        :param monitors: paths of QMP sockets that it has besides its own.
        """
        sockets = [
            word
            for path in monitors
            for word in ("-qmp", f"unix:{path.replace(',', ',,')},server=on,wait=off")
        ]
        return (*self.arguments, "-S", "-pidfile", pid_file, *sockets)


def read(text: str, name: str) -> ShutOffGuest:
    """Read a description: a list of words in JSON, or a command as a shell takes it, on one line or several.

    :param name: of the file, for messages.
    :raise UsageError: it is no command line of QEMU, or one that cannot be started paused.
    """
    words = _words(text, name)
    if not words or not words[0].rpartition("/")[2].startswith("qemu"):
        raise UsageError(
            f"{name} is no command line of QEMU: it begins with {words[0] if words else 'nothing'!r}"
        )
    kept, uuid = [words[0]], ""
    rest = iter(words[1:])
    for word in rest:
        option = word.lstrip("-") if word.startswith("-") else ""
        if option in _REFUSED:
            raise UsageError(
                f"{name} has -{option}: such a guest cannot be started without running, and moved"
            )
        if option in _DROPPED_FLAGS:
            continue
        if option in _DROPPED:
            next(rest, "")
            continue
        kept.append(word)
        if option == "uuid":
            uuid = next(rest, "")
            kept.append(uuid)
    try:
        uuid = str(UUID(uuid))
    except ValueError:
        raise UsageError(
            f"{name} has no -uuid, by which the guest could be known again: give it one"
        ) from None
    return ShutOffGuest(uuid=uuid, arguments=tuple(kept))


def _words(text: str, name: str) -> list[str]:
    try:
        if text.lstrip().startswith("["):
            words = json.loads(text)
            if isinstance(words, list) and all(isinstance(word, str) for word in words):
                return words
            raise UsageError(f"{name} is JSON, but no list of words")
        return shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise UsageError(f"{name} cannot be read: {error}") from error
