"""Which libraries ``make install`` takes: with those for traces and for libvirt where they were asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def version(destination: Path, **environment: str) -> str:
    """It is another one with other libraries."""
    done = subprocess.run(
        [ROOT / "scripts" / "install", "version"],
        env={**os.environ, "DESTDIR": str(destination), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_libraries_for_traces_are_asked_for_once_and_stay(tmp_path: Path) -> None:
    plain, traced = version(tmp_path), version(tmp_path, TRACES="1")
    assert plain != traced
    assert version(tmp_path, TRACES="0") == plain
    current = tmp_path / "opt" / "migrator" / "current"
    (current / "lib" / "python3.11" / "site-packages" / "opentelemetry").mkdir(parents=True)
    assert version(tmp_path) == plain  # a part of it comes with the web framework
    (current / "lib" / "python3.11" / "site-packages" / "opentelemetry" / "sdk").mkdir()
    assert version(tmp_path) == traced
    assert version(tmp_path, TRACES="0") == plain


def test_the_binding_of_libvirt_is_asked_for_once_and_stays(tmp_path: Path) -> None:
    plain, bound = version(tmp_path), version(tmp_path, LIBVIRT="1")
    assert len({plain, bound, version(tmp_path, TRACES="1"), version(tmp_path, TRACES="1", LIBVIRT="1")}) == 4
    packages = tmp_path / "opt/migrator/current/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (packages / "libvirt.py").touch()
    assert version(tmp_path) == bound
    assert version(tmp_path, LIBVIRT="0") == plain


def test_locks_name_the_same_versions_and_only_one_has_the_libraries() -> None:
    def pinned(name: str) -> set[str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return {line.split(" ")[0] for line in lines if "==" in line and not line.startswith((" ", "#"))}

    small, traces, build, large = (
        pinned(f"requirements{which}.lock") for which in ("", "-traces", "-build", "-dev")
    )
    assert small < traces < large
    assert build < large
    assert [line.split("==")[0] for line in pinned("requirements-libvirt.lock")] == ["libvirt-python"]
    assert any(line.startswith("opentelemetry-sdk==") for line in traces - small)


def test_what_builds_the_project_is_not_among_what_runs() -> None:
    runs = (ROOT / "requirements-traces.lock").read_text(encoding="utf-8")
    for name in ("hatchling", "trove-classifiers", "editables", "pluggy", "pathspec"):
        assert f"\n{name}==" not in runs
