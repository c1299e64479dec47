"""Every error that crosses a layer.

::

    MigratorError
    ├── UsageError             what a person typed or configured is wrong; nothing was changed
    ├── Refused                preflight found a reason not to begin; nothing was changed
    ├── RecordError            the record of a migration cannot be read, written or claimed
    │   └── RecordInUse        another migrator that lives holds it
    ├── JournalError           the service's journal cannot be read or written; no new work is taken
    │   └── LeaseLost          another controller may have the right to do that; nothing was written
    ├── Unavailable            what is asked cannot be done or found out now; later it can
    ├── Fault                  an error of our own, that nobody foresaw; the log has its traceback
    ├── ComparisonFailed       what a guest left at its source is not known to be what it took along
    ├── HostError              a host cannot be reached, or a command on it failed
    └── QemuError              something about one QEMU process
        ├── Unreachable        no session: refused, no greeting, closed, broken
        │   ├── NobodyListens  there is no such socket, or no process listens at it any more
        │   └── Occupied       the socket accepts but never greets: another client holds it, or QEMU is stopped
        ├── Driven             another controller drives it, or did and may wake up; nothing was changed
        ├── TimedOut           sent, not answered in time; QEMU MAY STILL CARRY IT OUT
        ├── StrangeAnswer      QEMU answered what is no answer; it MAY HAVE CARRIED IT OUT
        └── CommandFailed      QEMU answered with an error; it did not carry it out

The text of each is one line for a person: what is wrong, where, and what to do.
An adapter that raises one chains its library's exception as the cause.
"""

from __future__ import annotations


class MigratorError(Exception):
    """Base of all errors that migrator raises on purpose."""


class UsageError(MigratorError):
    """A person typed or configured something that cannot be used; nothing was changed."""


class Refused(MigratorError):
    """The migration was not begun; nothing was changed."""


class RecordError(MigratorError):
    """The record of a migration cannot be read, written or claimed."""


class RecordInUse(RecordError):
    """Another migrator that lives holds the record: it drives that migration."""


class RecordUnavailable(RecordError):
    """The journal, which has the record, does not answer now: what the record says is to be asked again."""


class JournalError(MigratorError):
    """The service's journal cannot be read or written. No new work is taken until it can."""


class UpgradeWaits(JournalError):
    """The journal's tables have to be migrated, and older controllers are there that could not read them any more."""


class LeaseLost(JournalError):
    """A write was refused: the lease that it belongs to has ended, or another has it. Whoever held it stops."""


class Unavailable(MigratorError):
    """A request cannot be carried out or answered now; later it can. Nothing is known to be changed."""


class Fault(MigratorError):
    """A programming error of ours; :attr:`id` is in the log with its traceback."""

    def __init__(self, identifier: str, what: str, error: str) -> None:
        super().__init__(
            f"{what}: an error of migrator itself ({error}); its log has it under {identifier}: please report it"
        )
        self.id = identifier


class ComparisonFailed(MigratorError):
    """The images that a guest left are not known to be what it took along, and that will not change any more."""


class HostError(MigratorError):
    """A host cannot be reached, or what was asked of it failed; :attr:`host` says which."""

    def __init__(self, host: str, message: str) -> None:
        super().__init__(f"host {host}: {message}")
        self.host = host


class QemuError(MigratorError):
    """Something about one QEMU process; :attr:`where` says which."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        #: The end it happened at, as a person names it ("source unix:/run/a.sock").
        self.where = where


class Unreachable(QemuError):
    """There is no QMP session with this QEMU; it says nothing about whether its process lives."""


class NobodyListens(Unreachable):
    """There is no such socket, or no process listens at it any more."""


class Occupied(Unreachable):
    """The socket accepts connections but nobody greets: another client holds it, or QEMU is stopped."""


class Driven(QemuError):
    """Another controller drives this QEMU, or did and may wake up. What was asked for was not done."""


class TimedOut(QemuError):
    """The command was sent and not answered in time. It may still be carried out later."""

    def __init__(self, where: str, command: str, seconds: float) -> None:
        super().__init__(
            where, f"{command} was not answered within {seconds:g} s and may still be carried out"
        )
        self.command = command


class StrangeAnswer(QemuError):
    """QEMU's answer is none to that command: nothing of it is believed. The command may have been carried out."""

    def __init__(self, where: str, command: str, wrong: str) -> None:
        super().__init__(where, f"what it answers to {command} is no answer: {wrong}")
        self.command = command


class CommandFailed(QemuError):
    """QEMU refused the command and did not carry it out."""

    def __init__(self, where: str, command: str, error_class: str, description: str) -> None:
        super().__init__(where, f"{command}: {description}")
        self.command = command
        #: QMP's error class, e.g. ``GenericError`` or ``CommandNotFound``.
        self.error_class = error_class
        #: QEMU's own words.
        self.description = description
