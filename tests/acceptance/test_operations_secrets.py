"""No secret is ever in a log, a document, the journal or an error of a service that lives and is maltreated."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine, Habit, until
from migrator.testing.site import LabSite
from tests.broker import USERS, Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import peer
from tests.ports import free_port

MIB = 1 << 20
PASSWORD = USERS["migrator"]
#: Of a guest's disk, on its command line.
DISK_SECRET = "disk-hunter2-disk-hunter2"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    if (why := network.possible()) is not None:
        missing(why)
    with Broker(tmp_path / "broker") as broker:
        yield broker


class Heard:
    """Everything that anybody was told."""

    def __init__(self, site: LabSite) -> None:
        self._site = site
        self.said: list[tuple[str, str]] = []

    async def command(self, *words: str, server: str | None = None, token: str = "") -> str:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "migrator", *words],
            env={**os.environ, "MIGRATOR_SERVER": server or self._site.server, "MIGRATOR_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.said.append((" ".join(words), done.stdout + done.stderr))
        return done.stdout

    def get(self, url: str, headers: dict[str, str]) -> int:
        answer = httpx2.get(url, headers=headers, trust_env=False, timeout=30)
        self.said.append((f"GET {url}", f"{answer.headers} {answer.text}"))
        return answer.status_code

    def whole(self) -> list[tuple[str, bytes]]:
        """With the log, and every file that the service has written."""
        files = [*self._site.directory.glob("state/**/*"), *self._site.directory.glob("log-*/**/*")]
        files += [self._site.directory / "service.log", self._site.directory / "api.sock"]
        found = [(str(file), file.read_bytes()) for file in files if file.is_file()]
        return [*found, *((what, text.encode()) for what, text in self.said)]


def configure(
    site: LabSite, broker: Broker, port: int, *, password: str = PASSWORD, log: str = "json"
) -> None:
    site.write_config()
    (site.directory / "password").write_text(f"{password}\n")
    (site.directory / "password").chmod(0o600)
    text = site.config.read_text().replace("[http]\n", f'[http]\nlisten = "127.0.0.1:{port}"\n')
    site.config.write_text(
        f'[site]\nname = "site"\nlog_level = "debug"\nlog_format = "{log}"\n'
        f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\nusername = "migrator"\npassword_file = "password"\n'
        f'operators = ["scheduler"]\ntimeout = "2s"\n{text}'
    )


async def test_no_secret_is_ever_said(broker: Broker) -> None:
    extra = ("-object", f"secret,id=key0,data={DISK_SECRET}")
    machine = GuestMachine(
        name="keeps a secret",
        memory_bytes=128 * MIB,
        habit=Habit(region_bytes=16 * MIB, bytes_per_second=MIB),
        image_locking="off",
        extra=extra,
    )
    port = free_port()
    with LabSite("a", "b", bytes_per_second=400 * MIB) as site:
        heard = Heard(site)
        configure(site, broker, port)
        await site.boot(machine, "a")
        site.serve()
        await site.until_served()
        token = (
            await heard.command("token", "create", "ci", "--role", "operator", "--config", str(site.config))
        ).strip()
        heard.said.clear()  # the one time that it is shown
        secret = token.rpartition("_")[2]
        url = f"http://127.0.0.1:{port}"

        # Over TCP: right, wrong, in the wrong place.
        bearer = {"Authorization": f"Bearer {token}"}
        assert heard.get(f"{url}/api/v1/hosts", bearer) == 200
        assert heard.get(f"{url}/api/v1/nothing", bearer) == 404
        assert heard.get(f"{url}/api/v1/hosts", {"Authorization": f"Bearer {token}x"}) == 401
        assert heard.get(f"{url}/api/v1/hosts", {"Authorization": f"Basic {token}"}) == 401
        assert heard.get(f"{url}/api/v1/hosts", {"Cookie": f"migrator_session={token}"}) in (200, 401)
        assert heard.get(f"{url}/api/v1/hosts?token={token[:9]}", bearer) in (200, 400, 422)

        async def seen() -> bool:
            return "keeps a secret" in await heard.command("guests")

        await until(seen, what="the guest", within=30)
        await heard.command("plan", "a", "--json", server=url, token=token)
        moved = json.loads(await heard.command("evacuate", "a", "--wait", "--json", server=url, token=token))
        assert moved["state"] == "completed", (moved, site.log())
        await heard.command("status", moved["id"])
        await heard.command("events", "--after", "0", "--json")
        await heard.command("hosts", "--json", server=url, token=f"{token}x")
        for words in (["doctor"], ["token", "list"], ["token", "list", "--json"]):
            await heard.command(*words, "--config", str(site.config))
        await heard.command("config", "check", str(site.config), "--json")

        # Over MQTT.
        async with peer(broker, "scheduler") as scheduler:
            await scheduler.command("restore", id="refused", host="a", password=1)
            await scheduler.command("plan", id="done", host="b")
            await until(
                lambda: scheduler.replies("refused") and scheduler.replies("done"), what="replies", within=15
            )
            heard.said += [(each.topic, each.payload.decode()) for each in scheduler.got]

        # The broker goes; the configuration is broken, mended, and the password is wrong after a restart.
        broker.kill()
        await until(lambda: "no broker" in site.log(), what="the lost broker", within=20)
        site.config.write_text(site.config.read_text().replace("[mqtt]\n", "[mqtt]\npasword = 3\n"))
        assert site.service is not None
        site.service.send_signal(signal.SIGHUP)
        await until(lambda: "not reloaded" in site.log(), what="the refused reload", within=10)
        await heard.command("doctor", "--config", str(site.config))
        site.kill()
        broker.start()
        configure(site, broker, port, password=f"{PASSWORD}-which-is-wrong", log="console")
        (site.directory / "api.sock").unlink()
        site.serve("--drain")
        await site.until_served()
        await until(lambda: site.log().count("authori") >= 1, what="the refused password", within=20)
        await heard.command("doctor", "--config", str(site.config), "--json")
        await heard.command("restore", "a", "--wait", "--json")
        assert site.stop() == 0

        told = heard.whole()
        assert len(told) > 20
        assert any(b"ci" in text for what, text in told if what.endswith("journal.db"))
        leaks = [
            (name, what)
            for name, value in (("token", secret), ("password", PASSWORD), ("disk", DISK_SECRET))
            for what, text in told
            if value.encode() in text
        ]
        assert leaks == []
