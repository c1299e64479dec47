"""Where libvirt's binding is found that is not in this Python's own environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from migrator.errors import UsageError
from migrator.libvirt.binding import load_from


def test_the_systems_package_is_found_in_its_directory_and_nothing_else_there(tmp_path: Path) -> None:
    (tmp_path / "libvirtmod.py").write_text("answer = 42\n")
    (tmp_path / "libvirt.py").write_text("import libvirtmod\nanswer = libvirtmod.answer\n")
    (tmp_path / "stranger.py").touch()
    script = (
        "import pathlib, sys\nfrom migrator.libvirt.binding import load_from\n"
        "assert load_from(pathlib.Path(sys.argv[1])).answer == 42\n"
        "try:\n    import stranger\nexcept ImportError:\n    print('alone')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("alone\n", "")


def test_where_there_is_none_it_is_said_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="python3-libvirt"):
        load_from(tmp_path)
