"""A maintenance window and a roll over real QEMUs, the service killed in the middle of each."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from migrator.testing.lab import until
from tests.acceptance.service_site import guest, served


def hook(point: str, name: str, script: str) -> str:
    command = json.dumps(["/bin/sh", "-c", script])
    return f'[[hooks]]\npoint = "{point}"\nname = "{name}"\ncommand = {command}\ntimeout = "1h"\n'


@pytest.mark.matrix
async def test_a_window_begins_after_a_restart_and_a_roll_goes_on_after_one(tmp_path: Path) -> None:
    web, handed, go = guest("web"), tmp_path / "handed", tmp_path / "go"
    extra = (
        # The first time it hangs, as the host would that is patched; its controller is killed meanwhile.
        hook("after-drain", "patch", f"cat >>{handed}; echo >>{handed}; test -e {go} || exec sleep 120")
        + hook("ready", "healthy", f"test -e {go}")
    )
    async with served([web], "a", "b", extra=extra) as site:
        begins = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
        window = await site.post("hosts/a/evacuate", at=begins, until="+1h")
        assert window["state"] == "scheduled"
        await site.restart()
        await site.ended(window["id"], "completed")
        assert site.where(await site.runs_once(web)) == "b"
        await site.post("hosts/a/activate")

        roll = await site.post("rolls", hosts=["b", "a"], hooks={"ready": ["healthy"]})

        async def is_handed_over() -> bool:
            return handed.exists() and handed.read_text().endswith("\n")

        await until(is_handed_over, what="the host to be handed over", within=60)
        assert site.where(await site.runs_once(web)) == "a"
        go.touch()
        await site.restart()
        done: Any = await site.ended(roll["id"], "completed")
        assert [(each["host"], each["stage"]) for each in done["hosts"]] == [("b", "done"), ("a", "done")]
        assert site.where(await site.runs_once(web)) == "b"
        told = [json.loads(line) for line in handed.read_text().splitlines() if line]
        assert [(each["host"], each["attempt"]) for each in told] == [("b", 1), ("b", 2), ("a", 1)]
        assert {host["state"] for host in (await site.get("hosts"))["items"]} == {"active"}
