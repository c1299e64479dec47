"""Who may do what at a real mosquitto with config/mosquitto.conf and .acl; TLS; what aiomqtt keeps private."""

from __future__ import annotations

import asyncio
import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from migrator.errors import UsageError
from migrator.mqtt import MqttConfig
from migrator.mqtt.connection import BrokerConnection, BrokerError, Version
from migrator.settings import load
from migrator.testing.lab import until
from migrator.testing.simulated_service import SimulatedService
from tests.broker import USERS, Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import PREFIX, peer, settings
from tests.mqtt_service import FAST, SLOW, a_site, serving, set_link


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    certificates(tmp_path / "broker")
    with Broker(tmp_path / "broker", tls=True) as broker:
        yield broker
        print(broker.log.read_text(errors="replace")[-5000:])  # noqa: T201 - pytest shows it with a failed test


@pytest.fixture
def site(tmp_path: Path) -> SimulatedService:
    """Nothing that is begun there ends while a test lasts."""
    return a_site(tmp_path / "service", link=SLOW)


def certificates(directory: Path) -> None:
    """An authority, and what it says of the broker and of the service."""
    directory.mkdir(parents=True)
    new_key = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    _openssl(directory, f"{new_key} -x509 -days 2 -subj /CN=ca -keyout ca.key -out ca.pem")
    sign = "x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext"
    for name, alternative in (("broker", "IP:127.0.0.1"), ("service", "DNS:service")):
        (directory / "ext").write_text(f"subjectAltName={alternative}\n")
        _openssl(directory, f"{new_key} -subj /CN={name} -keyout {name}.key -out {name}.csr")
        _openssl(directory, f"{sign} -in {name}.csr -out {name}.pem")


def _openssl(directory: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=directory, check=True, capture_output=True)


# rights


async def denied(
    broker: Broker, user: str, topic: str, payload: bytes = b"x", *, retain: bool = False
) -> None:
    """Publish it, and see that it reaches nobody who could read it."""
    async with peer(broker, "migrator") as service:
        async with peer(broker, user, topics=()) as somebody:
            await somebody.client.publish(topic, payload, qos=1, retain=retain)
        # What comes after it has come, and it has not.
        async with peer(broker, "scheduler", topics=()) as other:
            await other.client.publish(f"{PREFIX}/command/scheduler/after", b"", qos=1)
        await until(lambda: service.on("/after"), what="what was published after it")
        assert [got for got in service.got if not got.topic.endswith("/after")] == []


@pytest.mark.parametrize(
    ("user", "below"),
    [
        ("dashboard", "command/dashboard/migrate"),
        ("dashboard", "command/scheduler/migrate"),
        ("scheduler", "command/other/migrate"),
        ("scheduler", "command/migrator/migrate"),
        ("scheduler", "command/scheduler"),
        ("scheduler", "migration/m1/state"),
        ("scheduler", "host/alpha/state"),
        ("dashboard", "evacuation/e1/state"),
        ("other", "command/scheduler/migrate"),
    ],
)
async def test_without_the_right_nothing_is_published(broker: Broker, user: str, below: str) -> None:
    await denied(broker, user, f"{PREFIX}/{below}", b'{"id": "x"}')


async def test_nobody_forges_what_only_the_service_says(broker: Broker) -> None:
    async with peer(broker, "dashboard") as dashboard:
        for user in ("scheduler", "dashboard", "other"):
            async with peer(broker, user, topics=()) as somebody:
                for below in ("service/one", "migration/m/decision", "host/a/state", "reply/scheduler/c1"):
                    await somebody.client.publish(f"{PREFIX}/{below}", b"forged", qos=1, retain=True)
        async with peer(broker, "migrator", topics=()) as service:
            await service.client.publish(f"{PREFIX}/service/one", b"true", qos=1)
        await until(lambda: dashboard.on("service/one"), what="what was published after it")
        assert [got.payload for got in dashboard.got] == [b"true"]


