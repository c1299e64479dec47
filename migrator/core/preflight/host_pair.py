"""One guest, the host it is on and one it might go to: everything that the checks of hosts look at. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from migrator.core.inventory import HostFacts
from migrator.core.policy import Policy
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.host_process import ProcessPair
from migrator.core.process.command_line import CommandLine, ImageUse
from migrator.core.process.files import FileFacts, HostFiles, SameFile
from migrator.core.process.image_paths import ImagePaths
from migrator.core.process.tpm_emulator import TpmObstacles


@dataclass(frozen=True, kw_only=True)
class HostPair:
    """Facts of both hosts and of the guest's QEMU. Whatever could not be read is at its default."""

    #: Name of the target, for messages.
    target: str
    source: Facts
    command: CommandLine
    here: HostFacts
    there: HostFacts
    #: By the paths as the command line and QEMU write them.
    files_here: HostFiles = field(default_factory=HostFiles)
    files_there: HostFiles = field(default_factory=HostFiles)
    #: How QEMU says it has images open, and what it says they are based on; no entry where it was not asked.
    opened: Mapping[str, ImageUse] = field(default_factory=dict)
    based: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Result of the probe, where identities do not tell, by path.
    probed: Mapping[str, SameFile] = field(default_factory=dict)
    #: The source's process beside what it would be there; ``None``: it is not known which process it is.
    process: ProcessPair | None = None
    policy: Policy | None = None
    #: The target can make volumes for disks that are block devices.
    volumes: bool = False
    #: Where images of this host are at the target.
    image_paths: ImagePaths = field(default_factory=ImagePaths)
    #: What is in the way of an emulator of the guest's TPM there; ``None``: nobody would start one.
    tpm: TpmObstacles | None = None

    @property
    def one_machine(self) -> bool:
        """True where both hosts run on one kernel (network namespaces)."""
        return bool(self.here.boot_id) and self.here.boot_id == self.there.boot_id

    @property
    def kvm(self) -> bool:
        """The guest runs under KVM."""
        return self.source.accelerator == "kvm"

    def files(self, path: str) -> tuple[FileFacts, FileFacts]:
        """Return the files that `path` leads to here and there."""
        return self.files_here.file(path), self.files_there.file(path)

    def image(self, path: str) -> tuple[FileFacts, FileFacts]:
        """Return the file here of a disk that the guest writes to, and what is where its image has to be there."""
        return self.files_here.file(path), self.files_there.file(self.image_paths.at_target(path))
