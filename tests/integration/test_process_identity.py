"""Whose a process is, where it lives and what it may use: read on every kind of host, and given to another process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.core.preflight.host_process import differences
from migrator.core.process.process_identity import DroppedPrivileges, ProcessIdentity
from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.local import LocalAccess
from migrator.hosts.process_identity import read_process, try_process
from migrator.hosts.run_as import run_as
from migrator.hosts.ssh import SshAccess
from tests.integration.test_checks_files import OtherMounts
from tests.sshd import Sshd

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

NOBODY = 65534


def shell(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script + '; exec "$@"', "sh")


#: How a process may have been started, by what is told of it afterwards.
SHAPES: dict[str, tuple[str, ...]] = {
    "as-we-are": (),
    "user": ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    "user-without-account": ("setpriv", "--reuid=54321", "--regid=54322", "--groups=6,27,54323"),
    "no-groups": ("setpriv", "--clear-groups"),
    "groups": ("setpriv", "--groups=6,27"),
    "rights-beside-its-user": (
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
        *("--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service"),
    ),
    "no-new-privileges": ("setpriv", "--no-new-privs"),
    "umask": shell("umask 0137"),
    "open-files": ("prlimit", "--nofile=1234:2345"),
    "locked-memory": ("prlimit", "--memlock=1048576:2097152"),
    "core": ("prlimit", "--core=0:0"),
    "one-cpu": ("taskset", "-c", "0"),
    "nice": ("nice", "-n", "7"),
    "urgent": ("nice", "-n", "-5"),
    "batch": ("chrt", "--batch", "0"),
    "idle": ("chrt", "--idle", "0"),
    "realtime": ("chrt", "--rr", "5"),
    "input-output": ("ionice", "-c", "2", "-n", "6"),
    "input-output-idle": ("ionice", "-c", "3"),
    "oom": shell("echo 300 >/proc/self/oom_score_adj"),
    "oom-never": shell("echo -500 >/proc/self/oom_score_adj"),
    "directory": shell("cd /usr/share"),
    "all-of-it": (
        *shell("umask 0002; cd /usr/lib; echo 100 >/proc/self/oom_score_adj"),
        *("prlimit", "--nofile=777:888", "--memlock=65536:65536", "nice", "-n", "3", "taskset", "-c", "0"),
        *("setpriv", "--reuid=65534", "--regid=6", "--groups=27", "--no-new-privs"),
    ),
}


@contextmanager
def sleeper(*prefix: str, **how: object) -> Iterator[int]:
    """A process that was started through a command; its pid."""
    sign = "echo up; exec sleep 600"
    process = subprocess.Popen([*prefix, "sh", "-c", sign], stdout=subprocess.PIPE, **how)  # type: ignore[call-overload]
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"up\n":
            pytest.skip(f"{prefix[0]} may not do that here")
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def identity_of(pid: int, access: HostAccess | None = None) -> ProcessIdentity:
    found = await read_process(access or LocalAccess("alpha"), pid)
    assert found is not None
    return found[0]


def bare(identity: ProcessIdentity) -> ProcessIdentity:
    """Without what a host tells of it: its cgroup is not copied but by systemd."""
    return replace(identity, cgroup="", cgroup_limits={}, account="")


class TestGiven:
    @pytest.mark.parametrize("shape", SHAPES)
    async def test_another_process_is_made_the_same(self, shape: str) -> None:
        alpha = LocalAccess("alpha")
        with sleeper(*SHAPES[shape]) as pid:
            wanted = await identity_of(pid)
        with sleeper(*run_as(wanted)) as pid:
            assert bare(await identity_of(pid)) == bare(wanted)
        trial = await try_process(alpha, wanted, drops=DroppedPrivileges())
        assert trial.identity is not None
        assert bare(trial.identity) == bare(wanted)
        assert list(differences(wanted, trial.identity)) == []

    async def test_over_ssh_too(self, tmp_path: Path) -> None:
        with Sshd(tmp_path / "sshd") as sshd:
            access = SshAccess("beta", sshd.config())
            try:
                for shape in ("as-we-are", "all-of-it", "rights-beside-its-user"):
                    with sleeper(*SHAPES[shape]) as pid:
                        wanted = await identity_of(pid)
                        assert await identity_of(pid, access) == wanted
                    trial = await try_process(access, wanted, drops=DroppedPrivileges())
                    assert trial.identity is not None
                    assert list(differences(wanted, trial.identity)) == []
            finally:
                await access.close()

    async def test_by_one_who_is_not_root_as_far_as_it_may_and_the_rest_is_said(self) -> None:
        weak = LocalAccess("beta", ("prlimit", "--nofile=1000:1000", *SHAPES["user"]))
        with sleeper(*SHAPES["user"], *shell("umask 0137"), "prlimit", "--nofile=500:600", "nice") as pid:
            wanted = await identity_of(pid)
        trial = await try_process(weak, wanted, drops=DroppedPrivileges())
        assert trial.identity is not None
        assert list(differences(wanted, trial.identity)) == []  # less than it has itself it may have
        with sleeper(*SHAPES["urgent"], "prlimit", "--nofile=1500:2000") as pid:
            wanted = await identity_of(pid)
        trial = await try_process(weak, wanted, drops=DroppedPrivileges())
        assert trial.identity is not None
        assert trial.identity.user == NOBODY
        said = "; ".join(differences(wanted, trial.identity))
        assert "open files is 1500 (hard 2000), and 1000" in said
        assert "nice value is" in said

    async def test_root_that_cannot_become_that_user_starts_nothing(self) -> None:
        tied = LocalAccess("beta", ("setpriv", "--bounding-set=-setuid", "--inh-caps=-all"))
        with sleeper(*SHAPES["user"]) as pid:
            wanted = await identity_of(pid)
        trial = await try_process(tied, wanted, drops=DroppedPrivileges())
        assert trial.identity is None
        assert "setpriv" in trial.complaint
        assert trial.accounts.name == "nobody"
        done = await tied.run([*run_as(wanted), "echo", "started"])
        assert done.status
        assert "started" not in done.text

    async def test_user_by_name_as_qemu_becomes_it(self) -> None:
        alpha = LocalAccess("alpha")
        mine = await identity_of(os.getpid())
        trial = await try_process(
            alpha, mine, drops=DroppedPrivileges(user="nobody"), paths=["/etc/shadow", "/etc/passwd"]
        )
        assert trial.identity is not None
        assert (trial.identity.user, trial.accounts.number) == (NOBODY, NOBODY)
        assert trial.identity.capabilities == 0
        assert {path: set(may) for path, may in trial.may.items()} == {
            "/etc/shadow": {"e"},
            "/etc/passwd": {"e", "r"},
        }
        trial = await try_process(alpha, mine, drops=DroppedPrivileges(user="1234:5678"))
        assert trial.identity is not None
        assert (trial.identity.user, trial.identity.group, trial.identity.groups) == (
            1234,
            5678,
            frozenset({5678}),
        )
        assert (
            await try_process(alpha, mine, drops=DroppedPrivileges(user="no such"))
        ).accounts.number is None


class TestRead:
    async def test_process_that_is_gone_is_none(self) -> None:
        with sleeper() as pid:
            pass
        assert await read_process(LocalAccess("alpha"), pid) is None

    async def test_host_whose_answer_is_rubbish_is_an_error(self) -> None:
        with pytest.raises(HostError, match=r"beta.*cannot be looked at"):
            await read_process(LocalAccess("beta", ("echo", "hello")), os.getpid())

    async def test_one_that_we_may_not_look_into_is_known_by_what_it_shows_to_all(self) -> None:
        with sleeper() as pid:
            found = await read_process(LocalAccess("beta", SHAPES["user"]), pid)
        assert found is not None
        identity, held = found
        assert (identity.user, identity.directory) == (0, "")
        assert (held.files, held.directory) == (None, "")

    @pytest.mark.parametrize("name", ["a b", "$(touch x)", "new\nline", "ü", "-rf", "x (deleted)"])
    async def test_open_files_of_any_name(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_bytes(b"x")
        with path.open() as file, sleeper(pass_fds=[file.fileno()]) as pid:
            path.rename(tmp_path / "moved")
            path.write_bytes(b"another")
            found = await read_process(LocalAccess("alpha"), pid)
        assert found is not None
        opened = [each.path for each in found[1].files or ()]
        assert str(tmp_path / "moved") in opened
        assert str(path) not in opened

    async def test_namespaces_of_its_own(self) -> None:
        with sleeper("unshare", "--pid", "--fork", "--kill-child") as pid:
            child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
            assert (await identity_of(child)).namespaces == {"pid"}
        with sleeper("unshare", "--mount", "--net") as pid:
            assert (await identity_of(pid)).namespaces == {"mnt", "net"}
        with sleeper("unshare", "--user", "--map-root-user") as pid:
            assert (await identity_of(pid)).namespaces == {"user"}

    async def test_path_that_means_another_file_to_it(self, tmp_path: Path) -> None:
        shared, own = tmp_path / "shared", tmp_path / "own"
        for directory in (shared, own):
            directory.mkdir()
            (directory / "kernel").write_bytes(b"x")
        mounts = OtherMounts(shared, own)
        paths = [str(shared / "kernel"), str(own / "kernel"), "/etc/passwd"]
        try:
            with sleeper(*mounts.prefix) as pid:
                found = await read_process(LocalAccess("alpha"), pid, paths=paths)
                assert found is not None
                assert found[1].elsewhere == {paths[0]}
                inside = await read_process(LocalAccess("alpha", mounts.prefix), pid, paths=paths)
                assert inside is not None
                assert inside[1].elsewhere == set()
        finally:
            mounts.close()
