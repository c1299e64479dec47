"""Assembles the boot sectors: ``python -m migrator.testing.guest.build``; ``--check`` only compares.

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
NAMES = ("bootsector", "writer")
SOURCE = HERE / "bootsector.S"
BINARY = HERE / "bootsector.bin"
SUMS = HERE / "bootsector.sha256"


def tools() -> tuple[str, str] | None:
    """Return an assembler and a linker for x86, or ``None`` where binutils are absent."""
    found = [shutil.which(f"x86_64-linux-gnu-{tool}") for tool in ("as", "ld")]
    return (found[0], found[1]) if found[0] and found[1] else None


def assemble(name: str = "bootsector") -> bytes:
    """Assemble a boot sector, and return its bytes.

    :raise RuntimeError: when there are no tools.
    :raise subprocess.CalledProcessError: when the source is wrong.
    """
    found = tools()
    if found is None:
        raise RuntimeError("no assembler for x86: install the package binutils-x86-64-linux-gnu")
    assembler, linker = found
    with tempfile.TemporaryDirectory() as scratch:
        middle, result = Path(scratch, "bootsector.o"), Path(scratch, "bootsector.bin")
        subprocess.run(
            [assembler, "--32", "--fatal-warnings", HERE / f"{name}.S", "-o", middle], check=True, timeout=30
        )
        options = ["-m", "elf_i386", "-Ttext", "0x7c00", "-e", "start", "--oformat", "binary"]
        subprocess.run([linker, *options, middle, "-o", result], check=True, timeout=30)
        return result.read_bytes()


def sums(source: bytes, binary: bytes, name: str = "bootsector") -> str:
    """Return the contents of ``bootsector.sha256``."""
    pairs = ((f"{name}.S", source), (f"{name}.bin", binary))
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {file}\n" for file, content in pairs)


def main(arguments: list[str]) -> int:
    """Build, or with ``--check`` compare; the exit status says whether all is well."""
    return max(_build(name, check="--check" in arguments) for name in NAMES)


def _build(name: str, *, check: bool) -> int:
    binary = assemble(name)
    if len(binary) != SECTOR_BYTES:
        print(f"the boot sector has {len(binary)} bytes, not {SECTOR_BYTES}", file=sys.stderr)
        return 1
    source, built, written = (HERE / f"{name}.{suffix}" for suffix in ("S", "bin", "sha256"))
    told = sums(source.read_bytes(), binary, name)
    if check:
        if binary == built.read_bytes() and told == written.read_text():
            return 0
        print(f"{name}.bin is not what {name}.S says: run this without --check", file=sys.stderr)
        return 1
    built.write_bytes(binary)
    written.write_text(told)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
