"""The unit, and make install as an administrator types it; below DESTDIR, so that this machine stays as it is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import missing

ROOT = Path(__file__).parents[2]
UNIT, LOCAL = ROOT / "config" / "migrator.service", ROOT / "config" / "migrator-local.conf"


def make(target: str, destination: Path, *variables: str, **environment: str) -> list[str]:
    done = subprocess.run(
        ["make", "--no-print-directory", target, f"DESTDIR={destination}", *variables],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout.splitlines()


def tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and link, with its mode and content."""
    found = {}
    for path in directory.rglob("*"):
        mode = path.lstat().st_mode
        content = str(path.readlink()).encode() if stat.S_ISLNK(mode) else b""
        if stat.S_ISREG(mode):
            content = path.read_bytes()
        found[str(path.relative_to(directory))] = (mode, content)
    return found


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A destination where this version's environment is there already, as after an earlier run."""
    version = subprocess.run(
        [ROOT / "scripts" / "install", "version"], check=True, capture_output=True, text=True
    )
    place = tmp_path / "root" / "opt" / "migrator" / "versions" / version.stdout.strip()
    (place / "bin").mkdir(parents=True)
    for name, program in (
        ("python", sys.executable),
        ("migrator", Path(sys.executable).with_name("migrator")),
    ):
        (place / "bin" / name).write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        (place / "bin" / name).chmod(0o755)
    (place / ".complete").touch()
    return tmp_path / "root"


def test_installed_twice_is_installed_once_and_leaves_what_is_the_administrators(prepared: Path) -> None:
    lines = make("install", prepared)
    assert "install: wrote the example /etc/migrator/migrator.toml: put your hosts into it" in lines
    assert any(line.startswith("install: the system user migrator is to be made there") for line in lines)
    assert all(line.startswith("install: ") for line in lines)
    installed = tree(prepared)
    for name, mode in (
        ("etc/migrator", 0o750),
        ("etc/migrator/migrator.toml", 0o640),
        ("var/lib/migrator", 0o700),
    ):
        assert stat.S_IMODE(installed[name][0]) == mode, name
    assert installed["usr/local/bin/migrator"][1] == b"/opt/migrator/current/bin/migrator"
    for name in ("bash-completion/completions/migrator", "zsh/site-functions/_migrator"):
        assert b"_MIGRATOR_COMPLETE" in installed[f"usr/local/share/{name}"][1]
    assert not [
        line for line in make("install", prepared) if re.search("(wrote|made|linked|removed) /", line)
    ]
    assert tree(prepared) == installed

    configuration = prepared / "etc" / "migrator" / "migrator.toml"
    configuration.write_text("# mine\n")
    assert any("left /etc/migrator/migrator.toml as it is" in line for line in make("install", prepared))
    assert configuration.read_text() == "# mine\n"


def test_one_that_was_there_is_kept_and_older_ones_go(prepared: Path) -> None:
    home = prepared / "opt" / "migrator"
    for name in ("0.0.8-old", "0.0.9-before"):
        (home / "versions" / name).mkdir()
    (home / "current").symlink_to("versions/0.0.9-before")
    lines = make("install", prepared)
    assert any("before it was 0.0.9-before, which is kept" in line for line in lines)
    assert "install: removed /opt/migrator/versions/0.0.8-old" in lines
    names = {path.name for path in (home / "versions").iterdir()}
    assert names == {"0.0.9-before", (home / "current").readlink().name}


def test_uninstalled_leaves_configuration_and_journal(prepared: Path) -> None:
    other = prepared / "usr" / "local" / "bin" / "other"
    make("install", prepared)
    other.write_text("not ours")
    (prepared / "var/lib/migrator/journal.db").write_text("journal")
    lines = make("uninstall", prepared)
    assert any(
        line.startswith("install: left: /etc/migrator (configuration), /var/lib/migrator") for line in lines
    )
    left = {name for name, (mode, _) in tree(prepared).items() if not stat.S_ISDIR(mode)}
    assert left == {"etc/migrator/migrator.toml", "var/lib/migrator/journal.db", "usr/local/bin/other"}
    assert not (prepared / "opt" / "migrator").exists()
    again = make("uninstall", prepared)
    assert not [line for line in again if "removed" in line]


