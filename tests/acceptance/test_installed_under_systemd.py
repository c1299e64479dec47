"""docs/install.md, step by step, on a machine whose pid 1 is systemd; its one host is that machine, over SSH."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.systemd_machine import Running, SystemdMachine, needs_systemd

pytestmark = [pytest.mark.matrix, needs_systemd, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
GUEST = "11111111-2222-3333-4444-555555555555"
CONFIG, HOST = "/etc/migrator/migrator.toml", "/etc/migrator/hosts.d/one.toml"


def steps(heading: str) -> list[str]:
    """Return the commands under a heading of the document, each after its prompt."""
    text = (ROOT / "docs" / "install.md").read_text()
    found = re.search(rf"(?ms)^## {heading}$.*?^```console\n(.*?)^```", text)
    assert found is not None, heading
    return [line.partition("  #")[0].strip() for line in found[1].splitlines()]


class Administrator:
    """Types what the document says, as root, or as ALICE after ``$``."""

    def __init__(self, running: Running, port: int) -> None:
        self.running, self.port = running, port
        self._replaced = {
            "ALICE": "nobody",
            "host-1 host-2": f"-p {port} localhost",
            "$become": "setpriv --reuid migrator --regid migrator --init-groups --reset-env",
        }

    def type(self, step: str) -> str:
        """Run it where the sources are; return what it printed."""
        prompt, _, command = step.partition(" ")
        for word, instead in self._replaced.items():
            command = command.replace(word, instead)
        if prompt == "$":
            command = f"setpriv --reuid nobody --regid nogroup --init-groups {command}"
        return self.running.do("bash", "-ec", f"cd {ROOT}; {command}", seconds=600)

    def shown(self, what: str) -> str:
        return self.running.do("systemctl", "show", "--value", "--property", what, "migrator.service")


@pytest.fixture
def alice(tmp_path: Path) -> Iterator[Administrator]:
    """At a machine with a guest and an SSH server, and nothing of ours."""
    port = free_port()
    machine = SystemdMachine(tmp_path / "machine")
    machine.write("etc/ssh/sshd_config.d/test.conf", f"Port {port}\nListenAddress 127.0.0.1\n")
    with machine.booted() as running:
        running.do("ssh-keygen", "-A")
        running.do("systemctl", "start", "ssh")
        guest = (
            "mkdir -p /run/qemu; systemd-run -q --unit guest-web qemu-system-x86_64 -M q35,accel=tcg -m 32"
            f" -nodefaults -display none -name web -uuid {GUEST} -qmp unix:/run/qemu/web.qmp,server=on,wait=off"
        )
        running.do("bash", "-ec", guest)
        yield Administrator(running, port)


def test_installed_as_the_document_says_it_serves_its_hosts_within_its_unit_and_is_removed(
    alice: Administrator,
) -> None:
    running = alice.running
    for step in steps("The program"):
        if "apt-get" not in step:
            alice.type(step)
    for step in steps("A key for the hosts"):
        if not step.startswith("# become="):
            alice.type(step)
    running.do(
        "bash",
        "-ec",
        "mkdir -p -m 700 /root/.ssh; { printf 'from=\"127.0.0.1,::1\",restrict,port-forwarding '; "
        "cat /var/lib/migrator/.ssh/id_ed25519.pub; } >>/root/.ssh/authorized_keys",
    )
    # The machine's network is this one's, with whoever listens there.
    running.do(
        "sed", "-i", "-e", r"/^\[\[hosts/,$d", "-e", 's/^metrics_listen.*/metrics_listen = ""/', CONFIG
    )
    host = f'[[hosts]]\nname = "host-1"\nssh = "root@localhost:{alice.port}"\naddress = "127.0.0.1"\n'
    running.do("bash", "-ec", f"cat >{HOST} <<'END'\n{host}END")
    said = {step: alice.type(step) for step in steps("Start it")}

    assert said["# migrator config check"].startswith("ok: ")
    assert re.search("(?m)^ok +host host-1: answers as root, ", said["# $become migrator doctor"])
    assert said["# $become migrator doctor"].endswith(" 0 wrong")
    assert re.search("(?m)^host-1\tactive\tup\t1\t", said["$ migrator hosts"])
    assert re.search(f"(?m)^web\thost-1\trunning\t.*{GUEST}", said["$ migrator guests"])
    assert (alice.shown("SubState"), alice.shown("User")) == ("running", "migrator")

    # After a crash it is started again, and says that it is ready once it sees the host.
    first = alice.shown("MainPID")
    running.do("kill", "-KILL", first)
    running.until_other("systemctl show --value --property MainPID migrator", first)
    running.until("systemctl is-active migrator", "active")
    assert "\tup\t1\t" in alice.type("$ migrator hosts")

    # It reads its configuration again.
    again = alice.shown("MainPID")
    running.do("bash", "-ec", f"""echo 'link_speed = "8Gbit/s"' >>{HOST}""")
    running.do("systemctl", "reload", "migrator")
    running.until(["bash", "-c", "journalctl -q -u migrator -o cat | grep -c 'configuration reloaded'"], "1")
    assert alice.shown("MainPID") == again

    alice.type("# make uninstall")
    assert alice.shown("LoadState") == "not-found"
    assert running.do("bash", "-ec", "pgrep -u migrator || true") == ""
    assert running.do("systemctl", "is-active", "guest-web") == "active"
    running.do("test", "-e", "/var/lib/migrator/journal.db")
