"""The configuration: one TOML file, what it includes, and variables of the environment over both.

Everything that is wrong is said at once, a line each: the file, the dotted key, what is wrong, and what to write.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError

from migrator.core.policy import Policy
from migrator.errors import UsageError
from migrator.settings import policies, reloading, traces, words
from migrator.settings.configuration import SECTIONS, Settings
from migrator.settings.files import Files, Tables
from migrator.settings.hooks import HookSettings
from migrator.settings.host_sections import HostDefaults, HostSettings
from migrator.settings.models import GroupSettings, GuestSettings, MqttSettings, PolicySettings, StoreSettings
from migrator.units import show_seconds

_Model = TypeVar("_Model", bound=BaseModel)
#: Sections with a password that may be in a file of its own.
_Guarded = TypeVar("_Guarded", MqttSettings, StoreSettings)


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str] | None = None,
    also: Callable[[Settings], list[str]] = lambda settings: [],
) -> Settings:
    """Read and check the configuration.

    :param path: the file; ``None``: nothing but defaults and variables.
    :param environ: ``MIGRATOR_SECTION_KEY`` stands for that key; the environment by default.
    :param also: more that is wrong, a line each; given defaults for sections that are wrong themselves.
    :raise UsageError: it cannot be used; one line for everything that is wrong.
    """
    try:
        return _Loader(os.environ if environ is None else environ).load(path, also)
    except (ValueError, OverflowError, RecursionError) as error:
        # What no check above foresaw: a service that reads its configuration again goes on with the one it has.
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UsageError(f"{words.place(path)}something in it cannot be used: {why}") from error


def reload(old: Settings, path: Path | None, *, environ: Mapping[str, str] | None = None) -> Settings:
    """Read it again, for a service that runs with `old`: what is returned can be taken over as a whole.

    :raise UsageError: it cannot be used, or something in it takes a restart; `old` goes on to hold then.
    """
    new = load(path, environ=environ)
    problems = [
        f"{words.place(path)}{key}: takes a restart of the service; put it back to reload the rest"
        for key, when in reloading.changes(old, new)
        if when == reloading.RESTART
    ]
    if problems:
        raise UsageError("\n".join(problems))
    return new


class _Loader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []
        self._files = Files(self._problems)

    def load(self, path: Path | None, also: Callable[[Settings], list[str]]) -> Settings:
        files = self._files.read(path)
        if not files:  # what is in it is not known: nothing else can be said
            raise UsageError("\n".join(self._problems))
        main = files[0][1]
        once = {name: self._section(name, path, main.get(name, {})) for name in SECTIONS}
        hosts = list(self._hosts(files, once["host_defaults"]))
        configured = self._policies(files)
        guests = self._repeated(GuestSettings, files, "guests")
        hooks = self._repeated(HookSettings, files, "hooks")
        settings = Settings(
            files=tuple(file for file, _ in files if file is not None),
            **{name: found for name, found in once.items() if found is not None and name != "host_defaults"},
            hosts=tuple(hosts),
            guests=guests,
            hooks=hooks,
            policies=configured,
            groups=self._groups(files),
        )
        self._policies_exist(settings, files)
        settings = self._with_passwords(settings, path)
        if settings.store.retention < settings.mqtt.command_lifetime:
            lifetime = show_seconds(settings.mqtt.command_lifetime)
            self._say(
                path,
                "store.retention",
                f"is less than mqtt.command_lifetime ({lifetime}): a command that is still good would be forgotten, "
                "and carried out twice",
            )
        for key, problem in traces.problems(settings.traces):
            self._say(path, f"traces.{key}", problem)
        self._problems += also(settings)
        if self._problems:
            raise UsageError("\n".join(dict.fromkeys(self._problems)))
        return settings

    def _section(self, name: str, path: Path | None, given: Any) -> Any:
        values = dict(given) if isinstance(given, dict) else {}
        prefix = f"MIGRATOR_{name.upper()}_"
        variables: dict[str, str] = {}
        for variable, text in self._environ.items():
            if variable.startswith(prefix):
                key = variable.removeprefix(prefix).lower()
                variables[key] = variable
                values[key] = _from_variable(text)
        return self._one(SECTIONS[name], path, name, values, variables=variables)

    def _one(
        self,
        model: type[_Model],
        file: Path | None,
        key: str,
        values: Mapping[str, Any],
        *,
        variables: Mapping[str, str] | None = None,
    ) -> _Model | None:
        directory = self._files.directory if file is None else file.absolute().parent
        try:
            return model.model_validate(values, context={"directory": directory})
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                where = words.dotted(key, problem["loc"])
                variable = (variables or {}).get(str(problem["loc"][0])) if problem["loc"] else None
                said = words.of(problem, model, [*SECTIONS.items()])
                self._problems.append(
                    f"{variable}: {said}" if variable else f"{words.place(file)}{where}: {said}"
                )
        return None

    def _repeated(self, model: type[_Model], files: list[Tables], name: str) -> tuple[_Model, ...]:
        """Return all entries of a section that may stand in every file, in their order."""
        found = (
            self._one(model, file, key, entry)
            for file, data in files
            for key, entry in self._files.entries(file, data, name)
        )
        return tuple(each for each in found if each is not None)

    def _hosts(self, files: list[Tables], defaults: HostDefaults | None) -> Iterator[HostSettings]:
        common = defaults.model_dump(exclude_unset=True) if defaults else {}
        seen: dict[str, str] = {}
        machines: dict[tuple[object, ...], str] = {}
        for file, data in files:
            for key, entry in self._files.entries(file, data, "hosts"):
                labels = entry.get("labels", {})
                values = common | entry
                if isinstance(labels, dict) and "labels" in common:
                    values["labels"] = common["labels"] | labels
                host = self._one(HostSettings, file, key, values)
                if host is None:
                    continue
                if host.name in seen:
                    self._say(file, f"{key}.name", f"there is a host {host.name} already: {seen[host.name]}")
                seen.setdefault(host.name, f"{words.place(file)}{key}")
                # Every guest would be there twice, and be moved from itself to itself.
                first = machines.setdefault((host.ssh, host.prefix, host.sockets), host.name)
                if first != host.name:
                    where = "ssh" if host.ssh is not None else "prefix"
                    self._say(file, key, f"is the machine of host {first} again: same {where}, same sockets")
                yield host

    def _policies(self, files: list[Tables]) -> dict[str, Policy]:
        given: dict[str, PolicySettings] = {}
        places: dict[str, Path | None] = {}
        for file, data in files:
            tables = data.get("policies", {})
            for name, table in tables.items() if isinstance(tables, dict) else ():
                if name in given:
                    self._say(file, f"policies.{name}", f"is in {places[name]} too")
                elif not isinstance(table, dict):
                    self._say(file, f"policies.{name}", f"is a section: write [policies.{name}]")
                else:
                    found = self._one(PolicySettings, file, f"policies.{name}", table)
                    given[name], places[name] = found or _only_extends(table), file
        built: dict[str, Policy] = {}
        for name in given:
            try:
                built[name] = policies.build(name, given)
            except UsageError as error:
                self._say(places[name], f"policies.{name}", str(error).removeprefix(f"policy {name}: "))
        return built

    def _groups(self, files: list[Tables]) -> dict[str, GroupSettings]:
        given: dict[str, GroupSettings] = {}
        for file, data in files:
            tables = data.get("groups", {})
            for name, table in tables.items() if isinstance(tables, dict) else ():
                if name in given:
                    self._say(file, f"groups.{name}", "is in another file too")
                elif not isinstance(table, dict):
                    self._say(file, f"groups.{name}", f"is a section: write [groups.{name}]")
                elif (found := self._one(GroupSettings, file, f"groups.{name}", table)) is not None:
                    given[name] = found
        return given

    def _policies_exist(self, settings: Settings, files: list[Tables]) -> None:
        # One that is wrong itself was complained about; that it is used is not wrong too.
        names = set(policies.known(settings.policies)).union(
            *(data["policies"] for _, data in files if isinstance(data.get("policies"), dict))
        )
        used: list[tuple[Path | None, str, Any]] = [
            (files[0][0], "site.default_policy", settings.site.default_policy)
        ]
        for file, data in files:
            for key, entry in self._files.entries(file, data, "guests"):
                used.append((file, f"{key}.policy", entry.get("policy", "default")))
        for file, key, name in used:
            if isinstance(name, str) and name not in names:
                self._say(file, key, words.unknown(name, sorted(names), "policy"))

    def _with_passwords(self, settings: Settings, path: Path | None) -> Settings:
        mqtt = self._with_password(settings.mqtt, "mqtt", path)
        return replace(settings, mqtt=mqtt, store=self._with_password(settings.store, "store", path))

    def _with_password(self, section: _Guarded, name: str, path: Path | None) -> _Guarded:
        file = section.password_file
        if file is None:
            return section
        key = f"{name}.password_file"
        try:
            password = file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            self._say(path, key, f"{file} cannot be read: {why}")
            return section
        if not password:
            self._say(path, key, f"{file} is empty")
        return section.model_copy(update={"password": SecretStr(password)})

    def _say(self, file: Path | None, key: str, what: str) -> None:
        self._problems.append(f"{words.place(file)}{key}: {what}")


def _only_extends(table: Mapping[str, Any]) -> PolicySettings:
    """Return what a wrong policy extends, so that those that extend it can still be judged."""
    try:
        return PolicySettings.model_validate({key: table[key] for key in ("extends",) if key in table})
    except ValidationError:
        return PolicySettings()


def _from_variable(text: str) -> Any:
    """Lists and tables as in TOML; everything else is text, and read as its key wants it."""
    if text[:1] in ("[", "{"):
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            pass  # refused as the text that it is
    return text
