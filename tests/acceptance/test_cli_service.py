"""The commands that ask the service, as a user types them."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Cancel, Migrate
from migrator.core.model import Finding, Severity, State
from tests.command import MIGRATOR
from tests.http_service import HOSTILE, OPERATOR, VIEWER
from tests.service_thread import ServiceThread, in_thread
from tests.some_events import host_state


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceThread]:
    with in_thread(tmp_path) as service:
        yield service


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceThread]:
    """One service for all tests that change nothing."""
    with in_thread(tmp_path_factory.mktemp("service")) as service:
        for machine in service.service.site.machines.values():
            machine.memory_bytes = 8 << 30
        service.do(lambda running: running.queries.refresh())
        yield service


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceThread]:
    """One service for all tests that change nothing, with a migration under way."""
    with in_thread(tmp_path_factory.mktemp("busy")) as service:
        service.prepare_slowly()
        service.ask(Migrate(guest="db", to="beta"))
        yield service


def typed(service: ServiceThread, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``migrator …`` to its end, by the Unix socket unless `variables` say otherwise."""
    return subprocess.run(
        [*MIGRATOR, *arguments],
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "MIGRATOR_SERVER": f"unix:{service.place.socket}", **variables},
    )


def document(ended: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    """The one document that ``--json`` printed."""
    assert ended.returncode == code, (ended.stdout, ended.stderr)
    return json.loads(ended.stdout)


def offers_of(ask: Callable[[], str]) -> str:
    """What a shell offers. A service that has not answered within half a second is asked again, as a person would."""
    return next((offered for _ in range(20) if (offered := ask()).strip()), "")


def test_hosts_and_guests(untouched: ServiceThread):
    hosts = typed(untouched, "hosts")
    assert hosts.returncode == 0, hosts.stderr
    lines = [line.split("\t") for line in hosts.stdout.splitlines()]
    assert lines[0][:4] == ["HOST", "STATE", "UP", "GUESTS"]
    assert [line[:4] for line in lines[1:]] == [["alpha", "active", "up", "3"], ["beta", "active", "up", "2"]]
    guests = typed(untouched, "guests", "--host", "beta")
    assert "cannot move: libvirt manages it" in guests.stdout
    assert [guest["name"] for guest in document(typed(untouched, "guests", "--json"))["items"]].count(
        "web"
    ) == 2
    assert typed(untouched, "guests", "--host", "gamma").returncode == 2


def test_policies_and_hooks(untouched: ServiceThread):
    shown = typed(untouched, "policies").stdout
    assert re.search(
        r"^default \(default\)\t5\tbuilt in\tThe guest stands still for 300 ms at most\. ",
        shown,
        re.MULTILINE,
    )
    found = document(typed(untouched, "policies", "--json"))["items"]
    assert {"gentle", "must-finish", "cold", "save"} < {one["name"] for one in found}
    assert "policy/gentle" in typed(untouched, "policies", "--output", "name").stdout.split()
    assert typed(untouched, "hooks").stdout == "POINT\tHOOK\tWHERE\tAT MOST\n"
    gone = typed(untouched, "guests", "--host", "gamma")
    assert "there is no host gamma; there are alpha, beta" in gone.stderr


def test_a_guests_name_cannot_write_on_the_terminal(untouched: ServiceThread):
    shown = typed(untouched, "guests").stdout
    assert "\x1b" not in shown
    assert "<img src=x onerror=alert(1)>[red]" in shown
    assert document(typed(untouched, "guests", "--json"))["items"][0]["name"] == HOSTILE


def test_plan_and_check(untouched: ServiceThread):
    plan = typed(untouched, "plan", "alpha")
    assert plan.returncode == 0, plan.stderr
    found = document(typed(untouched, "plan", "alpha", "--json"))
    assert found["host"] == "alpha"
    likely, longest = found["takes_p50_seconds"], found["takes_p90_seconds"]
    assert re.search(r"alpha would be empty after [0-9.]+ s \([0-9.]+ s to [0-9.]+ s\)", plan.stdout)
    stays = typed(untouched, "plan", "beta", "--accept", "not-movable,libvirt")
    assert stays.returncode == 8, stays.stderr
    assert "beta would not be empty: 1 of 2 guests cannot move; the others would be gone" in stays.stdout
    assert "mail would stay: " in stays.stdout
    assert document(typed(untouched, "plan", "beta", "--json"), 8)["cannot_move"] == 1
    dry = typed(untouched, "evacuate", "alpha", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, plan.stdout)
    for deadline, said in (
        ("+90m", "would be kept"),
        (f"+{math.ceil((likely + longest) / 2)}s", "may be missed"),
        ("+2s", "would be missed by"),
    ):
        assert said in typed(untouched, "evacuate", "alpha", "--dry-run", "--deadline", deadline).stdout
    assert typed(untouched, "evacuate", "beta", "--dry-run").returncode == 8
    assert typed(untouched, "evacuate", "alpha", "--dry-run", "--wait").returncode == 2
    assert "can move to beta" in typed(untouched, "check", "db", "--to", "beta").stdout
    refused = typed(untouched, "check", "mail", "--to", "alpha")
    assert refused.returncode == 3
    assert "libvirt manages it" in refused.stdout
    assert "what to do: change its [[guests]] entry" in refused.stdout
    assert untouched.active() == []


def ended_ones(service: ServiceThread) -> list[Any]:
    """Documents of migrations, newest first."""
    return list(service.do(lambda running: running.queries.migrations(limit=100)))


def test_migrate_and_wait(service: ServiceThread):
    ended = typed(service, "migrate", "db", "--to", "beta", "--wait")
    assert ended.returncode == 0, ended.stderr
    assert "hand-over: the source is done" in ended.stdout
    assert "completed" in ended.stdout
    assert re.search(r"downtime \d+ ms \(ceiling 300 ms\)", ended.stdout)
    assert "\x1b" not in ended.stdout
    [one] = ended_ones(service)
    found = document(typed(service, "status", one.id, "--json"))
    assert (found["state"], found["requested_by"]) == ("completed", f"unix:{os.getuid()}")
    assert re.search(r"last moved .* in [0-9.]+ m?s", typed(service, "plan", "beta").stdout)


def test_wait_with_json_prints_the_end_and_nothing_else(service: ServiceThread):
    found = document(typed(service, "migrate", "db", "--wait", "--json"))
    assert found["state"] == "completed"


def test_a_wait_for_what_preflight_refuses(service: ServiceThread):
    service.service.site.findings["db", "beta"] = (
        Finding(code="cpu", severity=Severity.ERROR, message="another CPU", remedy="take another host"),
    )
    for more in ((), ("--json",)):
        assert typed(service, "migrate", "db", "--to", "beta", "--wait", *more).returncode == 3


@pytest.mark.parametrize(
    ("end", "code"),
    [(State.FAILED, 1), (State.CANCELLED, 4), (State.HELD, 5), (State.GUEST_ENDED, 6)],
)
def test_exit_codes_of_a_wait(service: ServiceThread, end: State, code: int):
    site = service.service.site
    service.move_slowly()
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(typed, service, "migrate", "db", "--to", "beta", "--wait")
        [one] = service.until(lambda running: running.queries.active_migrations(), "a migration")
        service.reaches(one.id, State.PRECOPY)
        match end:
            case State.FAILED:
                service.do(lambda _: next(iter(site.waiting.values())).die())
            case State.CANCELLED:
                service.ask(Cancel(target=one.id))
            case _:
                service.kill_source("db", ended=end is State.GUEST_ENDED)
        ended = waiting.result()
    assert ended.returncode == code, (ended.stdout, ended.stderr)
    assert str(end) in ended.stdout
    if end is State.HELD:
        assert f"migrator resolve {one.id} --guest-at source|destination|lost" in ended.stdout


def carried_out(service: ServiceThread) -> list[tuple[str, dict[str, Any]]]:
    """Verbs and bodies of the commands that came, as the journal has them."""
    return [(each["verb"], each["body"]) for each in service.service.journal.commands.values()]


def test_findings_are_accepted_with_commas_or_one_by_one(service: ServiceThread):
    service.prepare_slowly()
    assert typed(service, "migrate", "db", "--accept", "a,b", "--accept", "c").returncode == 0
    [(_, body)] = carried_out(service)
    assert body["accept"] == ["a", "b", "c"]


def test_a_restore_takes_a_policy_as_an_evacuation_does(service: ServiceThread):
    service.prepare_slowly()
    assert typed(service, "evacuate", "alpha", "--policy", "must-finish").returncode == 0
    typed(service, "restore", "beta", "--policy", "must-finish")
    typed(service, "restore", "beta")
    commands = [
        (verb, body.get("policy"))
        for verb, body in carried_out(service)
        if not body.get("dry_run")  # which tells who would come home before it begins
    ]
    assert commands == [("evacuate", "must-finish"), ("restore", "must-finish"), ("restore", None)]


def test_without_wait_it_says_how_to_watch(service: ServiceThread):
    begun = typed(service, "migrate", "db")
    assert begun.returncode == 0
    [one] = ended_ones(service)
    assert f"migrator watch {one.id}" in begun.stdout
    assert typed(service, "watch", one.id).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("migrate", "web"), 2, "alpha/web"),
        (("migrate", "nobody"), 2, "no guest"),
        (("migrate", "mail"), 3, "mail cannot be moved: libvirt manages it"),
        (("migrate", "db", "--to", "a b"), 2, "to:"),
        (("evacuate", "gamma"), 2, "no host gamma"),
        (("evacuate", "alpha", "--deadline", "soon"), 2, "+90m"),
        (("evacuate", "alpha", "--deadline", "2020-01-01T00:00:00Z"), 2, "has passed"),
        (("evacuate", "alpha", "--deadline", "2099-01-01T00:00:00"), 2, "zone"),
        (("evacuate", "alpha", "--on-deadline", "panic"), 2, "continue"),
        (("restore", "alpha"), 1, "nobody to bring home"),
        (("status", "m99"), 2, "no migration or evacuation m99"),
        (("cancel", "../hosts"), 2, "no migration or evacuation"),
        (("resolve", "m1", "--guest-at", "moon"), 2, "lost"),
        (("hosts", "--server", "ftp://x"), 2, "no address"),
        (("hosts", "--server", "http://192.0.2.1:80"), 2, "https"),
    ],
)
def test_what_is_refused(untouched: ServiceThread, arguments: tuple[str, ...], code: int, says: str):
    ended = typed(untouched, *arguments)
    assert ended.returncode == code, (ended.stdout, ended.stderr)
    assert says in ended.stderr
    assert ended.stderr.startswith("migrator: ") or "what to do" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert untouched.active() == []


