"""The documents say what can be typed: each command line is one, and how-to pages whose blocks can run here are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer._click.exceptions import BadOptionUsage, MissingParameter, NoArgsIsHelpError

from migrator import settings
from migrator.cli.app import app
from migrator.testing.simulated_service import SimulatedService
from migrator.testing.workload import MIB
from tests.command import MIGRATOR
from tests.conftest import missing
from tests.service_thread import in_thread

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])
#: Made from the command line's own help.
GENERATED = frozenset({"commands.md"})

#: Of every language, so that the end of one is not taken for the beginning of the next.
_BLOCK = re.compile(r"^ *```(\S*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_TYPED = frozenset({"console", "sh", "text", ""})
_INLINE = re.compile(r"`(migrator [^`]+)`")
#: In front of what is typed: whose prompt it is, and as whom it is run.
_PROMPT = re.compile(r"^ *(?:\w+)?[$#] +(?:\$become )?|^ *(?=migrator )")
#: Something is left out, or stands for others.
_NOT_WHOLE = re.compile(r"…|\.\.\.|COMMAND")

#: A sentence may name a command without saying all that it takes.
_UNFINISHED = (MissingParameter, BadOptionUsage, NoArgsIsHelpError)


def blocks(page: Path) -> list[str]:
    """Return the blocks of a page in which something is typed."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [block for language, block in found if language in _TYPED]


def typed(block: str) -> Iterator[str]:
    """Yield every line of a block that is typed, without its prompt."""
    for line in block.replace("\\\n", " ").splitlines():
        if _PROMPT.match(line):
            yield _PROMPT.sub("", line)


def ours(line: str) -> Iterator[list[str]]:
    """Yield the words behind each ``migrator`` of a line, as a shell splits them."""
    words = shlex.shlex(re.sub(r"[\[\]]", "", line), posix=True, punctuation_chars=True)
    words.wordchars += "$:@{}=+,%"
    found: list[str] | None = None
    begins = True
    for word in (*words, ";"):
        if set(word) <= set("();<>|&"):
            if found is not None:
                yield found
            found, begins = None, word not in ("<", ">", ">>")
        elif found is not None:
            found.append(word)
        elif begins and word == "migrator":
            found = []
        else:
            begins = begins and (word == "$become" or "=" in word)


def read(words: list[str]) -> None:
    """Have the command line read these words, and do nothing of what they say.

    :raise typer.TyperException: they are none of its commands.
    """
    command: Any = typer.main.get_command(app)
    context = command.make_context("migrator", words)
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(
    "page", [each for each in PAGES if each.name not in GENERATED], ids=lambda page: page.stem
)
def test_what_is_to_be_typed_is_a_command_with_these_options(page: Path) -> None:
    whole = [line for block in blocks(page) for line in typed(block)]
    # In a sentence alternatives are told by a bar.
    named = _INLINE.findall(" ".join(page.read_text(encoding="utf-8").split()))
    wrong = []
    for line in dict.fromkeys(whole + [each for each in named if "|" not in each]):
        if _NOT_WHOLE.search(line):
            continue
        for words in ours(line):
            try:
                read(words)
            except typer.Exit:  # --help
                pass
            except typer.TyperException as error:
                if line in whole or not isinstance(error, _UNFINISHED):
                    wrong.append(f"{line}: {error.format_message()}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_belongs_to_an_item_of_a_list_is_indented_as_the_site_wants_it(page: Path) -> None:
    """With less than four spaces it ends the list there, and the next number is 1 again."""
    inside, before, wrong = False, "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = line.lstrip().startswith("```")
        if re.match(r" {1,3}\S", line) and (fence or (not before and not inside)):
            wrong.append(f"{number}: {line}")
        inside, before = inside != fence, line
    assert wrong == []


_TOML = re.compile(r"^ *```toml\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [each for each in PAGES if "```toml" in each.read_text(encoding="utf-8")],
    ids=lambda page: page.stem,
)
def test_what_is_to_be_put_into_the_configuration_is_a_part_of_one(page: Path, tmp_path: Path) -> None:
    for block in _TOML.findall(page.read_text(encoding="utf-8")):
        (tmp_path / "migrator.toml").write_text(block, encoding="utf-8")
        for name in ("traces.headers", "mqtt.password"):  # files that some of them name
            (tmp_path / name).write_text("Secret: 1\n")
        settings.load(tmp_path / "migrator.toml")


# What can run is run --------------------------------------------------------------------------------------------


