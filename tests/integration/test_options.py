"""Which options take an argument: our table beside the QEMUs themselves."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from migrator.core.process.options import read


def names(qemu: Path) -> list[str]:
    """Every option that its help has."""
    shown = subprocess.run([qemu, "-help"], capture_output=True, text=True, check=True).stdout
    found: set[str] = set()
    for line in shown.splitlines():
        if line.startswith("-"):
            head = re.split(r"\s{2,}|\[|=|<", line)[0]
            found |= set(re.findall(r"(?:^|[ /])--?([A-Za-z][\w-]*)", head))
    return sorted(found - {"h", "help", "audio-help"})  # which end it whatever follows


def stands_alone(qemu: Path, name: str, directory: Path) -> bool:
    """Whether it leaves the word after it for itself; QEMU ends at once either way.

    :param directory: where it may make the files that some options make.
    """
    with subprocess.Popen(
        [qemu, f"-{name}", "-version", "-help"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
    ) as process:
        said, complained = process.communicate(timeout=20)
    Path(f"/tmp/perf-{process.pid}.map").unlink(missing_ok=True)  # of -perfmap, always there
    if "usage:" in said:
        return False
    return said.startswith("QEMU emulator version") or f" -{name}: " in complained


def test_every_option_of_every_qemu_is_read_as_it_reads_it(each_qemu: Path, tmp_path: Path) -> None:
    known = names(each_qemu)
    assert len(known) > 90
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: stands_alone(each_qemu, name, tmp_path), known)
        theirs = dict(zip(known, found, strict=True))
    ours = {name: read([f"-{name}", "word"]) == [(name, None), ("", "word")] for name in known}
    assert ours == theirs