async def test_command_in_anothers_name_does_not_arrive(broker: Broker, site: SimulatedService) -> None:
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        async with peer(broker, "dashboard", topics=()) as dashboard:
            await dashboard.command("migrate", id="forged", user="scheduler", guest="g")
            await dashboard.command("migrate", id="own", guest="g")
        await scheduler.command("plan", id="after", host="a")
        await until(lambda: scheduler.replies("after"), what="a reply")
        assert [command.verb for command, _, _ in service.begun] == ["plan"]
        assert [verb for _, verb, _ in service.counted] == ["plan"]


async def test_nobody_reads_anothers_commands_and_replies(broker: Broker, site: SimulatedService) -> None:
    set_link(site, FAST)
    everything = ("#", f"{PREFIX}/reply/scheduler/#", f"{PREFIX}/command/#", f"{PREFIX}/reply/+/+")
    async with (
        serving(site, settings(broker)),
        peer(broker, "dashboard", topics=everything) as dashboard,
        peer(broker, "other", topics=everything) as other,
        peer(broker) as scheduler,
    ):
        await scheduler.command("migrate", id="c1", guest="web")
        await until(lambda: scheduler.replies("c1"), what="its own")
        begun = scheduler.replies("c1")[0]["subject_id"]
        await until(lambda: len(scheduler.replies("c1")) == 2, what="the outcome, its own too")
        await until(lambda: dashboard.on(f"{begun}/state")[1:], what="states, which a dashboard may read")
        await other.command("plan", id="c2", host="a")
        await until(lambda: other.replies("c2"), what="its own")
    for client in (dashboard, other, scheduler):
        assert not [got.topic for got in client.got if "/command/" in got.topic]
    assert not [got.topic for got in dashboard.got if "/reply/" in got.topic]
    assert {got.topic for got in other.got} == {f"{PREFIX}/reply/other/c2"}


@pytest.mark.parametrize(("user", "password"), [(None, None), ("scheduler", "guess"), ("nobody", "x")])
async def test_nobody_comes_in_without_a_name(broker: Broker, user: str | None, password: str | None) -> None:
    with pytest.raises(aiomqtt.MqttError, match="ot authori"):
        async with aiomqtt.Client("127.0.0.1", broker.port, username=user, password=password):
            pass


