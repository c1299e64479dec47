"""``[traces]``: what it means, and what is said of what is wrong with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from migrator.errors import UsageError
from migrator.settings import Settings, load, reload
from migrator.tracing import collector

SECRET = "hunter2"


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return tmp_path / "migrator.toml"


def loaded(main: Path, text: str) -> Settings:
    main.write_text(text, encoding="utf-8")
    return load(main, environ={})


def complaint(main: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        loaded(main, text)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix(f"{main}: ")


def test_is_off_by_default(main: Path) -> None:
    assert collector(loaded(main, "").traces) is None
    assert collector(loaded(main, "[traces]\nsample_ratio = 0.5\n").traces) is None


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://traces.example/otlp/v1/traces", "https://traces.example/otlp/v1/traces"),
        ("https://[fd00::1]:4318/a/", "https://[fd00::1]:4318/a/"),
    ],
)
def test_endpoint(main: Path, endpoint: str, url: str) -> None:
    found = collector(loaded(main, f'[traces]\nendpoint = "{endpoint}"\n').traces)
    assert found is not None
    assert (found.endpoint, found.timeout_seconds, found.sample_ratio) == (url, 10.0, 1.0)


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:4318", "grpc://x:4317", "http://", "http://x:99999", "http://x/?a", "http://a b"]
)
def test_endpoint_that_is_none(main: Path, endpoint: str) -> None:
    said = complaint(main, f'[traces]\nendpoint = "{endpoint}"\n')
    assert said.startswith(f"traces.endpoint: {endpoint!r} is no URL: write it like http://127.0.0.1:4318")


def test_endpoint_with_a_secret_is_refused_and_not_repeated(main: Path) -> None:
    said = complaint(main, f'[traces]\nendpoint = "https://user:{SECRET}@x/v1/traces"\n')
    assert "headers_file" in said
    assert SECRET not in said


def test_headers(main: Path) -> None:
    (main.parent / "headers").write_text(f"# ours\n\nAuthorization: Bearer {SECRET}\nX-Scope-OrgID:1\n")
    settings = loaded(main, '[traces]\nendpoint = "http://x"\nheaders_file = "headers"\n')
    found = collector(settings.traces)
    assert found is not None
    assert found.headers == {"Authorization": f"Bearer {SECRET}", "X-Scope-OrgID": "1"}
    assert SECRET not in repr(found)
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    "line", [SECRET, f"Bad Name: {SECRET}", f": {SECRET}", "Name:", f"Name: {SECRET}\x01"]
)
def test_headers_that_are_none_are_not_repeated(main: Path, line: str) -> None:
    (main.parent / "headers").write_text(f"Good: one\n{line}\n")
    said = complaint(main, '[traces]\nendpoint = "http://x"\nheaders_file = "headers"\n')
    assert said.startswith("traces.headers_file: ")
    assert "line 2 is no header" in said
    assert SECRET not in said


def test_files_that_are_not_there(main: Path) -> None:
    said = complaint(main, '[traces]\nendpoint = "http://x"\nheaders_file = "nowhere"\n')
    assert said == f"traces.headers_file: {main.parent}/nowhere cannot be read: No such file or directory"
    said = complaint(main, '[traces]\nendpoint = "https://x"\nca_file = "nowhere"\n')
    assert said == f"traces.ca_file: {main.parent}/nowhere cannot be read: there is no such file"


def test_without_the_extra_it_says_how_to_install_it(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("opentelemetry") else find(name)
    )
    assert complaint(main, '[traces]\nendpoint = "http://x"\n') == (
        "traces.endpoint: traces take OpenTelemetry, which is not installed: pip install 'migrator[traces]', or "
        "make install TRACES=1"
    )
    loaded(main, "[traces]\n")


def test_takes_a_restart(main: Path) -> None:
    old = loaded(main, '[traces]\nendpoint = "http://x"\n')
    main.write_text('[traces]\nendpoint = "http://y"\n')
    with pytest.raises(UsageError, match=r"traces\.endpoint: takes a restart"):
        reload(old, main, environ={})