def evacuation(service: ServiceThread) -> Any:
    """The document of the only evacuation."""
    [one] = service.do(lambda running: running.queries.evacuations(limit=10))
    return one


def test_an_evacuation_to_its_end(service: ServiceThread):
    ended = typed(service, "evacuate", "alpha", "--deadline", "+90m", "--wait")
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    assert "the deadline is" in ended.stderr
    assert "evacuation of alpha, completed" in ended.stdout
    for name in ("web", "db"):
        assert f"moved      {name} to beta" in ended.stdout
    found = document(typed(service, "status", evacuation(service).id, "--json"))
    assert found["guests_left"] == 0
    assert found["deadline"] is not None


def test_an_evacuation_that_leaves_a_guest_lists_it(service: ServiceThread):
    ended = typed(service, "evacuate", "beta", "--wait")
    assert ended.returncode == 1, (ended.stdout, ended.stderr)
    assert "set-aside  mail: libvirt manages it" in ended.stdout
    assert ended.stdout.count("1 guest still") == 1
    assert "1 guest still on beta" in ended.stdout


def test_an_evacuation_with_a_held_guest(service: ServiceThread):
    service.move_slowly()
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(typed, service, "evacuate", "alpha", "--wait")
        service.until(lambda _: len(service.service.site.streams) == 3, "three streams")
        service.kill_source("db")
        service.let_move()
        ended = waiting.result()
    assert ended.returncode == 5, (ended.stdout, ended.stderr)


