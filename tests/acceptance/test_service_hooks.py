"""Hooks of the site over real QEMUs: the two that are shipped, and one that hangs."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from migrator.core.hooks import Hook, HookPlace, HookPoint
from migrator.core.inventory import Guest
from migrator.settings.hooks import HookSettings
from migrator.site.connections import HostConnections
from migrator.site.hooks import SiteHooks
from migrator.testing.lab import until
from tests.acceptance.service_site import guest, served

CONTRIB = Path(__file__).parents[2] / "contrib" / "hooks"


def entry(point: str, *command: object, where: str = "controller", timeout: str = "10s") -> str:
    words = json.dumps([str(word) for word in command])
    return f'[[hooks]]\npoint = "{point}"\ncommand = {words}\nwhere = "{where}"\ntimeout = "{timeout}"\n'


async def test_a_clusters_file_moves_with_its_guest_and_its_watcher_is_paused_meanwhile(
    tmp_path: Path,
) -> None:
    web, paused = guest("web"), tmp_path / "paused"
    conf = {host: tmp_path / host / "web.conf" for host in ("a", "b")}
    for each in conf.values():
        each.parent.mkdir()
    conf["a"].write_text("of web")
    template = str(tmp_path / "{host}" / "{name}.conf")
    seen = tmp_path / "seen"
    watcher = CONTRIB / "pause-watcher"
    extra = (
        entry("before", CONTRIB / "move-config", template)
        + entry("before", watcher, "pause", paused, where="source")
        + entry("at-switch", "/bin/sh", "-c", f"ls {paused} >{seen}; sleep 60", timeout="8s")
        + entry("after", CONTRIB / "move-config", template)
        + entry("after", watcher, "resume", paused, where="source")
        + entry("failed", watcher, "resume", paused, where="source")
    )
    async with served([web], "a", "b", extra=extra) as site:
        moved = await site.post("migrations", guest=str(web.uuid), to="b")
        document = await site.migration_ended(moved["id"], "completed")
        assert site.where(await site.runs_once(web)) == "b"
        assert not conf["a"].exists()
        assert conf["b"].read_text() == "of web"
        assert seen.read_text().split() == [moved["id"]]
        assert list(paused.iterdir()) == []
        # The one that hung was killed, and said; nothing waited for it.
        failed = [each["message"] for each in document["findings"] if each["code"] == "hook-failed"]
        assert len(failed) == 1
        assert "did not end within 8 s; it was killed" in failed[0]
        assert document["duration_seconds"] < 8
        # Its file is missing at the target of the way back: it says no, and who was paused goes on.
        conf["b"].unlink()
        back = await site.post("migrations", guest=str(web.uuid), to="a")
        refused = await site.migration_ended(back["id"], "failed")
        assert refused["refused"]
        assert refused["error"].endswith(f"says no (status 1): there is no {conf['b']}")
        assert list(paused.iterdir()) == []
        assert site.where(await site.runs_once(web)) == "b"


class TestRun:
    @pytest.fixture
    def hooks(self) -> SiteHooks:
        return SiteHooks(HostConnections({}), [])

    def hook(self, *command: str, timeout: float = 10.0) -> Hook:
        return Hook(
            name="it",
            point=HookPoint.BEFORE,
            command=command,
            place=HookPlace.CONTROLLER,
            timeout_seconds=timeout,
        )

    async def test_gets_the_document_and_no_secrets(
        self, hooks: SiteHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MIGRATOR_MQTT_PASSWORD", "secret")
        result = await hooks.run(self.hook("/bin/cat"), "", {"a": "ä\n"})
        assert (result.status, json.loads(result.output)) == (0, {"a": "ä\n"})
        result = await hooks.run(self.hook("/usr/bin/env"), "", {})
        assert "PATH" in result.output
        assert "secret" not in result.output

    async def test_one_that_hangs_is_killed_with_its_children(self, hooks: SiteHooks, tmp_path: Path) -> None:
        pid = tmp_path / "pid"
        hanging = self.hook("/bin/sh", "-c", f"sleep 99 & echo $! >{pid}; wait", timeout=0.5)
        result = await hooks.run(hanging, "", {})
        assert result.status is None
        assert "did not end within 0.5 s" in result.output
        await until(lambda: gone(int(pid.read_text())), what="the end of its child")

    async def test_one_whose_migration_is_given_up_is_killed(self, hooks: SiteHooks, tmp_path: Path) -> None:
        pid = tmp_path / "pid"
        task = asyncio.create_task(hooks.run(self.hook("/bin/sh", "-c", f"echo $$ >{pid}; sleep 99"), "", {}))
        async with asyncio.timeout(10):
            while not (pid.exists() and pid.read_text()):
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: gone(int(pid.read_text())), what="the end of it")

    @pytest.mark.parametrize(
        ("script", "status", "output"),
        [
            ("echo why; echo more >&2; exit 7", 7, "why"),
            ("echo only this >&2; exit 1", 1, "only this"),
            ("yes | head -c 100000; exit 1", 1, "y" + 149 * " y" + "…"),
            ("kill -9 $$", -9, ""),
        ],
    )
    async def test_says_how_it_ended(self, hooks: SiteHooks, script: str, status: int, output: str) -> None:
        result = await hooks.run(self.hook("/bin/sh", "-c", script), "", {})
        assert result.status == status
        assert result.output[:298] == output[:298]

    async def test_program_that_is_not_there_could_not_be_run(self, hooks: SiteHooks) -> None:
        result = await hooks.run(self.hook("/no/such/program"), "", {})
        assert result.status is None
        assert "/no/such/program" in result.output

    def test_relative_program_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no absolute path"):
            HookSettings.model_validate({"point": "after", "command": ["x"]})

    def test_is_due_for_its_guests_alone(self) -> None:
        settings = HookSettings.model_validate({"point": "after", "command": ["/x"], "match": ["db-*"]})
        hooks = SiteHooks(HostConnections({}), [settings])
        guests = [Guest(key=name, name=name, host="a", socket="/s") for name in ("db-1", "web")]
        assert [len(hooks.due(HookPoint.AFTER, each)) for each in guests] == [1, 0]


def told(point: str, name: str = "web") -> Mapping[str, Any]:
    return {
        "point": point,
        "guest": {"id": "u", "uuid": "u", "name": name},
        "source": {"host": "a"},
        "destination": {"host": "b"},
        "migration": {"id": "m1"},
    }


def shipped(program: str, *arguments: str, document: Mapping[str, Any]) -> tuple[int, str]:
    done = subprocess.run(
        [CONTRIB / program, *arguments],
        input=json.dumps(document),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


class TestMoveConfig:
    @pytest.fixture
    def template(self, tmp_path: Path) -> str:
        for host in ("a", "b"):
            (tmp_path / host).mkdir()
        (tmp_path / "a" / "web.conf").write_text("of web")
        return str(tmp_path / "{host}" / "{name}.conf")

    def test_may_be_told_twice(self, template: str, tmp_path: Path) -> None:
        assert shipped("move-config", template, document=told("before")) == (0, "")
        for _ in range(2):
            assert shipped("move-config", template, document=told("after"))[0] == 0
        assert not list((tmp_path / "a").iterdir())
        assert (tmp_path / "b" / "web.conf").read_text() == "of web"

    def test_says_no_where_the_target_has_one(self, template: str, tmp_path: Path) -> None:
        (tmp_path / "b" / "web.conf").touch()
        status, said = shipped("move-config", template, document=told("before"))
        assert (status, said) == (1, f"{tmp_path}/b/web.conf is there already\n")

    def test_takes_no_name_that_leads_elsewhere(self, template: str) -> None:
        status, said = shipped("move-config", template, document=told("after", name="../../etc/x"))
        assert (status, said) == (1, "'../../etc/x' cannot be part of a file's name\n")


def test_the_watcher_is_paused_until_the_last_guest_has_moved(tmp_path: Path) -> None:
    first, second = told("before"), {**told("before"), "migration": {"id": "m2", "x": 1}}
    for action, document, left in [
        ("pause", first, ["m1"]),
        ("pause", first, ["m1"]),
        ("pause", second, ["m1", "m2"]),
        ("resume", first, ["m2"]),
        ("resume", first, ["m2"]),
        ("resume", second, []),
    ]:
        assert shipped("pause-watcher", action, str(tmp_path), document=document) == (0, "")
        assert sorted(path.name for path in tmp_path.iterdir()) == left


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
