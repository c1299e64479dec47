"""The Debian package: what it does to a machine. That is this one below an overlay, thrown away after each test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.systemd_machine import UNITS, SystemdMachine, needs_systemd

PACKAGES = list((Path(__file__).parents[2] / ".build" / "deb").glob("migrator_*.deb"))

CONFIG = "/etc/migrator/migrator.toml"

#: Seconds that one script may take on a machine with much else to do: it installs or builds the whole package.
_SCRIPT_SECONDS = 600

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.timeout(_SCRIPT_SECONDS + 60),
    pytest.mark.skipif(not PACKAGES, reason="make deb makes the package"),
    pytest.mark.skipif(os.geteuid() != 0, reason="root mounts the machine that the package is installed on"),
]

#: Mounts a machine like this one at ``machine``, with the package in ``/srv``; what is changed there is in memory only.
MACHINE = """
mkdir changed machine
mount -t tmpfs tmpfs changed
mkdir changed/upper changed/work
mount -t overlay overlay -o lowerdir=/,upperdir=changed/upper,workdir=changed/work machine
mount --rbind /proc machine/proc
mount --rbind /dev machine/dev
mount -t tmpfs tmpfs machine/run
cp *.deb machine/srv
exec chroot machine bash -ec "$1"
"""

#: Makes the package once more, as a later version.
LATER = """
cd /srv
dpkg-deb -R migrator_*.deb later
sed -i 's/^Version: .*/Version: 9999/' later/DEBIAN/control
echo '# of the later version' >>later/etc/migrator/migrator.toml
(cd later; find . -path ./DEBIAN -prune -o -type f -printf '%P\\0' | xargs -0 md5sum >DEBIAN/md5sums)
dpkg-deb -Znone --root-owner-group --build later later.deb >/dev/null
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    shutil.copy(PACKAGES[0], tmp_path)
    return Machine(tmp_path)


class Machine:
    """A machine to install on, for one script."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def run(self, script: str) -> list[str]:
        """Run it as root and return the lines that it printed; fails where a command of it did."""
        command = ["unshare", "--mount", "--propagation", "private", "bash", "-ec", MACHINE, "-", script]
        done = subprocess.run(
            command, cwd=self._place, capture_output=True, text=True, timeout=_SCRIPT_SECONDS, check=False
        )
        assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.splitlines()


INSTALL = """
dpkg --force-unsafe-io --force-confdef -i /srv/migrator_*.deb >/dev/null 2>&1
become="setpriv --reuid migrator --regid migrator --init-groups --reset-env"
"""


def test_what_is_installed_can_be_used_and_looked_up(machine: Machine) -> None:
    said = machine.run(
        INSTALL
        + """
        migrator --version
        man -w migrator-evacuate
        find /lib/systemd/system/ /etc/systemd/system/ -name 'migrator*'
        bash -c '. /usr/share/bash-completion/completions/migrator; complete -p migrator'
        $become migrator config check
        stat -c '%U:%G %a %n' /etc/migrator/migrator.toml /var/lib/migrator
        """
    )

    assert said[0].startswith("migrator ")
    assert said[1].endswith("/migrator-evacuate.1.gz")
    assert said[2] == "/lib/systemd/system/migrator.service", "there, and not enabled"
    assert said[3].endswith(" migrator")
    assert said[-2:] == [
        "root:migrator 640 /etc/migrator/migrator.toml",
        "migrator:migrator 700 /var/lib/migrator",
    ]


def test_an_upgrade_leaves_configuration_and_journal(machine: Machine) -> None:
    said = machine.run(
        INSTALL
        + LATER
        + """
        echo '# by hand' >>/etc/migrator/migrator.toml
        $become migrator token create ann --role viewer >/dev/null
        dpkg --force-unsafe-io --force-confold -i /srv/later.deb >/dev/null 2>&1
        tail -n 1 /etc/migrator/migrator.toml
        $become migrator token list
        """
    )

    assert said[0] == "# by hand"
    assert any("ann" in line for line in said[1:])


def test_a_purge_leaves_the_sites_authority_and_nothing_else_but_its_user(machine: Machine) -> None:
    said = machine.run(
        INSTALL
        + """
        migrator --version >/dev/null
        mkdir /etc/migrator/pki && touch /etc/migrator/pki/ca-key.pem /etc/migrator/made-by-hand
        dpkg --purge migrator >/dev/null 2>&1
        (cd /etc/migrator && find . -type f)
        rm -r /etc/migrator/pki && rmdir /etc/migrator
        for path in /var/lib/migrator /usr/lib/migrator /usr/bin/migrator /run/migrator; do
            test ! -e $path || echo "left: $path"
        done
        getent passwd migrator | cut -d: -f1
        """
    )

    assert said == ["./pki/ca-key.pem", "migrator"]


@needs_systemd
@pytest.mark.timeout(3 * _SCRIPT_SECONDS)
def test_its_service_runs_under_systemd_is_upgraded_while_it_runs_and_removed(tmp_path: Path) -> None:
    machine = SystemdMachine(tmp_path / "machine")
    shutil.copy(PACKAGES[0], machine.file("srv"))
    machine.write(f"{UNITS}/migrator.service.d/quick.conf", "[Service]\nWatchdogSec=10s\n")
    with machine.booted() as running:

        def bash(script: str) -> str:
            return running.do("bash", "-ec", script, seconds=_SCRIPT_SECONDS)

        def shown(what: str) -> str:
            return running.do("systemctl", "show", "--value", "--property", what, "migrator.service")

        bash("dpkg --force-unsafe-io --force-confdef -i /srv/migrator_*.deb >/dev/null")
        assert shown("ActiveState") == "inactive", "it is there, and not started"
        # The machine's network is this one's, with whoever listens there; and nobody is looked for.
        bash(f"sed -i -e '/^\\[\\[hosts/,$d' -e 's/^metrics_listen.*/metrics_listen = \"\"/' {CONFIG}")
        running.do("systemctl", "enable", "--now", "migrator", seconds=300)
        assert (shown("ActiveState"), shown("SubState"), shown("User")) == ("active", "running", "migrator")
        assert "ready" in bash("curl -sS --unix-socket /run/migrator/api.sock http://migrator/readyz")

        # As docs/security.md has it.
        analysed = running.do("systemd-analyze", "security", "--no-pager", "migrator.service")
        exposure = re.search(r"Overall exposure level for migrator.service: ([0-9.]+) (\w+)", analysed)
        assert exposure is not None, analysed
        assert (float(exposure[1]) <= 1.5, exposure[2]) == (True, "OK")

        # It says that it lives; once it does not, it is killed and started again.
        beat = shown("WatchdogTimestampMonotonic")
        running.until_other("systemctl show --value --property WatchdogTimestampMonotonic migrator", beat)
        first = shown("MainPID")
        bash(f"kill -STOP {first}")
        running.until_other("systemctl show --value --property MainPID migrator", first)
        running.until("systemctl is-active migrator", "active")

        before = shown("MainPID")
        bash(
            "setpriv --reuid migrator --regid migrator --init-groups --reset-env "
            "migrator token create ann --role viewer"
        )
        bash(LATER + "dpkg --force-unsafe-io --force-confold -i later.deb >/dev/null")
        running.until("systemctl is-active migrator", "active")
        assert shown("MainPID") != before, "the new version runs"
        assert "ann" in bash("migrator token list")

        bash("dpkg --purge migrator >/dev/null")
        assert shown("LoadState") == "not-found"
        assert bash("pgrep -u migrator || true") == ""
