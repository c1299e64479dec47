"""Starting, reloading and stopping the service, as an administrator does it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from migrator.testing import network
from migrator.testing.lab import until
from tests.acceptance.service_site import (
    MIB,
    SLOW,
    Witness,
    eventually,
    guest,
    made,
    served,
    small_disk,
)
from tests.conftest import missing


@pytest.fixture
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


async def refused(*words: str, code: int = 2, within: float = 150) -> str:
    """What ``migrator serve`` says when it does not start, in one line.

    :param code: 2 for what is wrong with the configuration, 1 for what is wrong with the machine.
    """
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "migrator", "serve", *words],
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, ""), done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return str(lines[0])


_HOST = '[[hosts]]\nname = "a"\n'
#: Something wrong, and what the line has to name.
WRONG: dict[str, tuple[str, Sequence[str]]] = {
    "unknown key": (f'{_HOST}link_sped = "1GiB/s"\n', ["hosts[0].link_sped", "link_speed"]),
    "contradiction": (f'{_HOST}ssh = "h"\nprefix = ["x"]\n', ["ssh and prefix contradict each other"]),
    "no such certificate": (
        '[http]\nlisten = "0.0.0.0:0"\ntls_certificate = "none.pem"\ntls_key = "none.key"\n',
        ["[http] tls_certificate", "none.pem cannot be read: No such file"],
    ),
    "no directory for the socket": ('[http]\nsocket = "/dev/null/api.sock"\n', ["/dev/null"]),
}


async def test_each_wrong_configuration_is_refused_in_one_line(tmp_path: Path) -> None:
    told = {}
    for number, (text, _) in enumerate(WRONG.values()):
        path = tmp_path / f"{number}" / "migrator.toml"
        path.parent.mkdir()
        own = '[store]\npath = "state/journal.db"\n'
        own += "" if "[http]" in text else '[http]\nsocket = "api.sock"\nmetrics_listen = ""\n'
        path.write_text(own + text)
        told[number] = refused("--config", str(path))
    journal = tmp_path / "journal.toml"
    journal.write_text(
        '[store]\npath = "/dev/null/x/journal.db"\n[http]\nsocket = "api.sock"\nmetrics_listen = ""\n'
    )
    lines = await asyncio.gather(
        *told.values(),
        refused("--config", str(journal), code=1),
        refused("--config", str(tmp_path / "absent.toml")),
    )
    assert "/dev/null/x" in lines[-2]
    for line, (what, (_, names)) in zip(lines, WRONG.items(), strict=False):
        for name in names:
            assert name in line, (what, line)
    assert "absent.toml" in lines[-1]


@pytest.mark.usefixtures("_namespaces")
async def test_reload_is_all_or_nothing_and_a_second_service_is_refused() -> None:
    machine = guest("web")

    async def policy() -> str:
        [found] = (await site.get("guests"))["items"]
        return str(found["policy"])

    async with served([machine]) as site:
        assert await policy() == "default"
        before = site.config.read_text()
        line = await refused("--config", str(site.config), code=1)
        assert "another service" in line

        site.config.write_text(before + '[[guests]]\nmatch = "web"\npolicy = "gentle"\n')
        assert site.service
        site.service.send_signal(signal.SIGHUP)
        await eventually(lambda: _is(policy, "gentle"), "the new policy", site)

        wrong = (
            before + '[[guests]]\nmatch = "web"\npolicy = "offline"\n\n[policies.x]\nmax_downtime = "soon"\n'
        )
        site.config.write_text(wrong)
        site.service.send_signal(signal.SIGHUP)
        await until(lambda: site.said("configuration not reloaded"), what="a word about it")
        assert "max_downtime" in site.said("configuration not reloaded")[0]["error"]
        assert await policy() == "gentle"

        site.config.write_text(before)
        site.service.send_signal(signal.SIGHUP)
        await eventually(lambda: _is(policy, "default"), "the old policy", site)
        assert site.stop() == 0


async def _is(ask: object, wanted: str) -> bool:
    return await ask() == wanted  # type: ignore[operator,no-any-return]


@pytest.mark.matrix
@pytest.mark.usefixtures("_namespaces")
async def test_drain_waits_for_what_runs_and_begins_nothing() -> None:
    machines = [guest(f"vm-{number}") for number in range(2)]
    async with made(machines, "a", "b", speed=SLOW) as site:
        site.change_config(("[limits]\n", "[limits]\nsharing_at_a_time = 1\nprepared_per_source = 1\n"))
        site.serve("--drain")
        await site.until_served()
        await site.known(2)
        async with Witness(site, machines):
            with site.crawling():
                begun = await site.post("hosts/a/evacuate")
                first = await site.until_state("precopy")
            assert await asyncio.to_thread(site.stop) == 0
            journal = site.said("stopping")
            assert journal[-1]["drain"] is True
            places = {machine.name: site.where(await site.runs_once(machine)) for machine in machines}
            assert places[first["guest_name"]] == "b"
            assert "a" in places.values()
            assert len(list(site.processes())) == len(machines)
            site.serve()
            await site.until_served()
            await site.ended(begun["id"], "completed")
        await site.everyone_at(machines, "b")


@pytest.mark.usefixtures("_namespaces")
async def test_full_disk_under_the_journal_stops_new_work_until_there_is_room() -> None:
    machines = [guest("moving", region=64 * MIB), guest("waiting")]
    async with made(machines, speed=SLOW) as site:
        with small_disk(site.directory / "state", "4m"):
            site.serve()
            await site.until_served()
            await site.known(2)
            with site.crawling():
                begun = await site.post("migrations", guest="moving", to="b")
                await site.until_state("precopy")
                filler = site.directory / "state" / "filler"
                _fill(filler)

            # What runs is brought to its end, whatever the journal can take of it.
            async def arrived() -> bool:
                return {site.where(qemu) for qemu in await site.running(machines[0])} == {"b"}

            await eventually(arrived, "the guest at its target", site)

            async def complains() -> bool:
                _fill(filler)
                status, text = await site.probe("/readyz")
                return status == 503 and "full" in text

            await eventually(complains, "a complaint", site)
            status, problem = await site.try_post("migrations", guest="waiting", to="b")
            assert (status, problem["code"]) == (503, "unavailable"), problem
            said = await site.cli("migrate", "waiting", "--to", "b")
            assert said.returncode != 0
            assert "full" in said.stderr, said
            assert len(said.stderr.strip().splitlines()) == 1, said
            assert [site.where(qemu) for qemu in await site.running(machines[1])] == ["a"]

            filler.unlink()

            async def ready() -> bool:
                return (await site.probe("/readyz"))[0] == 200

            await eventually(ready, "work is taken again", site)
            await site.migration_ended(begun["id"], "completed")
            again = await site.post("migrations", guest="waiting", to="b")
            await site.migration_ended(again["id"], "completed")
            await site.everyone_at(machines, "b")
            assert site.stop() == 0


def _fill(path: Path) -> None:
    """Until nothing more fits, whoever made room meanwhile."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
