"""A second QEMU for a guest: where its process shall live, and the command line that starts it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from migrator.core.model import Finding
from migrator.core.process.image_paths import TargetImage
from migrator.core.process.listening import ListeningPort
from migrator.core.process.tpm_emulator import TpmEmulator


@dataclass(frozen=True, kw_only=True)
class TargetNetwork:
    """Ports and addresses of the target."""

    #: Ports that are taken there, and addresses that it has; empty where that could not be read.
    taken: Collection[ListeningPort] = frozenset()
    addresses: Collection[str] = frozenset()
    #: Another port may be given for one that is taken.
    spare: bool = False


@dataclass(frozen=True, kw_only=True)
class TargetEnvironment:
    """Where the new process shall live."""

    binary: str
    run_directory: str
    #: Paths of :func:`migrator.qemu.cmdline.paths` that exist there and are no directories.
    occupied: Collection[str] = frozenset()
    #: Those whose directory does not exist there.
    missing_directories: Collection[str] = frozenset()
    #: It is the source's machine, and the source's network: sockets and ports cannot be had twice.
    same_machine: bool = False
    same_network: bool = False
    network: TargetNetwork = field(default_factory=TargetNetwork)
    #: Images of disks that have another path there, by their paths at the source.
    images: Mapping[str, TargetImage] = field(default_factory=dict)
    #: Sockets of processes that are started there for it, by those that serve the source.
    served: Mapping[str, str] = field(default_factory=dict)

    @property
    def control(self) -> str:
        """Path of the monitor to control it by."""
        return f"{self.run_directory}/control.qmp"

    @property
    def rescue(self) -> str:
        """Path of the monitor that is left alone, for a person in need."""
        return f"{self.run_directory}/rescue.qmp"

    @property
    def pid_file(self) -> str:
        """Path of the file it writes its pid to."""
        return f"{self.run_directory}/qemu.pid"


@dataclass(frozen=True, kw_only=True)
class Replica:
    """The destination's command line."""

    argv: tuple[str, ...]
    #: Errors: the command line cannot be used. Warnings: it differs in what the guest cannot see.
    findings: tuple[Finding, ...]
    #: What is started before it, with its run directory, because it emulates the guest's TPM.
    tpm: TpmEmulator | None = None
    #: Files of its memory that it makes.
    memory: tuple[str, ...] = ()
    #: New path of every socket that had to go elsewhere.
    moved: dict[str, str] = field(default_factory=dict)
    #: Where each path that the operator knows shall lead once the guest has arrived.
    links: Mapping[str, str] = field(default_factory=dict)