@pytest.mark.parametrize("prefix", ["/usr", "relative"])
def test_prefix_that_would_take_others_along_is_refused(tmp_path: Path, prefix: str) -> None:
    for target in ("install", "uninstall"):
        done = subprocess.run(
            ["make", target, f"DESTDIR={tmp_path}", f"PREFIX={prefix}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        assert "PREFIX must be" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.matrix
@pytest.mark.timeout(300)
def test_whole_installation_works_where_it_will_be(tmp_path: Path) -> None:
    """Loads what the lock names, so not in every run."""
    place = tmp_path / "there"
    root = tmp_path / "root"
    make("install", root, f"PREFIX={place}")
    unit = (root / "usr/local/lib/systemd/system/migrator.service").read_text()
    assert f"ExecStart={place}/current/bin/migrator serve" in unit
    found = [name for name, (_, content) in tree(root).items() if str(root).encode() in content]
    assert not [name for name in found if not name.endswith((".pyc", "RECORD"))]
    (root / str(place).lstrip("/")).rename(place)
    program = place / "current" / "bin" / "migrator"
    done = subprocess.run(
        [program, "config", "check", root / "etc/migrator/migrator.toml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done
    assert list(place.glob("current/lib/python3*/site-packages/migrator/http/page/index.html"))


#: Run where everything that is written to is a layer over this machine's, seen by nobody else and gone afterwards.
_ON_A_COPY = """
set -e
mount -t tmpfs none /mnt
for d in etc usr/local opt var/lib; do
    mkdir -p /mnt/upper/$d /mnt/work/$d /$d
    mount -t overlay none -o lowerdir=/$d,upperdir=/mnt/upper/$d,workdir=/mnt/work/$d /$d
done
make --no-print-directory install
stat -c '%n %U %G %a' /etc/migrator /etc/migrator/migrator.toml /var/lib/migrator
config=/etc/migrator/migrator.toml
sed -i -e '/^\\[\\[hosts/,$d' -e 's#^metrics_listen.*#metrics_listen = ""#' $config
sed -i 's#^socket = .*#socket = "/var/lib/migrator/api.sock"#' $config
become="setpriv --reuid migrator --regid migrator --init-groups --reset-env --no-new-privs --bounding-set=-all"
cd /
# Made by root, and the service's all the same.
migrator token create somebody --role viewer >/dev/null
$become migrator serve &
for i in $(seq 100); do [ -S /var/lib/migrator/api.sock ] && break; sleep 0.1; done
stat -c '%n %U %G %a' /var/lib/migrator/*
$become migrator doctor || true
$become migrator hosts --server unix:/var/lib/migrator/api.sock
kill %1
wait %1
echo "served: $?"
cd -
make --no-print-directory uninstall
ls /var/lib/migrator
"""


@pytest.mark.matrix
@pytest.mark.timeout(300)
def test_installed_on_a_copy_of_this_machine_and_served_by_its_own_user() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        missing("a mount namespace takes root and unshare")
    before = [path.exists() for path in (Path("/opt/migrator"), Path("/var/lib/migrator"))]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c", _ON_A_COPY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if "mount:" in done.stderr:
        missing(f"no layers here: {done.stderr}")
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    for line in (
        "install: made the system user and group migrator; who is in the group may use the service",
        "/etc/migrator root migrator 750",
        "/etc/migrator/migrator.toml root migrator 640",
        "/var/lib/migrator migrator migrator 700",
        "/var/lib/migrator/journal.db migrator migrator 600",
        "/var/lib/migrator/api.sock migrator migrator 660",
        "ok    broker: none is configured",
        "served: 0",
        "journal.db",
    ):
        assert line in lines, (line, done)
    assert any(line.startswith("ok    service: answers at /var/lib/migrator/api.sock") for line in lines), (
        lines
    )
    assert not any("this was run by" in line for line in lines)
    assert [path.exists() for path in (Path("/opt/migrator"), Path("/var/lib/migrator"))] == before


# the unit


def systemd_analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        missing("there is no systemd-analyze here")
    assert program is not None
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)


def units(directory: Path, *drop_ins: Path) -> Path:
    """The unit with a program that is there, and drop-ins."""
    unit = directory / "migrator.service"
    text, count = re.subn(
        "(?m)^ExecStart=/opt/migrator/current/bin/migrator", "ExecStart=/bin/true", UNIT.read_text()
    )
    assert count == 1
    unit.write_text(text)
    for each in drop_ins:
        (directory / "migrator.service.d").mkdir(exist_ok=True)
        shutil.copy(each, directory / "migrator.service.d")
    return unit


@pytest.mark.parametrize(("drop_ins", "exposure"), [((), 1.6), ((LOCAL,), 7.0)], ids=["over-ssh", "local"])
def test_unit_is_one_and_exposes_little(tmp_path: Path, drop_ins: tuple[Path, ...], exposure: float) -> None:
    unit = units(tmp_path, *drop_ins)
    verified = systemd_analyze("verify", unit)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    judged = systemd_analyze("security", "--offline=true", f"--threshold={exposure * 10:.0f}", unit)
    assert judged.returncode == 0, judged.stdout


def values(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_unit_keeps_what_the_service_promises() -> None:
    unit = values(UNIT)
    assert unit["KillMode"] == ["process"]  # guests of a machine without transient units live on
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]  # their monitors are below it
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]
    stop = re.search(r'(?m)^stop_timeout = "(\d+)s"', (ROOT / "config" / "migrator.toml").read_text())
    assert stop is not None
    assert float(unit["TimeoutStopSec"][0].removesuffix("s")) > float(stop[1]) + 10


@pytest.fixture
def told(tmp_path: Path) -> Iterator[socket.socket]:
    """What stands for systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(90)  # a service starts two processes, on a machine that may be busy
        yield sock


def _no_new_code() -> None:
    """As MemoryDenyWriteExecute=, where the kernel can."""
    ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)


def test_service_lives_with_what_the_unit_leaves_it(tmp_path: Path, told: socket.socket) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        missing("dropping rights takes root and setpriv")
    config = tmp_path / "migrator.toml"
    config.write_text(
        '[http]\nsocket = "run/api.sock"\nmetrics_listen = "127.0.0.1:0"\n[store]\npath = "state/j.db"\n'
        '[[hosts]]\nname = "away"\nssh = "root@127.0.0.1:1"\n'
    )
    service = subprocess.Popen(
        [
            *("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
            *(sys.executable, "-m", "migrator", "serve", "--config", str(config)),
        ],
        env={
            **os.environ,
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "300000",
            "HOME": str(tmp_path),
        },
        preexec_fn=_no_new_code,  # noqa: PLW1509 - there is one thread here
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        first = [told.recv(100) for _ in range(6)]
        assert first.count(b"READY=1") == 1
        assert first.count(b"WATCHDOG=1") >= 4
        assert (tmp_path / "run" / "api.sock").is_socket()
        service.send_signal(signal.SIGHUP)  # ExecReload
        service.terminate()
        while told.recv(100) != b"STOPPING=1":
            pass
        assert service.wait(30) == 0
        assert not (tmp_path / "run" / "api.sock").exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            service.kill()
        print(service.communicate()[1])  # noqa: T201 - pytest shows it with a failed test


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_installed_with_libvirt_it_has_its_binding_and_keeps_it_in_the_next_version(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make("install", root, "LIBVIRT=1")
    (place,) = (each for each in (root / "opt/migrator/versions").iterdir() if each.is_dir())
    found = subprocess.run(
        [place / "bin/python", "-c", "import libvirt; print(libvirt.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert Path(found.stdout.strip()).is_relative_to(place)
    make("install", root)
    assert [each for each in (root / "opt/migrator/versions").iterdir() if each.is_dir()] == [place]