def test_last_events_are_found_over_numbers_that_were_never_given(service: ServiceThread):
    def say(name: str, count: int = 1) -> None:
        service.do(lambda running: [running.bus.publish(host_state(name)) for _ in range(count)])
        service.until(lambda running: running.bus.last_event_id == running.bus.place, "events in the journal")

    say("before")
    service.stop()  # as a kill: the next one cannot know which numbers were given
    service.start()
    say("after")
    found = document(typed(service, "events", "--json"))["items"]
    numbers = {event["subject_id"]: event["event_id"] for event in found}
    assert numbers["after"] > numbers["before"] + 100
    say("x", 300)
    found = document(typed(service, "events", "--json"))["items"]
    assert [event["subject_id"] for event in found] == ["x"] * 200
    assert found[-1]["event_id"] == service.do(lambda running: running.bus.last_event_id)


def test_cancel_status_and_events(service: ServiceThread):
    service.move_slowly()
    assert "nothing is under way" in typed(service, "status").stdout
    assert typed(service, "evacuate", "alpha").returncode == 0
    whole = evacuation(service).id
    service.until(lambda running: len(running.queries.active_migrations()) == 3, "three migrations")
    one = next(each.id for each in service.active() if each.guest_name == "db")
    status = typed(service, "status").stdout
    assert f"{whole}\talpha\tevacuate\trunning\t3" in status
    assert f"{one}\t" in status
    both = document(typed(service, "status", "--json"))
    assert (len(both["migrations"]), len(both["evacuations"])) == (3, 1)
    assert f"{one} is being cancelled" in typed(service, "cancel", one).stdout
    service.reaches(one, State.CANCELLED)
    assert typed(service, "cancel", one).returncode == 1
    assert f"{whole} is being cancelled" in typed(service, "cancel", whole).stdout
    events = typed(service, "events", one).stdout.splitlines()
    assert f"migration {one}  queued" in events[0]
    assert "cancelled" in events[-1]
    everything = document(typed(service, "events", "--json"))["items"]
    numbers = [event["event_id"] for event in everything]
    assert numbers == list(range(1, len(everything) + 1))
    after = document(typed(service, "events", "--after", "3", "--json"))["items"]
    assert after[: len(everything) - 3] == everything[3:]


