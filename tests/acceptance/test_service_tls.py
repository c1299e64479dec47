"""The site's own authority, and guests that the service moves encrypted with what it has issued."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.pki.authority import DH_PARAMS
from migrator.testing.lab import GuestMachine
from tests.acceptance.service_site import MIB, LiveSite, Witness, eventually, guest, made
from tests.certificates import self_made, write_directory
from tests.command import Ended, run


@asynccontextmanager
async def site_with_authority(tmp_path: Path, *machines: GuestMachine, tls: str) -> AsyncIterator[LiveSite]:
    extra = f'[site]\ntls = "{tls}"\npki_dir = "{tmp_path}/authority"'
    hosts = {name: f'tls_dir = "{tmp_path}/pki-{name}"\n' for name in ("a", "b")}
    async with made(machines, "a", "b", extra=extra, host_extra=hosts) as site:
        yield site


async def pki(site: LiveSite, *arguments: str) -> Ended:
    return await run("pki", *arguments, "--config", str(site.config))


async def moved(site: LiveSite, **body: Any) -> Any:
    begun = await site.post("migrations", **{"to": "b", "guest": "web", **body})

    async def over() -> bool:
        begun.update(await site.get(f"migrations/{begun['id']}"))
        return begun["ended_at"] is not None

    await eventually(over, "the end of a migration", site)
    return begun


async def test_authority_issues_what_guests_move_with_and_renews_it(tmp_path: Path) -> None:
    async with site_with_authority(tmp_path, guest("web"), tls="require") as site:
        assert (await pki(site, "issue", "a")).code == 2  # before there is an authority
        made_it = await pki(site, "init")
        assert made_it.code == 0, made_it.err
        assert (tmp_path / "authority" / "ca-key.pem").stat().st_mode & 0o777 == 0o600
        again = await pki(site, "init")
        assert (again.code, "there is an authority in" in again.err) == (2, True)

        site.serve()
        await site.until_served()
        await site.known(1)
        refused = await moved(site)
        assert (refused["state"], refused["tls"]) == ("failed", False)
        assert [each["code"] for each in refused["findings"] if each["severity"] == "error"] == [
            "tls-required"
        ]
        assert (
            f"a has no ca-cert.pem, client-cert.pem, client-key.pem in {tmp_path}/pki-a" in refused["error"]
        )

        plan = await site.post("plans", host="a")
        assert [each["code"] for each in plan["guests"][0]["findings"] if each["severity"] == "error"] == [
            "tls-required"
        ]

        (tmp_path / "pki-b").mkdir()
        (tmp_path / "pki-b" / "dh-params.pem").write_bytes(own := DH_PARAMS + b"\n")
        issued = await pki(site, "issue", "a", "b", "--valid", "20d", "--json")
        assert issued.code == 0, issued.err
        assert [each["result"] for each in json.loads(issued.out)["hosts"]] == ["issued", "issued"]
        for name in ("server-key.pem", "client-key.pem"):
            assert (tmp_path / "pki-a" / name).stat().st_mode & 0o777 == 0o600
        # Without one QEMU computes a group for each guest that comes.
        groups = [(tmp_path / f"pki-{name}" / "dh-params.pem").read_bytes() for name in ("a", "b")]
        assert groups == [DH_PARAMS, own], "one that is there stays"

        document = await moved(site)
        assert (document["state"], document["tls"]) == ("completed", True), document["error"]

        async def shows_expiry() -> bool:
            found = re.findall(
                r'migrator_certificate_expiry_timestamp_seconds\{host="(.)"\} (\S+)',
                (await site.probe("/metrics"))[1],
            )
            return {host for host, at in found if 19 < (float(at) - time.time()) / 86_400 <= 20} == {"a", "b"}

        await eventually(shows_expiry, "the metric of certificates", site)

        kept = await pki(site, "renew", "--within", "10d", "--json")
        assert [each["result"] for each in json.loads(kept.out)["hosts"]] == ["kept", "kept"]
        before = (tmp_path / "pki-a" / "server-cert.pem").read_bytes()
        renewed = await pki(site, "renew", "a", "--json")
        assert [each["result"] for each in json.loads(renewed.out)["hosts"]] == ["issued"]
        assert (tmp_path / "pki-a" / "server-cert.pem").read_bytes() != before
        # One that is renewed and one that is not believe each other.
        document = await moved(site, to="a")
        assert (document["state"], document["tls"]) == ("completed", True), document["error"]


async def test_certificates_of_others_are_shown_and_not_replaced_unasked(tmp_path: Path) -> None:
    write_directory(tmp_path / "pki-a", *self_made())
    async with site_with_authority(tmp_path, tls="prefer") as site:
        assert (await pki(site, "init")).code == 0
        assert (await pki(site, "issue", "b")).code == 0
        shown = json.loads((await pki(site, "show", "--json")).out)
        assert [each["result"] for each in shown["hosts"]] == ["foreign", "ours"]
        refused = await pki(site, "issue", "a")
        assert (refused.code, "this authority did not make; see --replace" in refused.err) == (1, True)
        renewed = json.loads((await pki(site, "renew", "--within", "1000d", "--json")).out)
        assert [each["result"] for each in renewed["hosts"]] == ["foreign", "issued"]
        assert (await pki(site, "issue", "a", "--replace")).code == 0
        assert (await pki(site, "issue", "nowhere")).code == 2


async def test_guest_stays_where_another_authority_made_its_targets_certificates(tmp_path: Path) -> None:
    write_directory(tmp_path / "pki-a", *self_made())
    async with site_with_authority(tmp_path, guest("web"), tls="prefer") as site:
        assert (await pki(site, "init")).code == (await pki(site, "issue", "b")).code == 0
        site.serve()
        await site.until_served()
        await site.known(1)
        refused = await moved(site)
        assert [each["code"] for each in refused["findings"] if each["severity"] == "error"] == [
            "tls-certificate"
        ]
        assert "signed by another authority than those that b trusts" in refused["error"]
        document = await moved(site, accept=["tls-certificate"])
        assert (document["state"], document["tls"]) == ("completed", False)


@pytest.mark.matrix
async def test_certificates_that_are_renewed_in_the_middle_of_an_evacuation_cost_no_guest(
    tmp_path: Path,
) -> None:
    machines = [guest(name, region=8 * MIB) for name in ("web", "db", "mail", "dns")]
    async with site_with_authority(tmp_path, *machines, tls="require") as site:
        assert (await pki(site, "init")).code == (await pki(site, "issue", "a", "b")).code == 0
        site.serve()
        await site.until_served()
        await site.known(len(machines))

        async def renew() -> None:
            while True:
                renewed = await pki(site, "renew", "a", "b", "--within", "1000d")
                assert renewed.code == 0, renewed.err

        async with Witness(site, machines):
            for here, there in (("a", "b"), ("b", "a")):
                renewing = asyncio.create_task(renew(), name="renewing certificates")
                begun = await site.post(f"hosts/{here}/evacuate")
                await site.ended(begun["id"], "completed", within=120)
                renewing.cancel()
                await asyncio.wait({renewing})
                await site.everyone_at(machines, there)
                await site.post(f"hosts/{here}/activate")
        assert {each["tls"] for each in await site.migrations("completed")} == {True}
