"""Which options take an argument: our table beside the QEMUs themselves."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from migrator.core.options import read


def names(qemu: Path) -> list[str]:
    """Every option that its help has."""
    shown = subprocess.run([qemu, "-help"], capture_output=True, text=True, check=True).stdout
    found: set[str] = set()
    for line in shown.splitlines():
        if line.startswith("-"):
            head = re.split(r"\s{2,}|\[|=|<", line)[0]
            found |= set(re.findall(r"(?:^|[ /])--?([A-Za-z][\w-]*)", head))
    return sorted(found - {"h", "help", "audio-help"})  # which end it whatever follows


def stands_alone(qemu: Path, name: str, scratch: Path) -> bool:
    """Whether it leaves the word after it for itself; QEMU ends at once either way.

    :param scratch: where it may leave files behind, as some options make it do.
    """
    done = subprocess.run(
        [qemu, f"-{name}", "-version", "-help"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        cwd=scratch,
    )
    if "usage:" in done.stdout:
        return False
    return done.stdout.startswith("QEMU emulator version") or f" -{name}: " in done.stderr


def test_every_option_of_every_qemu_is_read_as_it_reads_it(each_qemu: Path, tmp_path: Path) -> None:
    known = names(each_qemu)
    assert len(known) > 90
    with ThreadPoolExecutor(4) as pool:
        alone = pool.map(lambda name: stands_alone(each_qemu, name, tmp_path), known)
        theirs = dict(zip(known, alone, strict=True))
    ours = {name: read([f"-{name}", "word"]) == [(name, None), ("", "word")] for name in known}
    assert ours == theirs
