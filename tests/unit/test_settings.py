"""The configuration: what it means, and what is said of what is wrong with it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator.core.inventory import Guest
from migrator.core.policy import LastResort, PostcopyMode, builtin
from migrator.errors import UsageError
from migrator.settings import REPEATED, SECTIONS, Settings, load, reload
from migrator.settings.host_sections import HostDefaults, HostSettings
from migrator.settings.section import Section
from migrator.settings.values import Listen, Ssh

EXAMPLE = Path(__file__).parents[2] / "config" / "migrator.toml"
Load = Callable[..., Settings]


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "migrator.toml"


@pytest.fixture
def loaded(main: Path) -> Load:
    """Loads what is written here."""

    def from_text(text: str, *, environ: dict[str, str] | None = None, **included: str) -> Settings:
        (main.parent / "hosts.d").mkdir(parents=True, exist_ok=True)
        main.write_text(text, encoding="utf-8")
        for name, content in included.items():
            (main.parent / "hosts.d" / f"{name}.toml").write_text(content)
        return load(main, environ=environ or {})

    return from_text


def complaints(call: Callable[[], Any]) -> list[str]:
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value).splitlines()


def host(**keys: str) -> str:
    return "[[hosts]]\n" + "\n".join(f"{key} = {value}" for key, value in {"name": '"h"', **keys}.items())


class TestExample:
    def sections(self) -> dict[str, list[str]]:
        """The lines below each header."""
        found: dict[str, list[str]] = {}
        lines = found.setdefault("", [])
        for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
            if header := re.fullmatch(r"\[+([a-z_]+)[a-z_.]*\]+", line):
                lines = found.setdefault(header[1], [])
            lines.append(line)
        return found

    def test_is_right(self) -> None:
        settings = load(EXAMPLE, environ={})
        assert [each.name for each in settings.hosts] == ["host-1", "host-2"]
        assert settings.policy("night").max_downtime_seconds == 1.0
        assert settings.policy("night").last_resort is LastResort.PAUSE

    @pytest.mark.parametrize(("name", "model"), [*SECTIONS.items(), *REPEATED.items()])
    def test_has_every_key_with_its_comment(self, name: str, model: type[Section]) -> None:
        lines = self.sections()[name]
        keys = set(model.model_fields)
        if model is HostSettings:
            keys -= set(HostDefaults.model_fields)  # which are explained there
        if name == "host_defaults":
            keys.remove("labels")
            assert "[host_defaults.labels]" in lines
        there = {match[1] for line in lines if (match := re.match(r"#?([a-z_]+) = ", line))}
        assert keys <= there, f"[{name}] lacks {', '.join(sorted(keys - there))}"
        assert there <= {*model.model_fields, "rack", *HostDefaults.model_fields}
        assert len([line for line in lines if line.startswith("# ")]) >= len(keys) / 2

    @pytest.mark.parametrize("name", list(SECTIONS))
    def test_shows_defaults_where_it_does_not_show_an_example(self, name: str) -> None:
        table = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))[name]
        example = load(EXAMPLE, environ={})
        default = SECTIONS[name]()
        # Defaults of hosts are seen in a host.
        shown = SECTIONS[name].model_validate(table) if name == "host_defaults" else getattr(example, name)
        assert {key: getattr(shown, key) for key in table} == {key: getattr(default, key) for key in table}

    def test_shows_examples_that_are_right_too(self, loaded: Load) -> None:
        seen = 0
        for name, lines in self.sections().items():
            keys = [line[1:] for line in lines if re.match(r"#[a-z_]+ = ", line)]
            for line in keys:
                seen += 1
                key = line.partition(" = ")[0]
                extra = {
                    "tls_certificate": 'tls = true\ntls_key = "k"' if name == "mqtt" else 'tls_key = "k"',
                    "tls_key": 'tls = true\ntls_certificate = "c"'
                    if name == "mqtt"
                    else 'tls_certificate = "c"',
                    "tls_ca": "tls = true",
                    "password_file": 'username = "u"',
                    "listen": 'tls_certificate = "c"\ntls_key = "k"',
                }.get(key, "")
                if name == "store" and key != "url":
                    extra = 'url = "postgresql+asyncpg://migrator@db/migrator"\n'
                    extra += 'tls_certificate = "c"' if key == "tls_key" else ""
                if name in SECTIONS and key != "rack":
                    text = f"[{name}]\n{line}\n{extra}\n"
                    if key == "password_file":
                        text = re.sub(r"(mqtt|postgresql)\.password", str(EXAMPLE), text)
                    loaded(text)
        assert seen > 15


class TestMeaning:
    def test_without_a_file_is_the_defaults(self) -> None:
        settings = load(None, environ={})
        assert settings == Settings()
        assert settings.hosts == ()
        assert settings.policy("gentle") == builtin("gentle")

    def test_is_in_base_units(self, loaded: Load) -> None:
        settings = loaded(
            '[limits]\nlink_reserve = "25%"\nrefresh_interval = "2m"\n[store]\nretention = "36h"\n'
            '[http]\nmax_body = "1MiB"\nrequest_timeout = 2.5\nsocket_mode = "600"\n'
            + host(link_speed='"10Gbit/s"', memory='"1TiB"', memory_reserve="0", start_timeout='"300ms"')
        )
        assert (settings.limits.link_reserve, settings.limits.refresh_interval) == (0.25, 120.0)
        assert (settings.store.retention, settings.http.max_body) == (129_600.0, 1 << 20)
        assert (settings.http.request_timeout, settings.http.socket_mode) == (2.5, 0o600)
        found = settings.inventory()[0]
        assert (found.link_bytes_per_second, found.memory_bytes) == (1.25e9, 1 << 40)
        assert (found.memory_reserve_bytes, settings.hosts[0].start_timeout) == (0, 0.3)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("root@host-1:2222", Ssh(user="root", host="host-1", port=2222)),
            ("host-1.example", Ssh(host="host-1.example")),
            ("me@[fd00::1]:22", Ssh(user="me", host="fd00::1")),
            ("[fd00::1%eth0]", Ssh(host="fd00::1%eth0")),
        ],
    )
    def test_of_an_ssh_address(self, loaded: Load, text: str, expected: Ssh) -> None:
        assert loaded(host(ssh=f'"{text}"')).hosts[0].ssh == expected

    def test_of_a_path_starts_at_its_file(self, loaded: Load, main: Path) -> None:
        settings = loaded(
            'include = ["hosts.d/*.toml"]\n[store]\npath = "j.db"\n[http]\nsocket = ""\nlisten = "127.0.0.1:0"\n'
            '[host_defaults]\nkey_file = "id"\n',
            a=host(known_hosts='"known"'),
        )
        assert settings.store.path == main.parent / "j.db"
        assert settings.http.socket is None
        assert settings.http.listen == Listen(host="127.0.0.1", port=0)
        assert settings.hosts[0].known_hosts == main.parent / "hosts.d" / "known"
        assert settings.hosts[0].key_file == main.parent / "id"

    def test_of_host_defaults_gives_way_to_the_host(self, loaded: Load) -> None:
        settings = loaded(
            '[host_defaults]\ncpu_overcommit = 2\nlink_speed = "10Gbit/s"\nlabels = { rack = "a", gpu = "no" }\n'
            'max_incoming = 7\nsystemd = false\nsockets = ["/q/*"]\n[[hosts]]\nname = "one"\n'
            '[[hosts]]\nname = "two"\nssh = "two"\n'
            'cpu_overcommit = 8\nlink_speed = "auto"\nlabels = { gpu = "yes" }\nsystemd = "auto"\n'
        )
        one, two = settings.inventory()
        assert (one.cpu_overcommit_ratio, two.cpu_overcommit_ratio) == (2.0, 8.0)
        assert (one.link_bytes_per_second, two.link_bytes_per_second) == (1.25e9, None)
        assert (one.labels, two.labels) == ({"rack": "a", "gpu": "no"}, {"rack": "a", "gpu": "yes"})
        assert (one.max_incoming, two.max_incoming) == (7, 7)
        assert [each.systemd for each in settings.hosts] == [False, None]
        assert settings.host("two").sockets == ("/q/*",)

    def test_of_several_files_is_that_of_all_in_order(self, loaded: Load, main: Path) -> None:
        settings = loaded(
            'include = ["hosts.d/*.toml", "nothing/*.toml"]\n' + host(),
            b='[[hosts]]\nname = "b"\nssh = "b"',
            a='[[hosts]]\nname = "a"\nssh = "a"\n[policies.fast]\nmax_downtime = "5s"\n'
            '[[guests]]\nmatch = "*"\npolicy = "fast"',
        )
        assert [each.name for each in settings.hosts] == ["h", "a", "b"]
        assert settings.files == (
            main,
            main.parent / "hosts.d" / "a.toml",
            main.parent / "hosts.d" / "b.toml",
        )
        assert settings.rules(Guest(key="g", host="h")).policy == "fast"


class TestPolicies:
    def test_are_others_with_some_fields_instead(self, loaded: Load) -> None:
        settings = loaded(
            '[policies.a]\nmax_downtime = "1s"\n'
            '[policies.b]\nextends = "c"\nmax_bandwidth = "auto"\nmax_duration = "none"\n'
            '[policies.c]\nextends = "must-finish"\nmax_bandwidth = "100MiB/s"\nmax_duration = "10m"\n'
            'max_throttle = "10%"\nlast_resort = "abort"\n'
        )
        assert settings.policy("a").max_throttle_ratio == builtin("default").max_throttle_ratio
        assert settings.policy("a").max_downtime_seconds == 1.0
        c, b = settings.policy("c"), settings.policy("b")
        assert (c.max_bandwidth_bytes_per_second, c.max_duration_seconds) == (100 << 20, 600.0)
        assert (c.max_throttle_ratio, c.last_resort, c.postcopy) == (
            0.1,
            LastResort.ABORT,
            PostcopyMode.ALLOW,
        )
        assert (b.max_bandwidth_bytes_per_second, b.max_duration_seconds) == (None, None)
        assert (b.name, b.max_downtime_seconds, b.max_throttle_ratio) == ("b", 2.0, 0.1)

    def test_may_replace_those_built_in(self, loaded: Load) -> None:
        settings = loaded('[policies.gentle]\nmax_downtime = "50ms"\n[policies.x]\nextends = "gentle"\n')
        assert settings.policy("gentle").max_throttle_ratio == builtin("gentle").max_throttle_ratio == 0
        assert settings.policy("x").max_downtime_seconds == 0.05

    def test_keep_what_is_of_no_use_in_them_for_those_that_extend_them(self, loaded: Load) -> None:
        settings = loaded(
            '[policies.calm]\npostcopy = "never"\nmax_postcopy_stall = "1s"\n'
            '[policies.brisk]\nextends = "calm"\npostcopy = "allow"\n'
        )
        assert settings.policy("calm").postcopy is PostcopyMode.NEVER
        assert settings.policy("brisk").max_postcopy_stall_seconds == 1.0

    def test_that_switch_at_once_drop_a_throttle_that_was_there(self, loaded: Load) -> None:
        assert loaded('[policies.x]\npostcopy = "immediate"').policy("x").max_throttle_ratio == 0.0

    def test_that_do_not_exist_are_listed(self, loaded: Load) -> None:
        with pytest.raises(UsageError, match=r"no policy 'y'; there are default, gentle, .*offline, x$"):
            loaded("[policies.x]").policy("y")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                '[policies.x]\nextends = "gentel"',
                "policies.x: extends: there is no policy 'gentel'; did you mean 'gentle'?",
            ),
            (
                '[policies.x]\nextends = "y"\n[policies.y]\nextends = "x"',
                "policies.x: extends itself: x → y → x",
            ),
            (
                '[policies.x]\npostcopy = "immediate"\nmax_throttle = "5%"',
                "policies.x: postcopy=immediate and max_throttle=5% contradict each other",
            ),
            (
                '[policies.x]\nextends = "offline"\npostcopy = "allow"',
                "offline and postcopy=allow contradict each other",
            ),
            ('[policies.x]\nmax_downtime = "1h"', "policies.x: max_downtime is 3600 s; QEMU takes"),
            (
                '[policies.x]\nmax_downtime = "fast"',
                "policies.x.max_downtime: 'fast' is not a duration: write it like",
            ),
            (
                '[policies.x]\npostcopy = "maybe"',
                "policies.x.postcopy: must be 'never', 'allow' or 'immediate' (it is 'maybe')",
            ),
            (
                '[site]\ndefault_policy = "gente"',
                "site.default_policy: there is no policy 'gente'; did you mean 'gentle'?",
            ),
            (
                '[[guests]]\nmatch = "*"\npolicy = "zzz"',
                "guests[0].policy: there is no policy 'zzz'; there are ",
            ),
            (
                '[[guests]]\nmatch = "*"\naccept = ["uuid"]',
                "guests[0].accept: finding uuid cannot be accepted",
            ),
        ],
        ids=range(10),
    )
    def test_that_are_wrong_are_refused(self, loaded: Load, main: Path, text: str, expected: str) -> None:
        said = complaints(lambda: loaded(text))
        assert said[0].startswith(f"{main}: ")
        assert expected in said[0]


class TestGuests:
    RULES = (
        '[[guests]]\nmatch = "web-*"\npriority = 5\npolicy = "gentle"\nmovable = false\n'
        '[[guests]]\nmatch = "web-1"\npriority = 7\nmovable = true\nrequires = { rack = "a" }\n'
        '[[guests]]\nmatch = "h2/*"\ngroup = "second"\n'
        '[[guests]]\nmatch = "7a6b*"\nanti_affinity = "x"\naccept = ["cpu-flags"]\n'
    )

    def test_get_what_the_last_that_matches_says(self, loaded: Load) -> None:
        rules = loaded(self.RULES).rules
        two = rules(Guest(key="u", uuid="u", name="web-2", host="h1"))
        assert (two.priority, two.policy, two.obstacle_code) == (5, "gentle", "not-movable")
        assert "movable = false" in two.obstacle
        one = rules(Guest(key="7a6b", uuid="7a6b", name="web-1", host="h2"))
        assert (one.priority, one.policy, one.obstacle_code) == (7, "gentle", "")
        assert (one.requires, one.group, one.anti_affinity) == ({"rack": "a"}, "second", "x")
        assert (two.accept, one.accept) == ((), ("cpu-flags",))

    def test_that_nothing_matches_stay_as_they_are(self, loaded: Load) -> None:
        guest = Guest(
            key="h1/db", name="db", host="h1", obstacle="libvirt manages it", obstacle_code="libvirt"
        )
        assert loaded(self.RULES).rules(guest) == guest

    def test_keep_an_obstacle_of_their_own(self, loaded: Load) -> None:
        guest = Guest(
            key="u", name="web-9", host="h1", obstacle="libvirt manages it", obstacle_code="libvirt"
        )
        assert loaded(self.RULES).rules(guest).obstacle_code == "libvirt"


class TestVariables:
    def test_win_over_the_file(self, loaded: Load) -> None:
        settings = loaded(
            '[mqtt]\nhost = "a"\nport = 1\n',
            environ={
                "MIGRATOR_MQTT_HOST": "broker",
                "MIGRATOR_MQTT_PORT": "8883",
                "MIGRATOR_MQTT_TLS": "true",
                "MIGRATOR_MQTT_OPERATORS": '["scheduler", "ann"]',
                "MIGRATOR_LIMITS_LINK_RESERVE": "20%",
                "MIGRATOR_HOST_DEFAULTS_CPU_OVERCOMMIT": "1.5",
                "MIGRATOR_HTTP_LISTEN": "",
                "MIGRATOR_SERVER": "unix:/x",
                "PATH": "/bin",
            },
        )
        assert (settings.mqtt.host, settings.mqtt.broker_port, settings.mqtt.tls) == ("broker", 8883, True)
        assert settings.mqtt.operators == ("scheduler", "ann")
        assert settings.limits.link_reserve == 0.2

    def test_give_defaults_to_hosts_too(self, loaded: Load) -> None:
        settings = loaded(host(), environ={"MIGRATOR_HOST_DEFAULTS_CPU_OVERCOMMIT": "1.5"})
        assert settings.hosts[0].cpu_overcommit == 1.5

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("MIGRATOR_MQTT_PROT", "1", "there is no key 'prot'; did you mean 'port'?"),
            ("MIGRATOR_MQTT_PORT", "x", "must be a whole number (it is 'x')"),
            ("MIGRATOR_STORE_RETENTION", "ever", "'ever' is not a duration: write it like 300ms, 2s or 10m"),
            ("MIGRATOR_MQTT_OPERATORS", '["a', "must be a list"),
        ],
    )
    def test_that_are_wrong_are_named(self, loaded: Load, name: str, value: str, expected: str) -> None:
        (said,) = complaints(lambda: loaded("", environ={name: value}))
        assert said.startswith(f"{name}: ")
        assert expected in said


class TestSecrets:
    def test_come_from_files_or_variables(self, loaded: Load, main: Path) -> None:
        main.parent.mkdir()
        (main.parent / "secret").write_text("s3cret\n")
        by_file = loaded('[mqtt]\nusername = "u"\npassword_file = "secret"')
        by_variable = loaded('[mqtt]\nusername = "u"', environ={"MIGRATOR_MQTT_PASSWORD": "s3cret"})
        by_number = loaded('[mqtt]\nusername = "u"', environ={"MIGRATOR_MQTT_PASSWORD": "123"})
        assert (
            by_file.mqtt.password.get_secret_value()
            == by_variable.mqtt.password.get_secret_value()
            == "s3cret"
        )
        assert by_number.mqtt.password.get_secret_value() == "123"

    def test_are_never_printed(self, loaded: Load) -> None:
        settings = loaded('[mqtt]\nusername = "u"\npassword = "s3cret"')
        assert "s3cret" not in f"{settings!r}{settings.mqtt}{settings.mqtt.model_dump_json()}"

    @pytest.mark.parametrize(
        "text",
        [
            '[mqtt]\npassword = "s3cret"',
            '[mqtt]\nusername = "u"\npassword = ["s3cret"]',
            '[mqtt]\nusername = "u"\npassword = { s3cret = 1 }',
            '[mqtt]\nusername = "u"\npassword = "s3cret"\npassword_file = "x"',
            '[mqtt]\nusername = "u"\npasword = "s3cret"',
            '[mqtt]\nport = 99999\npassword = "s3cret"',
            'mqtt = "s3cret"',
        ],
    )
    def test_are_not_in_what_is_said_of_them(self, loaded: Load, text: str) -> None:
        said = complaints(lambda: loaded(text))
        assert said
        assert not [line for line in said if "s3cret" in line and "passw" not in line.replace("s3cret", "")]
        assert "'s3cret'" not in "".join(said)

    @pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
    def test_that_cannot_be_read_are_said(self, loaded: Load, main: Path, content: bytes | None) -> None:
        main.parent.mkdir()
        if content is not None:
            (main.parent / "secret").write_bytes(content)
        (said,) = complaints(lambda: loaded('[mqtt]\nusername = "u"\npassword_file = "secret"'))
        assert re.search(r"mqtt.password_file: .*/secret (is empty|cannot be read: )", said)


class TestWrong:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                host(link_sped='"1Gbit/s"'),
                "hosts[0].link_sped: there is no key 'link_sped'; did you mean 'link_speed'?",
            ),
            (
                host(**{"link-speed": '"auto"'}),
                "hosts[0].link-speed: there is no key 'link-speed'; did you mean 'link_speed'?",
            ),
            (
                host(link_speed='"fast"'),
                "hosts[0].link_speed: 'fast' is not a bandwidth: write it like 1GiB/s or 10Gbit/s",
            ),
            (host(link_speed="true"), "hosts[0].link_speed: 'True' is not a bandwidth"),
            (host(name='"a b"'), "hosts[0].name: 'a b' cannot be a name: use 1 to 64 of"),
            ("[[hosts]]\nssh = 'h'", "hosts[0].name: is missing"),
            (host(ssh='"root@h:99999"'), "hosts[0].ssh: there is no port 99999"),
            (host(ssh='"-oProxyCommand=x"'), "hosts[0].ssh: '-oProxyCommand=x' is no SSH address"),
            (host(ssh='"a b"'), "hosts[0].ssh: 'a b' is no SSH address: write it like root@host-1"),
            (
                host(address='"[fd66::2]"'),
                "hosts[0].address: '[fd66::2]' is no host: write it without brackets: fd66::2",
            ),
            (
                host(address='"10.66.0.2/24"'),
                "hosts[0].address: '10.66.0.2/24' is no host: that is a network: write 10.66.0.2",
            ),
            (host(address='"10.66.0.999"'), "hosts[0].address: '10.66.0.999' is no host: 999 in it is more"),
            (
                host(address='"10.66.0.2:4444"'),
                "hosts[0].address: '10.66.0.2:4444' is no host: a port has no",
            ),
            (host(address='"0.0.0.0"'), "hosts[0].address: '0.0.0.0' is where to listen, not where to be"),
            (host(address='"fe80::1"'), "hosts[0].address: 'fe80::1' is on every link: add the interface"),
            (host(address='"tcp://h"'), "hosts[0].address: 'tcp://h' is no host: that is a URL: write h"),
            (
                host(address='["10.66.0.2", "fd66::2", "fd66:0::2"]'),
                "hosts[0].address: 'fd66:0::2' is in it twice: leave one out",
            ),
            (
                host(address='["host-b", "HOST-B"]'),
                "hosts[0].address: 'HOST-B' is in it twice",
            ),
            (host(address='"h h"'), "hosts[0].address: 'h h' is no host: there is a blank in it"),
            (
                host(ssh='"root@10.66.0.999"'),
                "hosts[0].ssh: '10.66.0.999' is no host: 999 in it is more than",
            ),
            (host(ssh='"[10.0.0.1]:22"'), "hosts[0].ssh: '[10.0.0.1]:22': brackets are for IPv6 only: write"),
            ('[mqtt]\nhost = "[::1]"', "mqtt.host: '[::1]' is no host: write it without brackets: ::1"),
            (
                '[mqtt]\nhost = "mqtt://b:1883"',
                "mqtt.host: 'mqtt://b:1883' is no host: that is a URL: write b",
            ),
            (
                '[mqtt]\nhost = "broker:1883"',
                "mqtt.host: 'broker:1883' is no host: a port has no place in it",
            ),
            (
                '[http]\nhosts = ["a:1"]',
                "http.hosts[0]: 'a:1' is no host: a port has no place in it: write a",
            ),
            ('[http]\nlisten = "127.0.0.1:99999"', "http.listen: there is no port 99999: they go from 0 to"),
            ('[http]\nlisten = "127.0.0.999:1"', "http.listen: '127.0.0.999' is no host: 999 in it is more"),
            (
                '[http]\nmetrics_listen = "[127.0.0.1]:1"',
                "http.metrics_listen: '[127.0.0.1]:1': brackets are",
            ),
            (
                '[traces]\nendpoint = "http://10.0.0.999"',
                "traces.endpoint: 'http://10.0.0.999' is no URL: '10",
            ),
            (host(ssh='"h"', prefix='["ip"]'), "hosts[0]: ssh and prefix contradict each other"),
            (
                host(image_directories='{ fast = "/srv/../fast" }'),
                "hosts[0].image_directories.fast: '/srv/../fast' is no directory: write its path without `.`, ",
            ),
            (
                host(image_directories='{ fast = "" }'),
                "hosts[0].image_directories.fast: '' is no directory: write its path without `.`, `..` and `//`",
            ),
            (
                host(sockets='["run/*.qmp"]'),
                "hosts[0].sockets[0]: 'run/*.qmp' is no absolute path on the host",
            ),
            (host(sockets="[]"), "hosts[0]: sockets is empty: no guest"),
            (
                host(run_dir=f'"/run/{"long/" * 15}"'),
                "has 79 bytes: with more than 75 the sockets in it have no room for their names; choose a shorter",
            ),
            (host(launch='"template"'), 'hosts[0]: launch = "template" takes template'),
            (host(launch='"attached"'), 'hosts[0]: launch = "attached" takes attached'),
            (host(template='"systemctl start x"'), "hosts[0].template: must be a list: write ["),
            (
                host(max_incoming="0"),
                "hosts[0].max_incoming: must be greater than or equal to 1 (it is 0)",
            ),
            (host(labels="{ a = 1 }"), "hosts[0].labels.a: must be text in quotes (it is 1)"),
            (host(systemd='"perhaps"'), "hosts[0].systemd: 'perhaps' is none of true, false and \"auto\""),
            (host() + "\n" + host(), "hosts[1].name: there is a host h already: "),
            (
                host(ssh='"x"') + "\n" + host(name='"i"', ssh='"x"'),
                "hosts[1]: is the machine of host h again: same ssh, same sockets",
            ),
            (host() + "\n" + host(name='"i"'), "hosts[1]: is the machine of host h again: same prefix"),
            ('[policies.x]\nextends = "x"', "policies.x: extends itself; leave extends out"),
            ("[host]\n", "host: there is no section 'host'; did you mean 'hosts'?"),
            (
                "[http]\nretention = '1d'",
                "http.retention: there is no key 'retention' here; it belongs into [store]",
            ),
            ("hosts = 5", "hosts: is a list of sections: write [[hosts]] before each"),
            ("[hosts]\nname = 'x'", "hosts: is a list of sections: write [[hosts]] before each"),
            ("guests = [5]", "guests: is a list of sections: write [[guests]] before each"),
            ("site = 5", "site: is a section: write [site]"),
            ("policies = 5", "policies: is a section: write [policies]"),
            ("policies.x = 5", "policies.x: is a section: write [policies.x]"),
            ("include = 'x'", "include: is a list of patterns"),
            (
                '[http]\nlisten = "0.0.0.0:80"',
                "http: listen = '0.0.0.0:80' can be reached from elsewhere, which takes tls_cert",
            ),
            (
                '[http]\nlisten = "80"',
                "http.listen: '80' is no address to listen at: write it like 127.0.0.1:8443",
            ),
            ('[http]\nsocket = ""', "http: with neither socket nor listen nobody could reach the service"),
            ("[http]\nsocket_mode = 660", "http.socket_mode: 660 is no file mode: write it in quotes"),
            ('[http]\ntls_key = "k"', "http: tls_certificate and tls_key belong together"),
            ('[mqtt]\ntls_ca = "k"', "mqtt: tls_ca and tls_certificate are of no use without tls = true"),
            ('[mqtt]\noperators = ["a"]\nviewers = ["a"]', "mqtt: a is in operators and in viewers"),
            ('[mqtt]\noperators = ["a/b"]', "mqtt.operators[0]: 'a/b' cannot be a name"),
            ('[limits]\nlink_reserve = "120%"', "limits.link_reserve: '120%' is not a share between 0 and 1"),
            ('[store]\nretention = "0s"', "store.retention: must be greater than 0"),
            ("[store]\nretention = -5", "store.retention: '-5' is not a duration"),
            ("[http]\ntls_certificate = 5\n", "http.tls_certificate: "),
            ('[mqtt]\ntls = "perhaps"', "mqtt.tls: must be true or false (it is 'perhaps')"),
            ("[[guests]]\nmatch = ''", "guests[0].match: must not be empty"),
            ('[store]\npath = ""', "store.path: '' is no path"),
            (
                '[placement]\nstrategy = "random"',
                "placement.strategy: must be 'spread' or 'pack' (it is 'random')",
            ),
            ("[[guests]]\npriority = 1", "guests[0].match: is missing"),
            (
                '[store]\nretention = "9m"',
                "store.retention: is less than mqtt.command_lifetime (10 min 0 s): a command that is still good",
            ),
        ],
    )
    def test_is_said_with_file_and_key_and_what_to_write(
        self, loaded: Load, main: Path, text: str, expected: str
    ) -> None:
        said = complaints(lambda: loaded(text))
        assert len(said) == 1
        assert said[0].startswith(f"{main}: ")
        assert expected in said[0]

    def test_is_said_all_at_once(self, loaded: Load, main: Path) -> None:
        said = complaints(
            lambda: loaded(
                'include = ["hosts.d/*.toml"]\n[site]\nnam = "x"\n[mqtt]\nport = 0\nhots = "b"\n'
                '[host_defaults]\nmemory = "x"\n' + host(memory='"1XB"'),
                environ={"MIGRATOR_STORE_PATHS": "x"},
                a="[[hosts]]\nname = 'ok'\n[[hosts]]\nname = '/'\n[mqtt]\n",
                b="[[hosts",
            )
        )
        directory = main.parent / "hosts.d"
        elsewhere = "mqtt: can only be in the main file; included files take"
        keys = [line.partition(": there")[0].partition(": must")[0].partition(": '")[0] for line in said]
        assert sorted(keys) == sorted(
            [
                *(f"{main}: {key}" for key in ("site.nam", "mqtt.port", "mqtt.hots", "host_defaults.memory")),
                f"{main}: hosts[0].memory",
                f"{directory}/a.toml: hosts[1].name",
                f"{directory}/a.toml: {elsewhere} policies, hosts, guests, hooks, groups",
                *(line for line in said if line.startswith(f"{directory}/b.toml: is no TOML: ")),
                "MIGRATOR_STORE_PATHS",
            ]
        )
        assert [line for line in said if "b.toml: is no TOML" in line]

    def test_policy_is_not_said_to_be_missing_where_it_is_used(self, loaded: Load) -> None:
        assert (
            len(
                complaints(
                    lambda: loaded("[policies.x]\nmax_downtim = 1\n[[guests]]\nmatch = '*'\npolicy = 'x'")
                )
            )
            == 1
        )

    def test_twice_in_two_files_is_said(self, loaded: Load, main: Path) -> None:
        said = complaints(
            lambda: loaded("include = ['hosts.d/*']\n[policies.x]\n" + host(), a="[policies.x]\n" + host())
        )
        assert said == [
            f"{main.parent}/hosts.d/a.toml: hosts[0].name: there is a host h already: {main}: hosts[0]",
            f"{main.parent}/hosts.d/a.toml: policies.x: is in {main} too",
        ]

    def test_file_is_said(self, tmp_path: Path) -> None:
        assert complaints(lambda: load(tmp_path / "no", environ={})) == [
            f"{tmp_path}/no: cannot be read: No such file or directory"
        ]
        (tmp_path / "bytes").write_bytes(b"\xff")
        assert complaints(lambda: load(tmp_path / "bytes", environ={})) == [f"{tmp_path}/bytes: is not UTF-8"]
        (tmp_path / "text").write_text("a = \n")
        (said,) = complaints(lambda: load(tmp_path / "text", environ={}))
        assert re.search(r"text: is no TOML: invalid value \(at line 1, column \d", said)


class TestReload:
    def test_takes_over_guests_policies_and_limits(self, loaded: Load, main: Path) -> None:
        old = loaded(host())
        main.write_text(
            f'[limits]\nattempts = 9\n[policies.x]\n{host(max_incoming="2")}\n[store]\nretention = "1d"\n'
        )
        new = reload(old, main, environ={})
        assert (new.limits.attempts, [each.max_incoming for each in new.hosts]) == (9, [2])
        assert [each.max_incoming for each in old.hosts] == [None]

    def test_refuses_other_hosts_and_names_them(self, loaded: Load, main: Path) -> None:
        old = loaded(host())
        main.write_text(host(name='"new"'))
        assert complaints(lambda: reload(old, main, environ={})) == [
            f"{main}: {key}: takes a restart of the service; put it back to reload the rest"
            for key in ("hosts[0] (host new is new)", "hosts (host h is gone)")
        ]

    def test_refuses_what_takes_a_restart_and_names_all_of_it(self, loaded: Load, main: Path) -> None:
        old = loaded(host())
        main.write_text(
            '[site]\nname = "x"\nlog_level = "debug"\n[mqtt]\nhost = "b"\n[store]\npath = "/x"\n' + host()
        )
        assert complaints(lambda: reload(old, main, environ={})) == [
            f"{main}: {key}: takes a restart of the service; put it back to reload the rest"
            for key in ("site.name", "mqtt.host", "store.path")
        ]

    def test_refuses_what_is_wrong(self, loaded: Load, main: Path) -> None:
        old = loaded(host())
        main.write_text("[site")
        assert "is no TOML" in complaints(lambda: reload(old, main, environ={}))[0]
