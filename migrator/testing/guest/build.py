"""Assembles the boot sector: ``python -m migrator.testing.guest.build``; ``--check`` only compares.

The bytes are in the tree, so nobody needs an assembler to run the guest. ``bootsector.sha256`` (read it with
``sha256sum -c``) ties them to their source even where there is no assembler to prove it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from migrator.testing.guest import SECTOR_BYTES

HERE = Path(__file__).parent
SOURCE = HERE / "bootsector.S"
BINARY = HERE / "bootsector.bin"
SUMS = HERE / "bootsector.sha256"


def tools() -> tuple[str, str] | None:
    """Return an assembler and a linker for x86, or ``None`` where binutils are absent."""
    found = [shutil.which(f"x86_64-linux-gnu-{tool}") for tool in ("as", "ld")]
    return (found[0], found[1]) if found[0] and found[1] else None


def assemble() -> bytes:
    """Assemble the boot sector, and return its bytes.

    :raise RuntimeError: when there are no tools.
    :raise subprocess.CalledProcessError: when the source is wrong.
    """
    found = tools()
    if found is None:
        raise RuntimeError("no assembler for x86: install the package binutils-x86-64-linux-gnu")
    assembler, linker = found
    with tempfile.TemporaryDirectory() as scratch:
        middle, result = Path(scratch, "bootsector.o"), Path(scratch, "bootsector.bin")
        subprocess.run([assembler, "--32", "--fatal-warnings", SOURCE, "-o", middle], check=True, timeout=30)
        options = ["-m", "elf_i386", "-Ttext", "0x7c00", "-e", "start", "--oformat", "binary"]
        subprocess.run([linker, *options, middle, "-o", result], check=True, timeout=30)
        return result.read_bytes()


def sums(source: bytes, binary: bytes) -> str:
    """Return the contents of ``bootsector.sha256``."""
    pairs = ((SOURCE, source), (BINARY, binary))
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n" for path, content in pairs)


def main(arguments: list[str]) -> int:
    """Build, or with ``--check`` compare; the exit status says whether all is well."""
    binary = assemble()
    if len(binary) != SECTOR_BYTES:
        print(f"the boot sector has {len(binary)} bytes, not {SECTOR_BYTES}", file=sys.stderr)
        return 1
    if "--check" in arguments:
        if binary == BINARY.read_bytes() and sums(SOURCE.read_bytes(), binary) == SUMS.read_text():
            return 0
        print("bootsector.bin is not what bootsector.S says: run this without --check", file=sys.stderr)
        return 1
    BINARY.write_bytes(binary)
    SUMS.write_text(sums(SOURCE.read_bytes(), binary))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
