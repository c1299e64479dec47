"""The tutorial as a newcomer types it: every block, in its order, in one shell."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"

#: Blocks of it that are about a machine on which nothing is yet.
INSTALLS = re.compile(r"apt-get install|git clone")


def blocks() -> list[str]:
    """Every block of shell that is not about the installation."""
    found = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [each for each in found if not INSTALLS.search(each)]


def mine(text: str, directory: Path) -> str:
    """The same with names of its own, so that two runs can share a machine."""
    name = secrets.token_hex(3)
    for theirs, ours in (
        ("export PATH=$PWD/.build/venv/bin:$PATH", f"export PATH={Path(sys.executable).parent}:$PATH"),
        ("/tmp/migrator-tutorial", str(directory / "t")),
        ("tut-", f"t{name}-"),
        ("bridge\nip link set tutorial", f"bridge\nip link set t{name}"),
        ("link add tutorial", f"link add t{name}"),
        ("master tutorial", f"master t{name}"),
        ("link del tutorial", f"link del t{name}"),
    ):
        assert theirs in text, theirs
        text = text.replace(theirs, ours)
    return text


@pytest.mark.matrix
@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")
def test_every_block_does_what_the_text_beside_it_says() -> None:
    with tempfile.TemporaryDirectory(prefix="tutorial-") as directory:  # short, as sockets take it
        _run(Path(directory))


def _run(directory: Path) -> None:
    steps = blocks()
    cleanup = steps.pop()
    marked = "".join(f"echo '== {number}'\n{block}" for number, block in enumerate(steps))
    # Cleaned up however it ends, as the tutorial says to.
    script = mine(
        f"clean_up() {{\nset +e\n{cleanup}}}\ntrap clean_up EXIT\nset -e\n{marked}echo '== end'\n", directory
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    said = dict(re.findall(r"^== (\w+)\n(.*?)(?=^== |\Z)", done.stdout, re.MULTILINE | re.DOTALL))
    told = "".join(said.values())

    assert "uuids differ" in told
    assert "refused by preflight; nothing was changed\nexit code 3" in told
    planned = next(text for text in said.values() if "exit code 8" in text)
    assert re.search(r"^files\b.*stays|stays.*files|files.*blocked", planned, re.MULTILINE), planned
    evacuated = next(text for text in said.values() if "exit code 1" in text)
    assert re.search(r"^alpha\s+draining", evacuated, re.MULTILINE), evacuated
    assert re.search(r"^alpha\s+maintenance", told, re.MULTILINE), told
    home = next(text for text in said.values() if "restore of alpha, completed" in text)
    assert len(re.findall(r"^(?:web|db)\s+alpha\s+running", home, re.MULTILINE)) == 2, home
    # Nothing is left, and the guests outlived the service.
    assert len(re.findall(r"^(?:web|db)\s+alpha\s+running", told, re.MULTILINE)) >= 4, told
    assert not (directory / "t").exists()
    left = subprocess.run(["pgrep", "-f", str(directory / "t")], capture_output=True, text=True, check=False)
    assert left.stdout == "", "a process is left"