def test_what_is_under_way_is_found_by_its_guest_or_host_too(service: ServiceThread):
    service.move_slowly()
    idle = typed(service, "cancel", "db")
    assert (idle.returncode, idle.stderr.count("\n")) == (2, 1)
    assert "db is in no migration" in idle.stderr
    typed(service, "evacuate", "alpha", "--policy", "must-finish")
    whole = evacuation(service).id
    service.until(lambda running: len(running.queries.active_migrations()) == 3, "three migrations")
    db = next(each.id for each in service.active() if each.guest_name == "db")
    service.reaches(db, State.PRECOPY)
    assert document(typed(service, "status", "db", "--json"))["id"] == db
    assert f"{db} (db) goes on in postcopy" in typed(service, "postcopy", "db").stdout
    web = next(each.id for each in service.active() if each.guest_name == "web")
    assert f"{web} is being cancelled" in typed(service, "cancel", "alpha/web").stdout
    either = typed(service, "cancel", "web")
    assert either.returncode == 2
    assert "alpha/web" in either.stderr
    assert "beta/web" in either.stderr
    assert "evacuation of alpha" in typed(service, "status", "alpha").stdout
    assert f"{whole} is being cancelled" in typed(service, "cancel", "alpha").stdout


def test_only_what_may_be_cancelled_now_is_offered(service: ServiceThread):
    service.move_slowly()
    one = service.ask(Migrate(guest="db", to="beta")).id
    service.reaches(one, State.PRECOPY)
    complete = {"_MIGRATOR_COMPLETE": "complete_bash", "COMP_CWORD": "2"}

    def offered(verb: str) -> str:
        return typed(service, **complete, COMP_WORDS=f"migrator {verb} ").stdout

    assert (offers_of(lambda: offered("cancel")).split(), offered("resolve").split()) == ([one], [])
    service.kill_source("db")
    service.reaches(one, State.HELD)
    assert (offered("cancel").split(), offers_of(lambda: offered("resolve")).split()) == ([], [one])


