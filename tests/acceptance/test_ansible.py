"""The collection in contrib/ansible against a live service: its playbook by ansible-playbook, its modules alone."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing
from tests.http_service import OPERATOR, VIEWER
from tests.service_thread import ServiceThread, in_thread

COLLECTION = Path(__file__).parents[2] / "contrib" / "ansible"
PLAYBOOK = shutil.which("ansible-playbook", path=str(Path(sys.executable).parent))
#: Of a module, with its arguments: its result.
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceThread]:
    if PLAYBOOK is None:
        missing("there is no ansible-core here")
    with in_thread(tmp_path) as service:
        yield service


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    """A directory in which Ansible finds the collection."""
    place = tmp_path / "collections" / "ansible_collections" / "migrator"
    place.mkdir(parents=True)
    (place / "migrator").symlink_to(COLLECTION)
    return place.parents[1]


@pytest.fixture
def module(
    service: ServiceThread,
    collections: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    """Run a module in this process, as Ansible has it run, over TCP with a token from a file."""
    from ansible.module_utils.testing import patch_module_args  # type: ignore[import-untyped] # noqa: PLC0415

    monkeypatch.syspath_prepend(str(collections))
    monkeypatch.delenv("MIGRATOR_SERVER", raising=False)
    token = tmp_path / "token"
    token.write_text(f"{OPERATOR}\n")

    def run(name: str, *, check: bool = False, **given: Any) -> dict[str, Any]:
        found = importlib.import_module(
            f"ansible_collections.migrator.migrator.plugins.modules.migrator_{name}"
        )
        given = {
            "server": service.place.url,
            "token_file": str(token),
            "timeout": 5,
            "away_timeout": 0,
            **given,
        }
        with patch_module_args({**given, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            found.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    yield run
    for name in [name for name in sys.modules if name.startswith("ansible_collections")]:
        del sys.modules[name]


def test_rack_is_rolled_through_until_a_host_that_cannot_be_emptied(
    service: ServiceThread, collections: Path, tmp_path: Path
) -> None:
    upgraded = tmp_path / "upgraded"
    tasks = tmp_path / "tasks.yml"
    tasks.write_text(f"- ansible.builtin.raw: echo {{{{ inventory_hostname }}}} >>{upgraded}\n")
    (tmp_path / "token").write_text(OPERATOR)
    given = {
        "migrator_server": service.place.url,
        "migrator_token_file": str(tmp_path / "token"),
        "rack_upgrade": str(tasks),
        "rack_poll_seconds": 0.05,
    }
    done = subprocess.run(
        [
            str(PLAYBOOK),
            "migrator.migrator.rack",
            "-i",
            "alpha,beta,",
            "-c",
            "local",
            "-e",
            json.dumps(given),
        ],
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "LC_ALL": "C.UTF-8",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    assert "beta is not empty: evacuation " in done.stdout, done.stdout + done.stderr
    assert "1 of 2 guests still on beta: mail (set-aside: libvirt manages it)" in done.stdout, done.stdout
    assert upgraded.read_text() == "alpha\n"
    hosts = {each.host: each for each in service.do(lambda running: running.queries.hosts())}
    assert (hosts["alpha"].state, hosts["alpha"].guests) == ("active", 4)


def test_modules_do_nothing_twice(service: ServiceThread, module: Run) -> None:
    seen = module("host_info", guests=True, refresh=True)
    assert [each["host"] for each in seen["hosts"]] == ["alpha", "beta"]
    assert len(seen["guests"]) == 5

    planned = module("evacuate", host="alpha", check=True)
    assert planned["changed"]
    assert planned["plan"]["host"] == "alpha"
    assert service.active() == []
    assert "mail (" in module("evacuate", host="beta", check=True)["msg"]

    fast = {"poll": 0.05, "wait_timeout": 60}
    emptied = module("evacuate", host="alpha", deadline="+90m", **fast)
    assert emptied["changed"]
    assert emptied["evacuation"]["state"] == "completed"
    assert module("evacuate", host="alpha", **fast) == {
        "changed": False,
        "invocation": emptied["invocation"] | {"module_args": module_args(emptied, deadline=None)},
    }
    assert module("restore", host="alpha", check=True)["changed"]
    assert module("restore", host="alpha", **fast)["evacuation"]["guests_left"] == 0
    assert not module("restore", host="alpha", **fast)["changed"]
    assert not module("restore", host="alpha", guests=False)["changed"]


def module_args(result: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {**result["invocation"]["module_args"], **other}


def test_what_is_under_way_is_waited_for_and_its_rest_named(service: ServiceThread, module: Run) -> None:
    service.move_slowly()
    begun = module("evacuate", host="alpha", wait=False)["evacuation"]
    late = module("evacuate", host="alpha", wait_timeout=0.1, poll=0.05)
    assert late["failed"]
    assert not late["changed"]
    assert late["msg"].startswith(f"{begun['id']} goes on, after 0.1 s: 3 of 3 guests still on alpha: ")
    assert "is being emptied by" in module("restore", host="alpha")["msg"]


def test_what_cannot_work_is_said_in_one_line(service: ServiceThread, module: Run, tmp_path: Path) -> None:
    def said(**given: Any) -> str:
        result = module("evacuate", **{"host": "alpha", **given})
        assert result["failed"]
        assert not result["changed"]
        return str(result["msg"])

    assert said(host="gamma") == "there is no host gamma; there are alpha, beta"
    (tmp_path / "viewer").write_text(VIEWER)
    assert "operator" in said(token_file=str(tmp_path / "viewer"))
    assert said(token_file="/nowhere") == "token_file: /nowhere: No such file or directory"
    assert said(server="http://migrator.example").endswith("use https://")
    assert said(server="migrator").startswith("server: migrator is no address")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert said(server=where, timeout=0.2).endswith(": it takes longer than the time-out")
    assert said(server=where).endswith("Connection refused")