async def test_service_with_a_wrong_password_says_so_but_not_the_password(
    broker: Broker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = settings(broker, password="s3cr3t-guess")
    assert "s3cr3t-guess" not in repr(configured)
    connection = BrokerConnection(
        config=configured,
        client_id=configured.new_client_id(),
        version=Version.V5,
        will=(f"{PREFIX}/service/one", b"offline"),
    )
    with pytest.raises(
        BrokerError, match=rf"broker 127.0.0.1:{broker.port}: not connected: .*ot authori"
    ) as error:
        await connection.open()
    await connection.close()
    assert "s3cr3t-guess" not in str(error.value)


# TLS


def over_tls(broker: Broker, **fields: Any) -> MqttConfig:
    return settings(broker.tls_port, tls=True, **{"tls_ca": broker.directory / "ca.pem", **fields})


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("with_certificate", [False, True])
async def test_tls_with_password_and_with_certificate(
    broker: Broker, site: SimulatedService, with_certificate: bool
) -> None:
    fields: dict[str, Any] = {}
    if with_certificate:
        path = broker.directory / "conf.d" / "migrator.conf"
        text = path.read_text().replace("#require_certificate", "require_certificate")
        path.write_text(text)
        broker.stop()
        broker.start()
        fields = {
            "tls_certificate": broker.directory / "service.pem",
            "tls_key": broker.directory / "service.key",
        }
    async with serving(site, over_tls(broker, **fields)), peer(broker) as scheduler:
        await scheduler.command("plan", id="c1", host="a")
        await until(lambda: scheduler.replies("c1"), what="a reply")
    if with_certificate:
        await fails(over_tls(broker), "not connected")


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize(
    "how", ["another authority", "another name", "no file", "plain text", "to a plain port"]
)
async def test_broker_that_is_not_believed_is_not_spoken_to(broker: Broker, tmp_path: Path, how: str) -> None:
    certificates(tmp_path / "rejected")
    match how:
        case "another authority":
            await fails(
                over_tls(broker, tls_ca=tmp_path / "rejected" / "ca.pem"), "CERTIFICATE_VERIFY_FAILED"
            )
        case "another name":
            await fails(over_tls(broker, host="localhost"), "Hostname mismatch")
        case "no file":
            await fails(
                over_tls(broker, tls_ca=tmp_path / "nothing"),
                r"\[mqtt\] tls_ca .*nothing cannot be read: No such file",
            )
        case "plain text":
            await fails(settings(broker.tls_port), "not connected")
        case _:
            await fails(settings(broker, tls=True, tls_ca=broker.directory / "ca.pem"), "not connected")
    assert "migrator-site-one" not in broker.log.read_text()


async def fails(configured: MqttConfig, complaint: str) -> None:
    async def attempt() -> None:
        will = (f"{PREFIX}/service/one", b"offline")
        own = configured.new_client_id()
        connection = BrokerConnection(config=configured, client_id=own, version=Version.V5, will=will)
        try:
            await connection.open()
        finally:
            await connection.close()

    with pytest.raises(BrokerError, match=complaint):
        await attempt()
    # paho leaves the socket of a handshake that failed to the collector.
    gc.collect()


# settings


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[site]\nname = "a/b"', "site.name: 'a/b' cannot be a name"),
        ('[site]\ninstance = "#"', "site.instance: '#' cannot be a name"),
        ('[mqtt]\noperators = ["a+b"]', "'a\\+b' cannot be a name"),
        ('[mqtt]\npassword = "x"', "a password is of no use"),
        ('[mqtt]\ntls_key = "k"', "tls_key is of no use"),
        ('[mqtt]\ntls_ca = "k"', "of no use without tls = true"),
        ("[mqtt]\nqueue_limit = 0", "mqtt.queue_limit"),
    ],
)
def test_what_cannot_be_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "migrator.toml").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        load(tmp_path / "migrator.toml", environ={})


# the contract with aiomqtt


async def test_private_parts_of_aiomqtt_that_are_used_are_there_and_acknowledge(broker: Broker) -> None:
    """:class:`BrokerConnection` takes these; should this fail after an upgrade, look there."""
    options: dict[str, Any] = {"username": "migrator", "password": USERS["migrator"]}
    client = aiomqtt.Client("127.0.0.1", broker.port, **options)
    for name in ("manual_ack_set", "ack", "_sock_close", "connect_timeout"):
        assert hasattr(client._client, name), name
    assert isinstance(client._disconnected, asyncio.Future)
    will = (f"{PREFIX}/service/one", b"offline")
    topic = f"{PREFIX}/command/scheduler/plan"

    configured = settings(broker)
    client_id = configured.new_client_id()

    async def receive(acknowledge: bool, count: int) -> list[bytes]:
        connection = BrokerConnection(config=configured, client_id=client_id, version=Version.V5, will=will)
        await connection.open()
        await connection.subscribe(f"{PREFIX}/command/#", qos=1, retained=False)
        if count == 3:
            async with peer(broker, topics=()) as scheduler:
                for number in range(3):
                    await scheduler.client.publish(topic, str(number), qos=1)
        payloads: list[bytes] = []
        async with asyncio.timeout(20):
            async for received in connection.messages():
                payloads.append(received.payload)
                if acknowledge or (len(payloads) == 1 and count == 3):
                    connection.acknowledge(received)
                if len(payloads) == count:
                    break
        await connection.close()
        return payloads

    assert await receive(False, 3) == [b"0", b"1", b"2"]
    # The first was acknowledged, the others were not: they come again, and again, until they are.
    assert await receive(False, 2) == [b"1", b"2"]
    assert await receive(True, 2) == [b"1", b"2"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await receive(True, 1)
