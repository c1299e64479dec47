"""The interface to the hosts: which guests are there, and a QEMU for a guest to move into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from migrator.core.model import Finding
from migrator.core.preflight.stream_tls import TlsChoice
from migrator.ports.qemu import Qemu, SourceQemu
from migrator.ports.stream_path import StreamPath
from migrator.ports.stream_tunnel import StreamTunnel

if TYPE_CHECKING:
    from migrator.core.image_removal import ImageRemoval
    from migrator.core.inventory import Guest, HostFacts
    from migrator.core.policy import Policy
    from migrator.core.process.guest_network import (
        GuestTaps,  # of what `migrator direct` does not need, nor loads
    )


@dataclass(frozen=True, kw_only=True)
class HostLook:
    """Facts and guests that one look at a host showed."""

    facts: HostFacts
    guests: tuple[Guest, ...]


class IncomingDestination(Protocol):
    """A QEMU that was started, or found, at a target, and waits for a guest."""

    @property
    def qemu(self) -> Qemu:
        """Connected; ``inmigrate``."""

    @property
    def listen(self) -> str:
        """Where it shall take the stream: ``tcp:ADDR:0``."""

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Findings about what is not there as it is at the source, and does not keep the guest from moving."""

    @property
    def socket(self) -> str:
        """Path of its QMP socket on its host, where the guest will be found after it has arrived."""

    @property
    def new_images(self) -> Sequence[str]:
        """Disks whose images were made at the target, empty: their contents have to be copied to it."""

    async def discard(self, *, images: bool = False) -> None:
        """End the process if it still waits and remove everything that was made for it but its log.

        Never touches a process that the guest has arrived in: that one is not waiting any more.

        :param images: those of its disks that were made are removed too: the guest is known never to have run there,
            so that they hold nothing that its source does not.
        """


class GuestNetworks(Protocol):
    """Access to the host's part of guests' networks."""

    async def guest_taps(self, host: str, pid: int, *, taps: Sequence[str] = ()) -> GuestTaps:
        """The taps that a process of a host has open, and what they hang on; changes nothing.

        :param taps: of a process that has ended: tell what bridges have learned on these, too.
        :raise HostError: the host cannot be asked.
        """


class Site(GuestNetworks, Protocol):
    """The hosts, as the engine uses them. A host that cannot be reached harms nothing else.

    Every call is bounded in time and raises :class:`~migrator.errors.HostError` when the host cannot be asked, and
    :class:`~migrator.errors.QemuError` when the QEMU cannot.
    """

    async def look(self, host: str) -> HostLook:
        """Facts and guests, read afresh; nothing is held afterwards."""

    async def watch(self, host: str, changed: Callable[[], None]) -> None:
        """Call `changed` whenever guests may have come to that host, or gone; runs until cancelled.

        A help, not a promise: what it does not see, the next look does.

        :raise HostError: the host cannot be watched any more.
        """

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> SourceQemu:
        """Connect to the QEMU behind a QMP socket of a host.

        :param role: ``source`` or ``destination``.
        :param identity: of the process that is meant, where that is known: another one at the same socket is refused,
            and one that has died is opened all the same, as a QEMU that is dead.
        :param absent: one of a host that cannot be asked is opened too, as a QEMU of which nothing is known.
        """

    async def check(
        self, guest: Guest, source: SourceQemu, target: str, policy: Policy
    ) -> tuple[Finding, ...]:
        """Return what speaks against `target` for this guest, as far as hosts tell it; changes nothing, starts nothing.

        :param policy: what it would be moved under.
        """

    async def start_destination(
        self,
        guest: Guest,
        source: SourceQemu,
        target: str,
        *,
        migration: str,
        accepted: Sequence[str] = (),
        keep_backing: bool = False,
    ) -> IncomingDestination:
        """Start the QEMU that the guest moves into, everything hot-plugged since its start included.

        After a failure nothing is left behind; the error carries QEMU's own words.

        :param source: as :meth:`open` gave it.
        :param accepted: codes of findings that shall not keep it from being started.
        :param keep_backing: images that are made are based on what those at the source are based on.
        :raise migrator.core.findings.PreflightRefused: something that only shows now keeps the guest from moving there.
        """

    async def mend_clock(self, host: str, end: Qemu, *, stood_seconds: float) -> str:
        """Set the clock of a guest that stood still for so long, where it has an agent that nobody else talks to.

        Bounded in time; never raises. What came of it in one line; empty where the guest has no agent.

        :param end: the QEMU that runs the guest, as :meth:`open` or :meth:`start_destination` gave it.
        """

    async def suppress_restart(self, guest: Guest) -> None:
        """Tell who manages a guest not to start it again when it has left; nothing where that cannot be told.

        May be called again. :meth:`allow_restart` undoes it.
        """

    async def allow_restart(self, guest: Guest) -> None:
        """The guest stays: who manages it may do as before."""

    async def abandon(self, host: str, *, migration: str, images: bool = False) -> None:
        """Remove what :meth:`start_destination` may have begun there for a migration that nobody drives any more; a
        process that does not wait any more is left alone.

        :param images: see :meth:`IncomingDestination.discard`.
        """

    async def keep_images(self, host: str, *, migration: str) -> None:
        """Have the images that were made there for a guest that has arrived never be removed any more."""

    async def put_aside(self, guest: Guest, paths: Sequence[str], *, migration: str) -> Mapping[str, str]:
        """Give the images of a guest that has left with their contents another name; the new ones by their paths."""

    async def compare_images(self, removal: ImageRemoval) -> ImageRemoval:
        """Compare what a guest has left at its source with its disks where it runs now, and goes on running.

        It takes as long as reading them. Return the same with what each image is then: one that is another later is not
        removed.

        :raise ComparisonFailed: they are not the same besides what the guest wrote since, or nobody can tell any more.
        """

    async def remove_images(self, removal: ImageRemoval) -> Mapping[str, str]:
        """Remove them, those that are gone already let pass; return why one is left, by its path.

        Nothing but what was compared is removed, nor what a process has open or another image is based on.
        """

    async def settle(self, guest: Guest) -> Sequence[str]:
        """Have the paths that the operator knows lead to a guest that has arrived; what could not be, in sentences.

        Those of its source are gone (:meth:`clear`). May be called again.

        :param guest: as it is found at its new host.
        """

    async def clear(self, guest: Guest) -> None:
        """Remove what is left of the source once its process has ended: sockets and files that we made."""

    async def sweep(self, host: str, *, under_way: Callable[[str], bool]) -> Sequence[str]:
        """Remove the same of guests that ended a while ago without anybody watching; what was removed.

        :param under_way: whether a migration of that id has not ended; what was made for it is left.
        """

    async def stream_tls(self, source: str, target: str, policy: Policy) -> TlsChoice:
        """Return whether what goes from one host to another is encrypted, by their certificates and the policy."""

    async def spare_cpus(self, source: str, target: str) -> float | None:
        """Return how many CPUs have no work, at the host that has fewer of them; ``None``: that is not known."""

    def stream_path(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamPath:
        """Return the network that carries a stream from one host to another.

        :param processes: the pids of both QEMUs, as far as they are known: where both hosts are one machine, each may
            have a network of its own.
        """

    def stream_tunnel(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamTunnel:
        """Return a tunnel for a stream from one host to another; nothing of it is there yet.

        :param processes: see :meth:`stream_path`.
        """

    async def close(self) -> None:
        """Let go of every host."""
