"""A guest that writes to its disk all along, and a check that no write of it was lost; see ``writer.S``."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from migrator.testing.guest import IMAGE_BYTES, SECTOR_BYTES

_PARAMETERS_OFFSET = 0x1D0
#: Where its memory says how many writes are done.
COUNTER_ADDRESS, COUNTER_BYTES = 0x8000, 8
_MARK = b"WRIT"


class WriteLost(AssertionError):
    """The guest's disk is not what the guest wrote; the text says where."""


@dataclass(frozen=True, kw_only=True)
class DiskWriter:
    """A guest that writes this many sectors in turn, so many before each tick of its clock (18.2 a second)."""

    sectors: int = 64
    writes: int = 4

    def sector(self) -> bytes:
        """Return its boot sector."""
        plain = Path(__file__).with_name("writer.bin").read_bytes()
        parameters = struct.pack("<IH", self.sectors, self.writes)
        return plain[:_PARAMETERS_OFFSET] + parameters + plain[_PARAMETERS_OFFSET + len(parameters) :]

    def write_image(self, path: Path, *, size_bytes: int = IMAGE_BYTES) -> Path:
        """Write a raw disk image that boots into it; returns ``path``."""
        with path.open("wb") as image:
            image.write(self.sector())
            image.truncate(max(size_bytes, (self.sectors + 1) * SECTOR_BYTES))
        return path

    def check(self, contents: bytes, memory: bytes) -> int:
        """Check every sector that it writes; return how many writes were done.

        :param contents: its disk, read while it did not run: a write may be there that it has not counted yet.
        :param memory: :data:`COUNTER_BYTES` of its memory from :data:`COUNTER_ADDRESS` on, of the same moment.
        :raise WriteLost: with the first sector that is wrong.
        """
        mark: bytes
        done: int
        mark, done = struct.unpack("<4sI", memory)
        if mark != _MARK:
            raise WriteLost(f"the guest has not begun: its mark is {mark!r}")
        for number in range(self.sectors):
            at = (number + 1) * SECTOR_BYTES
            found = struct.unpack(f"<{SECTOR_BYTES // 4}I", contents[at : at + SECTOR_BYTES])
            due = done - (done - number) % self.sectors if done >= number else 0
            allowed = {max(0, due)}
            if (done + 1) % self.sectors == number:
                allowed.add(done + 1)  # under way
            if len(set(found)) != 1 or found[0] not in allowed:
                raise WriteLost(
                    f"sector {number + 1} of {self.sectors} holds write {sorted(set(found))}, and {due} is due "
                    f"after {done} writes"
                )
        return done