def _site(directory: Path) -> SimulatedService:
    """Return a service of the hosts and the guest that the pages speak of."""
    service = SimulatedService(directory)
    for name in ("host-1", "host-2", "host-3"):
        service.site.add_host(name, link=1000 * MIB, start_seconds=0.0)
    for name in ("web", "db"):
        service.site.add_guest(name, host="host-1", memory_bytes=64 * MIB)
    return service


def run(*command: str, **environment: str) -> str:
    """Run a command to its end, which has to be a good one; return what it printed."""
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


def run_block(block: str, **environment: str) -> str:
    """Run each command of ours in a block, one after the other; return what they printed."""
    return "".join(run(*MIGRATOR, *words, **environment) for line in typed(block) for words in ours(line))


@pytest.mark.parametrize("page", ["evacuate", "move", "cordon", "windows"])
def test_first_block_of_a_page_does_what_it_says_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    with in_thread(tmp_path, made=_site) as service:
        block = blocks(DOCS / f"{page}.md")[0]
        said = run_block(block, MIGRATOR_SERVER=f"unix:{service.place.socket}")
        at = {name: service.service.site.running(name) for name in ("web", "db")}
        expected = {"web": ["host-2"] if page == "move" else ["host-1"], "db": ["host-1"]}
        assert at == expected, said
        if page == "evacuate":
            assert "restore of host-1, completed" in said
        if page == "windows":
            assert "scheduled" in said
            (left,) = service.do(lambda running: running.queries.evacuations(limit=9))
            assert left.state == "cancelled"


def test_tokens_are_made_listed_and_ended_as_it_is_described(tmp_path: Path) -> None:
    config = tmp_path / "migrator.toml"
    config.write_text(f'[store]\npath = "{tmp_path}/state/journal.db"\n')
    (block,) = (each for each in blocks(DOCS / "tokens.md") if "token create" in each)
    said = run_block(block, MIGRATOR_CONFIG=str(config))
    assert len(re.findall(r"^migrator_[0-9a-f_]+$", said, re.MULTILINE)) == 2, said
    assert "alice\toperator" in said
    assert "grafana\tviewer" in said


def test_backup_as_it_is_described_has_everything_and_can_be_put_back(tmp_path: Path) -> None:
    if shutil.which("sqlite3") is None:
        missing("there is no sqlite3 here")
    home, etc = tmp_path / "var/lib/migrator", tmp_path / "etc/migrator"
    (home / "steps").mkdir(parents=True)
    (home / ".ssh").mkdir(mode=0o700)
    (home / ".ssh" / "id_ed25519").write_text("key")
    (home / "controller").write_text("id of the controller")
    (home / "steps" / "m1").write_text("step")
    etc.mkdir(parents=True)
    (etc / "migrator.toml").write_text(
        f'[http]\nsocket = "api.sock"\nmetrics_listen = ""\n[store]\npath = "{home}/journal.db"\n'
    )

    def token(*words: str) -> str:
        return run(*MIGRATOR, "token", *words, MIGRATOR_CONFIG=str(etc / "migrator.toml"))

    def run_below(block: str) -> None:
        """Run a block below a directory of the test, with its user, without systemd and the doctor."""
        script = "\n".join(typed(block))
        for theirs, ours_ in (
            (" /var/lib/", f" {tmp_path}/var/lib/"),
            ("/etc/migrator", f"{tmp_path}/etc/migrator"),
            ("/backup", f"{tmp_path}/backup"),
            ("-o migrator -g migrator", f"-o {os.getuid()} -g {os.getgid()}"),
            ("migrator:migrator", f"{os.getuid()}:{os.getgid()}"),
        ):
            script = script.replace(theirs, ours_)
        run("bash", "-euc", f"systemctl() {{ :; }}\nmigrator() {{ :; }}\n{script}")

    backup, restore = blocks(DOCS / "backup.md")
    token("create", "kept", "--role", "viewer")
    (tmp_path / "backup").mkdir()
    before = {each.relative_to(home): each.read_bytes() for each in home.rglob("*") if each.is_file()}
    run_below(backup)
    token("create", "later", "--role", "viewer")
    shutil.rmtree(tmp_path / "etc")
    etc.mkdir(parents=True)
    run_below(restore)
    (asked,) = (each for each in blocks(DOCS / "watch.md") if "sqlite3" in each)
    run_below(asked)
    tokens = token("list")
    assert "kept" in tokens
    assert "later" not in tokens
    back = {each.relative_to(home) for each in home.rglob("*") if each.is_file()}
    assert {
        each for each in before if not each.name.startswith("journal.db-") and each.suffix != ".lock"
    } <= back
    assert (home / ".ssh" / "id_ed25519").read_text() == "key"