def test_a_ceiling_that_was_exceeded_is_said(service: ServiceThread):
    kept = service.ask(Migrate(guest="db", to="beta")).id
    service.reaches(kept, State.COMPLETED)
    assert re.search(r"downtime \d+ ms \(ceiling 300 ms", typed(service, "status", kept).stdout)
    # One that writes nothing is at its switch at once; so little is left that it is sent while it stands still.
    for host in service.service.site.hosts.values():
        host.into.bytes_per_second = 1 << 20
    above = service.ask(Migrate(guest="db", to="alpha")).id
    service.reaches(above, State.COMPLETED)
    assert re.search(
        r"downtime [0-9.]+ s \(above its ceiling of 300 ms", typed(service, "status", above).stdout
    )
    assert document(typed(service, "status", above, "--json"))["ceiling_exceeded"] is True


def test_resolve_and_postcopy(service: ServiceThread):
    service.move_slowly()
    typed(service, "migrate", "db", "--policy", "must-finish")
    [one] = service.active()
    service.reaches(one.id, State.PRECOPY)
    assert typed(service, "resolve", one.id, "--guest-at", "source").returncode == 1
    service.kill_source("db")
    service.reaches(one.id, State.HELD)
    assert typed(service, "resolve", one.id, "--guest-at", "lost").returncode == 0


class TestOtherPlaces:
    def test_by_url_with_a_token(self, service: ServiceThread):
        operator = {"MIGRATOR_SERVER": service.place.url, "MIGRATOR_TOKEN": OPERATOR}
        assert typed(service, "migrate", "db", **operator).returncode == 0
        viewer = {**operator, "MIGRATOR_TOKEN": VIEWER}
        assert typed(service, "hosts", **viewer).returncode == 0
        refused = typed(service, "evacuate", "alpha", **viewer)
        assert (refused.returncode, "operator" in refused.stderr) == (2, True)
        nobody = typed(service, "hosts", MIGRATOR_SERVER=service.place.url, MIGRATOR_TOKEN="")
        assert (nobody.returncode, "MIGRATOR_TOKEN" in nobody.stderr) == (2, True)
        assert typed(service, "hosts", **{**operator, "MIGRATOR_TOKEN": "wrong-" + OPERATOR}).returncode == 2

    @pytest.mark.parametrize("where", ["unix:/nowhere/api.sock", "http://127.0.0.1:1"])
    def test_no_service_there(self, untouched: ServiceThread, where: str):
        for arguments in (("hosts",), ("migrate", "db", "--wait"), ("watch",), ("events",)):
            ended = typed(untouched, *arguments, "--server", where)
            assert ended.returncode == 7, ended.stderr
            assert "systemctl start migrator" in ended.stderr
            assert ended.stdout == ""
            assert len(ended.stderr.splitlines()) == 1

    def test_something_else_there(self, untouched: ServiceThread):
        ended = typed(untouched, "hosts", "--server", f"{untouched.place.probes}", MIGRATOR_TOKEN=OPERATOR)
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr


class TestCompletion:
    @pytest.mark.parametrize(
        ("line", "offers"),
        [
            ("migrator evacuate a", ["alpha"]),
            ("migrator evacuate ", ["alpha", "beta"]),
            ("migrator migrate d", ["db"]),
            ("migrator migrate beta", ["beta/web"]),
            ("migrator migrate db --to b", ["beta"]),
            ("migrator migrate db --policy g", ["gentle"]),
            ("migrator cancel ", ["m1"]),
            ("migrator evacuate a --on-deadline ", ["continue", "stop"]),
            ("migrator resolve m1 --guest-at l", ["lost"]),
        ],
    )
    def test_of_names(self, busy: ServiceThread, line: str, offers: list[str]):
        words = line.split(" ")
        bash = {"_MIGRATOR_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        offered = offers_of(lambda: typed(busy, **bash).stdout)
        [under_way] = [each.id for each in busy.active()]
        offers = [under_way if each == "m1" else each for each in offers]
        assert offered.split() == offers
        if len(offers) == 1:
            return  # the shells differ in their scripts, not in what is offered
        fish = {"_MIGRATOR_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        offered = offers_of(lambda: typed(busy, **fish, _TYPER_COMPLETE_ARGS=line).stdout)
        assert [offer.split("\t")[0] for offer in offered.splitlines()] == offers

    @pytest.mark.parametrize(
        ("begun", "offers"),
        [
            ("vm", [r"vm\ four\ \(\$HOME\)"]),
            (r"vm\ f", [r"vm\ four\ \(\$HOME\)"]),
            ("'vm f", ["vm four ($HOME)"]),
            ("d", ["db"]),
        ],
    )
    def test_a_name_with_blanks_goes_into_bash_as_one_word(
        self, service: ServiceThread, begun: str, offers: list[str]
    ):
        service.guest("mail").name = "vm four ($HOME)"
        service.do(lambda running: running.queries.refresh())
        script = typed(service, _MIGRATOR_COMPLETE="source_bash").stdout
        shell = f'{script}\nCOMP_WORDS=(migrator migrate "$BEGUN") COMP_CWORD=2\n'
        shell += f"_migrator_completion {shlex.join(MIGRATOR)}\n" + 'printf "%s\\n" "${COMPREPLY[@]}"'

        def ask() -> str:
            return subprocess.run(
                ["bash", "--norc", "-c", shell],
                capture_output=True,
                check=True,
                text=True,
                timeout=30,
                env={**os.environ, "MIGRATOR_SERVER": f"unix:{service.place.socket}", "BEGUN": begun},
            ).stdout

        assert offers_of(ask).splitlines() == offers

    def test_of_tokens_that_hold(self, busy: ServiceThread, tmp_path: Path):
        config = tmp_path / "migrator.toml"
        config.write_text(f'[store]\npath = "{tmp_path}/journal.db"\n')
        line = f"migrator token revoke --config {config} "
        bash = {"_MIGRATOR_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": "5"}
        assert typed(busy, **bash).stdout.split() == []
        assert not (tmp_path / "journal.db").exists()
        for name in ("ann", "bob", "grafana"):
            typed(busy, "token", "create", name, "--role", "viewer", "--config", str(config))
        typed(busy, "token", "revoke", "bob", "--config", str(config))
        assert typed(busy, **bash).stdout.split() == ["ann", "grafana"]
        assert typed(busy, **{**bash, "COMP_WORDS": f"{line}g"}).stdout.split() == ["grafana"]
        config.write_text("wrong")
        assert (typed(busy, **bash).stdout.strip(), typed(busy, **bash).stderr) == ("", "")

    def test_without_a_service_it_is_quick_and_silent(self, busy: ServiceThread):
        bash = {"_MIGRATOR_COMPLETE": "complete_bash", "COMP_WORDS": "migrator evacuate ", "COMP_CWORD": "2"}
        ended = typed(busy, **bash, MIGRATOR_SERVER="unix:/nowhere")
        assert (ended.stdout.strip(), ended.stderr) == ("", "")

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_scripts(self, busy: ServiceThread, shell: str):
        script = typed(busy, _MIGRATOR_COMPLETE=f"source_{shell}").stdout
        assert "_MIGRATOR_COMPLETE" in script


@pytest.mark.parametrize("words", [(), ("token",), ("config",)])
def test_what_a_command_is_for_is_said_whole_on_a_usual_terminal(busy: ServiceThread, words: tuple[str, ...]):
    ended = typed(busy, *words, "--help", COLUMNS="80")
    assert ended.returncode == 0
    listed = ended.stdout.partition("Commands:\n")[2].splitlines()
    assert len(listed) > 0
    assert [line for line in listed if line.endswith("...") or len(line) > 80] == []


@pytest.mark.parametrize("command", ["migrate", "events"])
def test_help(busy: ServiceThread, command: str):
    ended = typed(busy, command, "--help")
    assert ended.returncode == 0
    assert "--server" in ended.stdout
