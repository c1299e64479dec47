"""When ``make install`` installs anew, and with which libraries: those for traces and libvirt where they are wanted."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def version(destination: Path, *, sources: Path = ROOT, **environment: str) -> str:
    """Return what is installed if it is not there yet; with other libraries it is another one."""
    done = subprocess.run(
        [sources / "scripts" / "install", "version"],
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


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What an installation is made of, to be changed."""
    place = tmp_path / "sources"
    for name in ("config", "contrib", "dashboards", "docs", "scripts"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "migrator").mkdir()
    for name in ("migrator/__init__.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    for lock in ROOT.glob("requirements*.lock"):
        shutil.copy(lock, place)
    return place


def test_a_change_in_anything_that_is_installed_is_another_version(sources: Path, tmp_path: Path) -> None:
    found = [version(tmp_path, sources=sources)]
    for name in (
        "migrator/__init__.py",
        "contrib/hooks/guest-unit",
        "contrib/systemd/migrator-drain.service",
        "contrib/ansible/playbooks/rack.yml",
        "config/migrator.service",
        "dashboards/rules/alerts.yml",
        "docs/install.md",
        "docs/openapi.json",
        "CHANGELOG.md",
        "scripts/install",
    ):
        with (sources / name).open("a") as file:
            file.write("\n")
        found.append(version(tmp_path, sources=sources))
        assert found[-1] not in found[:-1], name
    # What Python leaves there, and the tests, are not installed.
    (sources / "contrib/hooks/__pycache__").mkdir()
    (sources / "contrib/hooks/__pycache__/made.pyc").touch()
    (sources / "tests").mkdir()
    (sources / "tests/test_one.py").touch()
    assert version(tmp_path, sources=sources) == found[-1]


def test_another_python_takes_an_installation_of_its_own(tmp_path: Path) -> None:
    """One that comes with a newer Debian does not find the libraries of the one before."""
    newer = tmp_path / "python3"
    newer.write_text('#!/bin/sh\ncase $2 in *print*) echo "(3, 99)";; esac\n')
    newer.chmod(0o755)
    assert version(tmp_path, PYTHON=str(newer)) != version(tmp_path)
    assert version(tmp_path, PYTHON=str(newer)) == version(tmp_path, PYTHON=str(newer))


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
