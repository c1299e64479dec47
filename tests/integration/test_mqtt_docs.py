"""The examples of docs/mqtt.md, as they stand there, against a real broker and the real entrance."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.api.commands import COMMANDS
from migrator.api.replies import Refusal
from migrator.core.drain.states import EvacuationState
from migrator.mqtt import MqttConfig
from migrator.mqtt.inbound import VERBS
from migrator.settings.models import SiteSettings
from migrator.testing.lab import until
from migrator.testing.simulated_service import SimulatedService
from tests.broker import USERS, Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import settings as settings_of
from tests.mqtt_service import FAST, SLOW, MqttService, a_site, serving, set_link

TEXT = (Path(__file__).parents[2] / "docs" / "mqtt.md").read_text(encoding="utf-8")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def site(tmp_path: Path) -> SimulatedService:
    """A service whose host alpha has a guest."""
    return a_site(tmp_path / "service", hosts=("alpha", "beta"), guests=("web",))


@asynccontextmanager
async def moving_slowly(site: SimulatedService, configured: MqttConfig) -> AsyncIterator[MqttService]:
    """Run a service over whose links no guest arrives until they are fast."""
    async with serving(site, configured) as service:
        set_link(site, SLOW)
        yield service


async def evacuation(service: MqttService) -> str:
    """Return the id of the one evacuation once it has begun to move a guest; it is of alpha."""
    await until(service.queries.active_migrations, what="it has begun")
    (found,) = service.queries.active_evacuations()
    assert found.host == "alpha"
    return str(found.id)


def settings(broker: Broker) -> MqttConfig:
    """With the site's name that a configuration has which says none: the examples have that, too."""
    return replace(settings_of(broker), site=SiteSettings().name)


def example(language: str) -> str:
    return section(
        "A maintenance from a scheduler, in shell" if language == "sh" else "The same in Python", language
    )


def section(heading: str, language: str) -> str:
    """The code in that language below that heading."""
    text = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(code)


#: Where `scripts/setup` has put what the example in JavaScript imports.
MQTT_JS = Path(__file__).parents[2] / ".build" / "mqtt_js"


@pytest.fixture(params=["sh", "python", "javascript"])
def few_lines(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    path = tmp_path / "few_lines.mjs"
    path.write_text(section("In a few lines", request.param))
    arguments = [str(path), "alpha", "night-1"]
    if request.param == "python":
        return [sys.executable, *arguments]
    if request.param == "javascript":
        if not shutil.which("node") or not (MQTT_JS / "installed").exists():
            missing("mqtt.js is not there: scripts/setup test installs it from npm")
        (tmp_path / "node_modules").symlink_to(MQTT_JS / "node_modules")
        return ["node", *arguments]
    if not shutil.which("mosquitto_sub"):
        pytest.skip("there are no mosquitto-clients here")
    return ["sh", *arguments]


@pytest.mark.parametrize("refused", [False, True], ids=["carried-out", "refused"])
async def test_few_lines_end_with_the_outcome(
    broker: Broker, site: SimulatedService, few_lines: list[str], refused: bool
) -> None:
    async def refuse(command: object) -> None:
        raise Refusal("not-now", "the journal is full")

    async with moving_slowly(site, settings(broker)) as service:
        if refused:
            service.before = refuse
        process = await run(few_lines, broker)
        if not refused:
            await evacuation(service)
            set_link(site, FAST)
        async with asyncio.timeout(20):
            said, _ = await process.communicate()
    reply = json.loads(said)
    assert (process.returncode, reply["id"]) == (0, "night-1")
    assert reply["kind"] == ("refused" if refused else "outcome")


@pytest.fixture(params=["sh", "python"])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    path = tmp_path / "example"
    path.write_text(example(request.param))
    if request.param == "python":
        return [sys.executable, str(path), "alpha", "2999-01-01T00:00:00Z", "night-1"]
    if not shutil.which("mosquitto_sub"):
        pytest.skip("there are no mosquitto-clients here")
    return ["sh", str(path), "alpha"]


_started: list[asyncio.subprocess.Process] = []


@pytest.fixture(autouse=True)
def _end_scripts() -> Iterator[None]:
    """Leave no script behind, nor what it started, whatever becomes of a test."""
    yield
    while _started:
        process = _started.pop()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def run(script: list[str], broker: Broker) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "PORT": str(broker.port),
        "MQTT_USER": "scheduler",
        "MQTT_PASSWORD": USERS["scheduler"],
    }
    process = await asyncio.create_subprocess_exec(
        *script, env=environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    _started.append(process)
    return process


@pytest.mark.parametrize(("state", "code"), [(EvacuationState.COMPLETED, 0), (EvacuationState.INCOMPLETE, 1)])
async def test_example_waits_for_the_end_and_tells_it(
    broker: Broker, site: SimulatedService, script: list[str], state: EvacuationState, code: int
) -> None:
    if state is EvacuationState.INCOMPLETE:
        site.site.add_guest("mail", host="alpha", obstacle="libvirt manages it")
    async with moving_slowly(site, settings(broker)) as service:
        process = await run(script, broker)
        begun = await evacuation(service)
        set_link(site, FAST)
        async with asyncio.timeout(20):
            await process.communicate()
        assert (await service.engine.queries.evacuation(begun)).state is state
    assert process.returncode == code


async def test_example_at_another_site_says_at_once_why_nobody_replies(
    broker: Broker, site: SimulatedService, script: list[str]
) -> None:
    async with serving(site, settings_of(broker)) as service:
        process = await run(script, broker)
        async with asyncio.timeout(20):
            await process.communicate()
    assert process.returncode == 7
    assert service.counted == []


async def test_refused_example_says_so(broker: Broker, site: SimulatedService, script: list[str]) -> None:
    async def refuse(command: object) -> None:
        raise Refusal("not-now", "the journal is full")

    async with moving_slowly(site, settings(broker)) as service:
        service.before = refuse
        process = await run(script, broker)
        async with asyncio.timeout(20):
            await process.communicate()
    assert process.returncode == 3


async def test_python_example_outlives_the_broker_and_itself(
    broker: Broker, site: SimulatedService, tmp_path: Path
) -> None:
    path = tmp_path / "example"
    path.write_text(example("python"))
    script = [sys.executable, str(path), "alpha", "2999-01-01T00:00:00Z", "night-1"]
    async with moving_slowly(site, settings(broker)) as service:
        process = await run(script, broker)
        await evacuation(service)
        process.kill()
        await process.communicate()
        again = await run(script, broker)
        await until(lambda: ("mqtt", "evacuate", "repeated") in service.counted, what="asked again")
        await asyncio.to_thread(broker.stop)
        await broker.started()
        await until(lambda: service.counted.count(("mqtt", "evacuate", "repeated")) > 1, what="and again")
        await evacuation(service)
        set_link(site, FAST)
        async with asyncio.timeout(20):
            await again.communicate()
    assert again.returncode == 0
    assert len(service.begun) == 1


def test_table_of_commands_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (\w+) \|.*\|$", TEXT, re.MULTILINE)
    assert [verb for verb, _, _ in rows] == list(VERBS)
    for verb, fields, role in rows:
        command = COMMANDS[verb]
        required, _, optional = fields.partition("[")
        needed = {name for name, field in command.model_fields.items() if field.is_required()}
        assert set(re.findall(r"`(\w+)`", required)) == needed, verb
        assert set(re.findall(r"`(\w+)`", optional)) == set(command.model_fields) - needed, verb
        assert role == command.role, verb
