"""Guests that are saved into files and loaded from them, over real QEMUs; never twice, and never none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.testing.lab import until
from tests.acceptance.service_site import MIB, LiveSite, guest, made, served
from tests.conftest import missing
from tests.integration.test_guest_agent import ScriptedAgent, listening


async def saved(site: LiveSite, machine: Any, file: Path, state: str = "completed") -> Any:
    begun = await site.post("saves", guest=str(machine.uuid), file=str(file))
    return await site.migration_ended(begun["id"], state)


async def loaded(site: LiveSite, file: Path, to: str, state: str = "completed") -> Any:
    begun = await site.post("loads", file=str(file), to=to)
    return await site.migration_ended(begun["id"], state)


async def over(site: LiveSite, migration: str) -> Any:
    async def ended() -> bool:
        return bool((await site.get(f"migrations/{migration}"))["ended_at"])

    await until(ended, what="its end", within=60)
    return await site.get(f"migrations/{migration}")


def beside(file: Path) -> Any:
    return json.loads(Path(f"{file}.json").read_text())


async def test_a_guest_is_saved_and_goes_on_elsewhere_out_of_its_file_once(
    tmp_path: Path, one_version: Path
) -> None:
    web, file = guest("web"), tmp_path / "web.state"
    async with made([], "a", "b") as site:
        await site.boot(web, "a", binary=one_version)
        site.serve()
        await site.until_served()
        await site.known(1)
        document = await saved(site, web, file)
        assert document["file"] == str(file)
        assert document["file_use"] == "save"
        assert document["mode"] == "offline"
        assert site.instances(web) == []
        assert (await site.get("guests"))["items"] == []
        assert beside(file)["state"] == "saved"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["web.state", "web.state.json"]
        done = await loaded(site, file, "b")
        assert done["file_use"] == "load"
        assert site.where(await site.runs_once(web)) == "b"
        assert beside(file)["state"] == "loaded"
        status, problem = await site.try_post("loads", file=str(file), to="a")
        assert status == 409, problem
        # Once the guest has ended elsewhere the file is still of the past.
        (there,) = site.instances(web)
        await there.query("quit")
        await until(lambda: not site.instances(web), what="its end")
        await site.cli("guests", "--refresh")
        status, problem = await site.try_post("loads", file=str(file), to="a")
        assert status == 409, problem
        assert "was loaded already" in problem["detail"]


@pytest.mark.parametrize("thoroughly", [False, pytest.param(True, marks=pytest.mark.matrix)])
async def test_a_guest_of_a_newer_qemu_has_each_page_at_its_place_in_the_file(
    tmp_path: Path, qemu_binary: Callable[[str], Path], thoroughly: bool
) -> None:
    web, file = guest("web"), tmp_path / "web.state"
    async with made([], "a", "b", "c") as site:
        await site.boot(web, "a", binary=qemu_binary("10.0"))
        site.change_host("b", ("address = ", f'qemu = "{qemu_binary("7.2")}"\naddress = '))
        site.serve()
        await site.until_served()
        await site.known(1)
        document = await saved(site, web, file)
        assert document["streams"] == 2
        assert beside(file)["form"] == "mapped-ram"
        assert file.stat().st_size >= web.memory_bytes
        # A QEMU that cannot read it is refused, and the file stays as it was.
        refused = await loaded(site, file, "b", "failed")
        assert refused["refused"]
        assert "has the form mapped-ram, which QEMU 7.2" in refused["error"]
        assert beside(file)["state"] == "saved"
        assert site.instances(web) == []
        if not thoroughly:  # what follows is shown of files of the other form, too
            await loaded(site, file, "c")
            assert site.where(await site.runs_once(web)) == "c"
            return
        # One byte of it is another: so is one that is in no hole of a copy.
        whole = file.read_bytes()
        file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        document = await loaded(site, file, "c", "failed")
        assert "its checksum is another" in document["error"]
        # It was cut off, be it in what is a hole.
        for size in (len(whole) - 1, len(whole) // 2, 0):
            file.write_bytes(whole)
            os.truncate(file, size)
            document = await loaded(site, file, "c", "failed")
            assert "is not what was saved" in document["error"], document
            assert beside(file)["state"] == "saved"
            assert site.instances(web) == []
        file.write_bytes(whole)
        # A controller that is killed while it is loaded leaves the guest in one place.
        begun = await site.post("loads", file=str(file), to="c")
        await at_once(lambda: beside(file)["state"] == "loading")
        await site.restart()
        document = await over(site, begun["id"])
        if document["state"] != "completed":
            assert beside(file)["state"] == "saved", document
            assert site.instances(web) == []
            await loaded(site, file, "c")
        assert site.where(await site.runs_once(web)) == "c"
        assert beside(file)["state"] == "loaded"


async def test_saved_guests_are_listed_with_where_they_can_be_loaded(tmp_path: Path) -> None:
    web, file, other = guest("web"), tmp_path / "web.state", guest("db")
    async with served([web, other], "a", "b") as site:
        assert (await site.get("saved"))["items"] == []
        document = await saved(site, web, file)
        await saved(site, other, tmp_path / "db.state")
        await site.restart()
        first, second = (await site.get("saved"))["items"]
        assert first["migration"] == document["id"]
        assert (first["guest_name"], first["host"], first["file"]) == ("web", "a", str(file))
        assert (first["state"], first["size_bytes"]) == ("saved", file.stat().st_size)
        assert all(first[each] for each in ("saved_at", "qemu_version", "machine"))
        assert [(each["host"], each["loadable"]) for each in first["hosts"]] == [("a", True), ("b", True)]
        shown = await site.cli("saved", "--host", "a")
        assert shown.returncode == 0
        assert "web.state" in shown.stdout
        # One of them goes on, and the file of the other vanishes: it is said so, with what was known of it.
        await loaded(site, file, "b")
        size = second["size_bytes"]
        (tmp_path / "db.state").unlink()
        (left,) = (await site.get("saved"))["items"]
        assert (left["guest_name"], left["state"], left["size_bytes"]) == ("db", "missing", size)
        assert not any(each["loadable"] for each in left["hosts"])
        Path(f"{tmp_path}/db.state.json").unlink()
        (left,) = (await site.get("saved"))["items"]
        assert (left["state"], left["size_bytes"]) == ("missing", size)
        # What was not saved in the end is on no list.
        begun = await site.post("saves", guest=str(web.uuid), file=str(tmp_path / "none" / "web.state"))
        await site.migration_ended(begun["id"], "failed")
        assert len((await site.get("saved"))["items"]) == 1
        # The file of the one that goes on is of no use any more; the other's is taken off the list once that is meant.
        deleted = await site.cli("discard", str(file), "--host", "b")
        assert "its guest was loaded by migration " in deleted.stdout, deleted
        assert sorted(tmp_path.glob("web.state*")) == []
        kept = await site.cli("discard", left["file"], "--host", "a")
        assert kept.returncode == 1
        assert "--only-copy" in kept.stderr
        assert (await site.cli("discard", left["file"], "--host", "a", "--only-copy")).returncode == 0
        assert (await site.get("saved"))["items"] == []
        # The last copy of a guest is deleted only where that is said.
        await saved(site, web, file)
        assert (await site.try_post("discards", file=str(file), host="b"))[0] == 409
        assert file.exists()
        found = await site.post("discards", file=str(file), host="b", only_copy=True)
        assert (found["state"], found["guest_name"]) == ("discarded", "web")
        assert sorted(tmp_path.glob("web.state*")) == []
        assert (await site.get("saved"))["items"] == []


async def test_a_disk_that_is_full_leaves_the_guest_running_and_nothing_behind(tmp_path: Path) -> None:
    web = guest("web")
    with small_disk(tmp_path / "small", 4 << 20) as directory:
        async with served([web], "a", "b") as site:
            begun = await site.post(
                "saves", guest=str(web.uuid), file=f"{directory}/web.state", accept=["save-room"]
            )
            document = await site.migration_ended(begun["id"], "failed")
            assert "No space left on device" in document["error"]
            assert site.where(await site.runs_once(web)) == "a"
            assert list(directory.iterdir()) == []
            # Without being told to go on it is refused before anything is done.
            begun = await site.post("saves", guest=str(web.uuid), file=f"{directory}/web.state")
            document = await site.migration_ended(begun["id"], "failed")
            assert document["refused"]
            assert "save-room" in document["error"]
            # Where it has room it is saved even so.
            await saved(site, web, tmp_path / "web.state")


@pytest.mark.matrix
async def test_a_disk_that_is_full_while_qemu_writes_the_file_by_itself_leaves_the_guest_running(
    tmp_path: Path, qemu_binary: Callable[[str], Path]
) -> None:
    web = guest("web")
    with small_disk(tmp_path / "small", 4 << 20) as directory:
        async with made([], "a", "b") as site:
            await site.boot(web, "a", binary=qemu_binary("10.0"))
            site.serve()
            await site.until_served()
            await site.known(1)
            begun = await site.post(
                "saves", guest=str(web.uuid), file=f"{directory}/web.state", accept=["save-room"]
            )
            document = await site.migration_ended(begun["id"], "failed")
            assert "No space left on device" in document["error"]
            assert site.where(await site.runs_once(web)) == "a"
            assert list(directory.iterdir()) == []


async def test_two_loads_of_a_guest_at_once_have_it_run_once(tmp_path: Path) -> None:
    web, file, copy = guest("web"), tmp_path / "web.state", tmp_path / "copy.state"
    async with served([web], "a", "b") as site:
        await saved(site, web, file)
        for suffix in ("", ".json"):
            shutil.copy2(f"{file}{suffix}", f"{copy}{suffix}")
        asked = ((file, "a"), (file, "b"), (copy, "a"), (copy, "b"))
        answers = await asyncio.gather(
            *(site.try_post("loads", file=str(name), to=host) for name, host in asked)
        )
        begun = [document["id"] for status, document in answers if status < 300]
        assert len(begun) == 1, answers
        assert all(status == 409 for status, _ in answers if status >= 300), answers
        document = await site.migration_ended(begun[0], "completed")
        assert site.where(await site.runs_once(web)) == document["destination"]
        assert len(site.instances(web)) == 1


@pytest.mark.matrix
async def test_several_saves_at_once_leave_each_guest_in_one_place(tmp_path: Path) -> None:
    web, db, one, other = guest("web"), guest("db"), tmp_path / "one.state", tmp_path / "other.state"
    async with served([web, db], "a", "b") as site:
        asked = ((web, one), (db, one), (web, other), (db, other))
        answers = await asyncio.gather(
            *(site.try_post("saves", guest=str(each.uuid), file=str(file)) for each, file in asked)
        )
        begun = [document for status, document in answers if status < 300]
        assert sorted(each["guest_name"] for each in begun) == ["db", "web"], answers
        assert all(status == 409 for status, _ in answers if status >= 300), answers
        ended = {each["guest_name"]: await over(site, each["id"]) for each in begun}
        assert "completed" in {each["state"] for each in ended.values()}
        for each in (web, db):
            document = ended[each.name]
            saved = document["state"] == "completed"
            assert len(await site.running(each)) == (0 if saved else 1), document
            assert saved or "save-path" in document["error"] or "exists" in document["error"], document
        files = [each["file"] for each in ended.values() if each["state"] == "completed"]
        assert sorted(map(str, tmp_path.glob("*.state"))) == sorted(files)
        assert list(tmp_path.glob("*.part")) == []


async def test_a_guest_that_was_started_from_its_disks_meanwhile_is_not_loaded_besides(
    tmp_path: Path,
) -> None:
    web, file = guest("web"), tmp_path / "web.state"
    async with served([web], "a", "b") as site:
        await saved(site, web, file)
        # At once: before the service has looked at the host again.
        await site.boot(web, "a")
        for host in ("a", "b"):
            status, answer = await site.try_post("loads", file=str(file), to=host)
            if status < 300:
                document = await over(site, answer["id"])
                assert document["state"] == "failed", document
            assert [site.where(each) for each in await site.running(web)] == ["a"]
        assert beside(file)["state"] == "saved"


async def test_a_qemu_that_is_killed_while_it_is_saved_leaves_no_file(tmp_path: Path) -> None:
    web, file = guest("web", region=96 * MIB), tmp_path / "web.state"
    async with served([web], "a", "b") as site:
        begun = await site.post("saves", guest=str(web.uuid), file=str(file))
        receiver = await program("receive", file)
        (qemu,) = site.instances(web)
        part = Path(f"{file}.{begun['id']}.part")
        await at_once(lambda: part.exists() and part.stat().st_size > MIB)
        os.kill(receiver, signal.SIGSTOP)
        qemu.kill()
        await until(lambda: not site.instances(web), what="its end")
        os.kill(receiver, signal.SIGCONT)
        # Nobody else has what was in its memory: a person is told.
        held = await site.until_state("held")
        assert held["id"] == begun["id"]
        assert held["held_code"] == "source-died"
        await until(lambda: not list(tmp_path.iterdir()), what="its removal")
        status, problem = await site.try_post("loads", file=str(file), to="a")
        assert status == 404, problem


@pytest.mark.matrix
async def test_a_file_that_has_changed_is_not_loaded_and_can_be_once_it_is_mended(tmp_path: Path) -> None:
    web, file = guest("web"), tmp_path / "web.state"
    async with served([web], "a", "b") as site:
        await saved(site, web, file)
        whole = file.read_bytes()
        file.write_bytes(whole[:100_000] + bytes([whole[100_000] ^ 1]) + whole[100_001:])
        document = await loaded(site, file, "b", "failed")
        assert "is not what was saved: its checksum is another" in document["error"]
        assert beside(file)["state"] == "saved"
        assert site.instances(web) == []
        file.write_bytes(whole)
        await loaded(site, file, "b")
        assert site.where(await site.runs_once(web)) == "b"


async def test_a_controller_that_is_killed_leaves_the_guest_in_one_place(
    tmp_path: Path, unheard: Callable[[], None]
) -> None:
    web = guest("web")
    async with served([web], "a", "b") as site:
        # Once the file is whole, and before its QEMU is ended.
        file = tmp_path / "web.state"
        begun = await site.post("saves", guest=str(web.uuid), file=str(file))
        await at_once(Path(f"{file}.json").exists)
        assert beside(file)["state"] == "unconfirmed"
        site.kill()
        unheard()
        assert len(site.instances(web)) == 1
        site.serve()
        await site.until_served()
        done = await site.migration_ended(begun["id"], "completed")
        assert done["file_use"] == "save"
        assert site.instances(web) == []
        assert beside(file)["state"] == "saved"
        # While the QEMU that shall have it takes it in: the mark is there, its last bytes are under way or have come.
        begun = await site.post("loads", file=str(file), to="b")
        await at_once(lambda: beside(file)["state"] == "loading")
        site.kill()
        site.serve()
        await site.until_served()

        document = await over(site, begun["id"])
        if document["state"] == "completed":
            assert beside(file)["state"] == "loaded"
        else:
            assert site.instances(web) == []
            assert beside(file)["state"] == "saved", document
            await loaded(site, file, "b")
        assert site.where(await site.runs_once(web)) == "b"
        assert beside(file)["state"] == "loaded"


@pytest.mark.matrix
async def test_a_state_that_is_of_the_past_is_not_loaded_under_any_name(tmp_path: Path) -> None:
    web, file, copy = guest("web"), tmp_path / "web.state", tmp_path / "copy.state"
    async with served([web], "a", "b") as site:
        others = tmp_path / "web.state.part"
        others.write_text("of somebody else")
        await saved(site, web, file)
        assert others.read_text() == "of somebody else"
        for suffix in ("", ".json"):
            shutil.copy2(f"{file}{suffix}", f"{copy}{suffix}")
        # Somebody has written to its disk: not even the original.
        image = Path(next(iter(beside(file)["images"])))
        found = image.stat()
        os.utime(image)
        refused = await loaded(site, file, "b", "failed")
        assert refused["refused"]
        assert str(image) in refused["error"]
        assert beside(file)["state"] == "saved"
        os.utime(image, ns=(found.st_atime_ns, found.st_mtime_ns))
        done = await loaded(site, file, "b")
        # The copy says that it was never loaded; the journal knows better, also once the guest has ended.
        status, problem = await site.try_post("loads", file=str(copy), to="a")
        assert status == 409, problem
        (there,) = site.instances(web)
        await there.query("quit")
        await until(lambda: not site.instances(web), what="its end")
        await site.cli("guests", "--refresh")
        status, problem = await site.try_post("loads", file=str(copy), to="a")
        assert status == 409, problem
        assert f"has run since {copy} was saved (migration {done['id']})" in problem["detail"]


@pytest.mark.matrix
async def test_a_description_that_others_may_write_starts_no_qemu(tmp_path: Path) -> None:
    web, file = guest("web"), tmp_path / "web.state"
    everybodys = tmp_path / "everybodys"
    everybodys.mkdir()
    everybodys.chmod(0o777)
    async with served([web], "a", "b") as site:
        begun = await site.post("saves", guest=str(web.uuid), file=str(everybodys / "web.state"))
        document = await site.migration_ended(begun["id"], "failed")
        assert "save-path" in document["error"]
        assert list(everybodys.iterdir()) == []
        await saved(site, web, file)
        Path(f"{file}.json").chmod(0o666)
        status, problem = await site.try_post("loads", file=str(file), to="b")
        assert status == 503, problem
        assert "others may write" in problem["detail"]
        Path(f"{file}.json").chmod(0o600)
        await loaded(site, file, "b")


@pytest.mark.matrix
async def test_a_file_that_is_removed_before_its_qemu_has_ended_leaves_the_guest_where_it_is(
    tmp_path: Path, unheard: Callable[[], None]
) -> None:
    web, file = guest("web"), tmp_path / "web.state"
    async with served([web], "a", "b") as site:
        begun = await site.post("saves", guest=str(web.uuid), file=str(file))
        await at_once(Path(f"{file}.json").exists)
        site.kill()
        unheard()
        assert len(site.instances(web)) == 1
        file.unlink()
        site.serve()
        await site.until_served()
        await site.migration_ended(begun["id"], "failed")
        assert site.where(await site.runs_once(web)) == "a"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.matrix
async def test_filesystems_that_a_killed_controller_left_frozen_are_thawed_by_the_next(
    tmp_path: Path,
) -> None:
    socket = tmp_path / "ga.sock"
    web = guest(
        "web",
        extra=(
            *("-device", "virtio-serial,addr=0x6"),
            *("-chardev", f"socket,id=ga,path={socket},server=on,wait=off"),
            *("-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"),
        ),
    )
    agent, file = ScriptedAgent(), tmp_path / "saved" / "web.state"
    file.parent.mkdir()
    agent.freezes, agent.hangs = True, {"guest-fsfreeze-freeze"}
    async with served([web], "a", "b") as site:
        socket.unlink()  # the guest has no agent: this one takes its place
        async with listening(socket, agent):
            # The answer may come only after the agent was given up: then its own controller has thawed it.
            asking = asyncio.create_task(site.try_post("saves", guest=str(web.uuid), file=str(file)))
            await at_once(lambda: "guest-fsfreeze-freeze" in agent.asked)
            site.kill()
            agent.frozen, agent.hangs = True, set()
            told = len(agent.asked)
            await asyncio.gather(asking, return_exceptions=True)  # it was killed before its answer, or after
            site.serve()
            await site.until_served()
            (begun,) = await site.migrations()
            await site.migration_ended(begun["id"], "completed")
            asked = [each for each in agent.asked[told:] if each.startswith("guest-fsfreeze")]
            assert asked == ["guest-fsfreeze-thaw", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
            assert not agent.frozen


@contextlib.contextmanager
def small_disk(where: Path, size_bytes: int) -> Iterator[Path]:
    """A file system with so much room; as root alone."""
    where.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "small", str(where)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        missing(f"no file system of its own: {done.stderr.decode().strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


#: python3 at the hosts, where whoever writes a state is not heard to say that it is whole, until there is a file.
_UNHEARD = """#!/bin/sh
mode= last=
for each; do mode=$last last=$each; done
[ "$mode" = receive ] || exec {python} "$@"
{python} "$@" | while IFS= read -r line; do
    case $line in *'"event": "done"'*) while [ ! -e {heard} ]; do sleep 0.05; done;; esac
    printf '%s\\n' "$line"
