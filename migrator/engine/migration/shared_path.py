"""The path that a stream shares with others: what it was seen to carry, and who has to give way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from migrator.core.link_speeds import StreamCounters


class SharedPath(Protocol):
    """One stream's part of its path; whoever drives the stream calls it, and it never waits."""

    @property
    def bytes_per_second(self) -> float | None:
        """Return what the path was learned to carry, all streams together; ``None``: it never held one back."""

    @property
    def probes(self) -> bool:
        """Return whether the stream is to go without a pace for a moment: it may be that the path carries more."""

    @property
    def attainable_bytes_per_second(self) -> float:
        """Return what the stream could have if it did not share its path; 0 where it does not, or nothing is known."""

    @property
    def yields(self) -> bool:
        """Return whether the stream has to give way for a moment: the guest of another one is being switched."""

    @property
    def has_turn(self) -> bool:
        """Return whether the others on the path give way to it."""

    def begin(self) -> None:
        """Count the stream among those of its path from now on."""

    def note(self, counters: StreamCounters, *, most: float) -> None:
        """Note what its sockets counted.

        :param most: bytes per second that its pace and QEMU's limit allowed since the last time; 0: neither was set.
        """

    def take_turn(self) -> bool:
        """Have the others give way, for a bounded time: the switch is near. False: another one is being switched."""

    def end_turn(self) -> None:
        """Let the others go on, if they gave way to this one."""

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call this when :attr:`yields` is different from before."""

    def close(self) -> None:
        """Count the stream no more: it has ended, or another controller drives it from now on."""


class OwnPath:
    """A path that nobody else is known to use; nothing is learned of it. Implements :class:`SharedPath`."""

    bytes_per_second = None
    attainable_bytes_per_second = 0.0
    probes = yields = has_turn = False

    def begin(self) -> None:
        """Do nothing."""

    def note(self, counters: StreamCounters, *, most: float) -> None:
        """Forget it."""

    def take_turn(self) -> bool:
        """Return True: there is nobody else."""
        return True

    def end_turn(self) -> None:
        """Do nothing."""

    def on_change(self, changed: Callable[[], None]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
