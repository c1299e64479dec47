"""The wheel as pipx installs it: in an environment of its own, with what the lock says, away from this tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "Containerfile"


def run(*command: str | Path, directory: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.matrix
def test_wheel_runs_away_from_the_tree_with_what_is_locked(tmp_path: Path) -> None:
    run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
        "--wheel-dir", tmp_path / "wheel", ROOT, directory=tmp_path,
    )  # fmt: skip
    (wheel,) = (tmp_path / "wheel").iterdir()
    run(sys.executable, "-m", "venv", tmp_path / "venv", directory=tmp_path)
    pip = (tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--no-cache-dir")
    run(*pip, "--require-hashes", "-r", ROOT / "requirements.lock", directory=tmp_path)
    run(*pip, "--no-deps", wheel, directory=tmp_path)

    migrator = tmp_path / "venv" / "bin" / "migrator"
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert version[1] in run(migrator, "--version", directory=tmp_path)
    configuration = ROOT / "config" / "migrator.toml"
    assert run(migrator, "config", "check", configuration, directory=tmp_path)
    page = "from migrator.http import page; import pathlib; print(pathlib.Path(page.__file__).parent)"
    where = Path(run(tmp_path / "venv" / "bin" / "python", "-c", page, directory=tmp_path).strip())
    assert where.is_relative_to(tmp_path), "what is imported is the wheel's"
    assert list(where.rglob("*.html")), "the page is in it"


def test_container_is_built_from_files_that_are_here_and_are_locked() -> None:
    text = CONTAINERFILE.read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert {"requirements.lock", "requirements-build.lock", "migrator"} <= set(names)
    assert [name for name in names if not (ROOT / name).exists()] == []
    for command in re.findall(r"pip install [^&\n]+", text):
        assert "--require-hashes" in command or "--no-deps" in command, f"takes what is not locked: {command}"