done
"""


@pytest.fixture
def unheard(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    """The service does not hear that a state is whole until this is called: no instant has to be met."""
    directory = tmp_path_factory.mktemp("unheard")
    program, heard = directory / "python3", directory / "heard"
    program.write_text(_UNHEARD.format(python=shutil.which("python3"), heard=heard))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    yield heard.touch
    heard.touch()


async def at_once(probe: Callable[[], object]) -> None:
    """Wait until it holds, and see it within a millisecond."""
    async with asyncio.timeout(60):
        while not probe():
            await asyncio.sleep(0.001)


async def program(mode: str, file: Path) -> int:
    """The process that works on a file."""
    found: list[int] = []

    def there() -> bool:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().rstrip(b"\0").split(b"\0")[-2:] == [mode.encode(), str(file).encode()]:
                    found.append(int(path.parent.name))
        return bool(found)

    await at_once(there)
    return found[0]


@pytest.mark.matrix
async def test_a_host_that_has_to_be_empty_leaves_on_disk_whom_no_other_takes(tmp_path: Path) -> None:
    web = guest("web")
    nowhere = '[[guests]]\nmatch = "*"\nrequires = { rack = "none has it" }\n'

    def directory(site: LiveSite) -> None:
        site.change_config(("[[hosts]]\n", f'[[hosts]]\nsaved_dir = "{tmp_path}"\n'))

    async with served([web], "a", "b", prepare=directory, extra=nowhere) as site:
        plan = await site.post("plans", host="a", policy="save")
        (planned,) = plan["guests"]
        assert planned["saved_into"] == str(tmp_path / f"{web.uuid}-ID.state")
        assert plan["cannot_move"] == 0
        asked = await site.post("hosts/a/evacuate", policy="save")
        run = await site.ended(asked["id"], "completed")
        (left,) = run["guests"]
        file = tmp_path / f"{web.uuid}-{asked['id']}.state"
        assert left["standing"] == "saved"
        assert f"saved into {file}" in left["reason"]
        assert run["guests_left"] == 0
        assert site.instances(web) == []
        assert beside(file)["state"] == "saved"
        (host,) = [each for each in (await site.get("hosts"))["items"] if each["host"] == "a"]
        assert host["state"] == "maintenance"
        await loaded(site, file, "b")
        assert site.where(await site.runs_once(web)) == "b"


@pytest.mark.matrix
async def test_a_disk_that_is_full_has_a_host_that_has_to_be_empty_keep_its_guest_running(
    tmp_path: Path,
) -> None:
    web = guest("web")
    nowhere = '[[guests]]\nmatch = "*"\nrequires = { rack = "none has it" }\n'
    with small_disk(tmp_path / "small", 4 << 20) as directory:

        def saves_there(site: LiveSite) -> None:
            site.change_config(("[[hosts]]\n", f'[[hosts]]\nsaved_dir = "{directory}"\n'))

        async def left_behind(site: LiveSite, **accepted: Any) -> str:
            asked = await site.post("hosts/a/evacuate", policy="save", **accepted)
            run = await site.ended(asked["id"], "incomplete")
            (left,) = run["guests"]
            assert (run["guests_left"], site.where(await site.runs_once(web))) == (1, "a"), run
            assert list(directory.iterdir()) == []
            (host,) = [each for each in (await site.get("hosts"))["items"] if each["host"] == "a"]
            assert host["state"] != "maintenance"
            return str(left["reason"])

        async with served([web], "a", "b", prepare=saves_there, extra=nowhere) as site:
            # It is known before anything is written, and where it is found out later the guest goes on, too.
            why = await left_behind(site)
            assert f"are free on the file system at {directory} of a: " in why, why
            assert "are missing" in why, why
            why = await left_behind(site, accept=["save-room"])
            assert f"No space left on device: the file system at {directory} took " in why, why
            assert "MiB more" in why, why
            # Whoever makes room there has it saved with the same command.
            subprocess.run(["mount", "-o", "remount,size=1g", str(directory)], check=True)
            asked = await site.post("hosts/a/evacuate", policy="save")
            await site.ended(asked["id"], "completed")
            assert site.instances(web) == []
            (file,) = directory.glob("*.state")
            assert beside(file)["state"] == "saved"
