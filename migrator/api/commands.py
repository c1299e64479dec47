"""The commands that there are, each verb as a model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from migrator.api import field_errors

#: Ids, hosts and sites.
Name = Annotated[str, StringConstraints(pattern=field_errors.NAME_PATTERN)]
#: A time with its zone, as text: a number could be seconds or milliseconds.
Moment = Annotated[AwareDatetime, BeforeValidator(field_errors.refuse_number)]
#: A guest's uuid, its name, or HOST/NAME: anything.
GuestName = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class Role(StrEnum):
    """The rights of a caller."""

    #: Look: plan and check too, which change nothing.
    VIEWER = "viewer"
    #: Everything.
    OPERATOR = "operator"


class Command(BaseModel):
    """One verb with its arguments; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=2048)
    verb: ClassVar[str]
    #: The least role that may ask for it.
    role: ClassVar[Role] = Role.OPERATOR
    #: It is also about the hosts of what it names, which whoever carries it out finds. Of a command that says neither
    #: this nor :attr:`hosts_named` nobody knows: a caller that is limited to some hosts may not give it.
    about_what_is_found: ClassVar[bool] = False
    #: It shows nothing of any host: everyone may give it.
    about_no_host: ClassVar[bool] = False

    @property
    def hosts_named(self) -> tuple[str, ...]:
        """Hosts that it names as those that it is about; not one that a guest is to go to."""
        return ()


class _AboutHost(Command):
    """A command about one host."""

    host: Name

    @property
    def hosts_named(self) -> tuple[str, ...]:
        return (self.host,)


class _Extended(Command):
    """A command that got further fields in time: one of them that is not given is left out, and the rest is asked for
    as it always was, also of older controllers.
    """

    further: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        for name in self.further:
            if getattr(self, name) is None:
                # Where unset fields are left out it is not there.
                fields.pop(name, None)
        return fields


class Migrate(_Extended):
    """Move one guest, or all guests of a group with their switches within a second.

    What a group begins is a set of migrations, and is shown and cancelled like an evacuation.
    """

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["guest"]}, {"required": ["group"]}]})
    verb: ClassVar[str] = "migrate"
    about_what_is_found: ClassVar[bool] = True
    further: ClassVar[tuple[str, ...]] = ("guest", "group")
    guest: GuestName | None = None
    #: In place of a guest: the name of a group, as the configuration gives it to guests.
    group: GuestName | None = None
    #: The target; without it placement chooses.
    to: Name | None = None
    policy: Name | None = None
    #: Codes of findings that are accepted.
    accept: Annotated[list[Name], Field(max_length=64)] = []

    @model_validator(mode="after")
    def _one_or_a_group(self) -> Self:
        if (self.guest is None) is (self.group is None):
            raise PydanticCustomError("guest_or_group", "takes either guest or group")
        return self


HostFile = Annotated[str, StringConstraints(pattern=field_errors.HOST_FILE_PATTERN)]


class Save(Command):
    """Save one guest into a file on its host, and end its QEMU: it runs nowhere until it is loaded."""

    verb: ClassVar[str] = "save"
    about_what_is_found: ClassVar[bool] = True
    guest: GuestName
    #: On the guest's host.
    file: HostFile
    #: ``auto``: each page at a place of its own where its QEMU can do that; ``stream``: what every QEMU can load.
    form: Literal["auto", "stream"] = "auto"
    #: Codes of findings that are accepted.
    accept: Annotated[list[Name], Field(max_length=64)] = []


class Load(Command):
    """Have a guest that was saved go on, out of its file."""

    verb: ClassVar[str] = "load"
    about_what_is_found: ClassVar[bool] = True
    #: On the host where it is to run.
    file: HostFile
    to: Name
    #: Codes of findings that are accepted.
    accept: Annotated[list[Name], Field(max_length=64)] = []

    @property
    def hosts_named(self) -> tuple[str, ...]:
        return (self.to,)


class Discard(Command):
    """Delete a file with a saved guest, and what is beside it: its guest has gone on, or is given up."""

    verb: ClassVar[str] = "discard"
    about_what_is_found: ClassVar[bool] = True
    #: Where the file is deleted.
    host: Name
    file: HostFile
    #: The guest may be nowhere else, and is lost then: without this only a file whose guest has gone on is deleted.
    only_copy: bool = False

    @property
    def hosts_named(self) -> tuple[str, ...]:
        return (self.host,)


class Saved(Command):
    """List the guests that are saved in files: where, whether each is still there, and where it can be loaded."""

    verb: ClassVar[str] = "saved"
    role: ClassVar[Role] = Role.VIEWER
    about_what_is_found: ClassVar[bool] = True
    #: Only files of this host.
    host: Name | None = None

    @property
    def hosts_named(self) -> tuple[str, ...]:
        return () if self.host is None else (self.host,)


def _as_text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


#: A time with its zone, or a local one: ``02:30`` or ``2026-12-01T02:30``, with ``time_zone``.
WindowTime = Annotated[str, BeforeValidator(_as_text), StringConstraints(min_length=1, max_length=64)]


class Evacuate(_AboutHost, _Extended):
    """Empty a host: now, or in a window."""

    verb: ClassVar[str] = "evacuate"
    further: ClassVar[tuple[str, ...]] = ("at", "until", "time_zone")
    deadline: Moment | None = None
    on_deadline: Literal["continue", "stop"] = "continue"
    policy: Name | None = None
    accept: Annotated[list[Name], Field(max_length=64)] = []
    #: When it begins, by itself: RFC 3339 with an offset, ``+90m``, or with ``time_zone`` a local time, ``02:30`` (the
    #: next one) or ``2026-12-01T02:30``.
    at: WindowTime | None = None
    #: Nothing more of it is begun from then on; what copies goes on to its end, or with ``on_deadline: stop`` is
    #: cancelled. As ``at``; ``05:00`` is the next one after that. It is the deadline, too.
    until: WindowTime | None = None
    #: Of local times, as ``Europe/Berlin``.
    time_zone: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.until is not None and self.deadline is not None:
            raise PydanticCustomError("two_ends", "takes either deadline or until, which is a deadline")
        return self


class Roll(Command):
    """Empty hosts a few at a time, hand each over to hooks, wait until it is ready, and bring its guests home.

    Stops at the first that is not well. It is shown and cancelled like an evacuation, with the kind ``roll``.
    """

    verb: ClassVar[str] = "roll"
    #: In this order.
    hosts: Annotated[list[Name], Field(min_length=1, max_length=1000)]
    #: Hosts that are away from use at a time.
    max_unavailable: Annotated[int, Field(ge=1, le=1000)] = 1
    policy: Name | None = None
    accept: Annotated[list[Name], Field(max_length=64)] = []
    #: Names of ``[[hooks]]`` of the configuration that are run, by point; default: all that there are of a point.
    hooks: dict[
        Literal["after-drain", "ready"],
        Annotated[list[Annotated[str, StringConstraints(max_length=64)]], Field(max_length=64)],
    ] = {}
    #: The hooks ``after-drain`` reboot the host: it is ready once it has booted anew.
    reboots: bool = False
    #: A host that is not ready after so long is not well.
    ready_timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 1800.0

    @property
    def hosts_named(self) -> tuple[str, ...]:
        return tuple(self.hosts)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.hosts)) < len(self.hosts):
            raise PydanticCustomError("twice", "names a host twice")
        return self


class Restore(_AboutHost, _Extended):
    """Bring the guests of the last evacuation home and make the host active."""

    verb: ClassVar[str] = "restore"
    further: ClassVar[tuple[str, ...]] = ("evacuation", "dry_run")
    policy: Name | None = None
    #: Only whom this evacuation of the host moved away; default: all who are away since its last restore.
    evacuation: Name | None = None
    #: Only say who would come home, and what may be done to them; nothing is done.
    dry_run: bool | None = None


class Activate(_AboutHost):
    """End a host's maintenance without bringing anyone home."""

    verb: ClassVar[str] = "activate"


class Cordon(_AboutHost):
    """Have no new guests come to a host; nobody is moved, and nothing else changes. The same again does nothing."""

    verb: ClassVar[str] = "cordon"


class Uncordon(_AboutHost):
    """Let new guests come to a host again. The same again does nothing."""

    verb: ClassVar[str] = "uncordon"


class Cancel(Command):
    """Stop a migration or an evacuation as far as that is safe."""

    verb: ClassVar[str] = "cancel"
    about_what_is_found: ClassVar[bool] = True
    #: Of the migration or evacuation.
    target: Name


class Postcopy(Command):
    """Switch a migration to postcopy now, where its policy allows it."""

    verb: ClassVar[str] = "postcopy"
    about_what_is_found: ClassVar[bool] = True
    migration: Name


class Resolve(Command):
    """End a held migration: a person has looked and says where the guest is."""

    verb: ClassVar[str] = "resolve"
    about_what_is_found: ClassVar[bool] = True
    migration: Name
    guest_at: Literal["source", "destination", "lost"]
    #: Only say what would be done; nothing is.
    dry_run: bool = False
    #: The code that such an answer had: what is not the same any more is refused.
    agreed: Annotated[str, Field(max_length=1024)] = ""
    #: An end whose host cannot be asked is off: the person has seen to that.
    unreachable_is_off: bool = False


class Plan(_AboutHost):
    """Return what an evacuation would do."""

    verb: ClassVar[str] = "plan"
    role: ClassVar[Role] = Role.VIEWER
    policy: Name | None = None
    #: As they would be given to the evacuation.
    accept: Annotated[list[Name], Field(max_length=64)] = []


class Check(Command):
    """Preflight alone."""

    verb: ClassVar[str] = "check"
    role: ClassVar[Role] = Role.VIEWER
    about_what_is_found: ClassVar[bool] = True
    guest: GuestName
    to: Name
    policy: Name | None = None
    #: As they would be given to the migration.
    accept: Annotated[list[Name], Field(max_length=64)] = []


class ListPolicies(Command):
    """List the policies of the site, those built in among them, and what each allows."""

    verb: ClassVar[str] = "policies"
    role: ClassVar[Role] = Role.VIEWER
    about_no_host: ClassVar[bool] = True


class ListHooks(Command):
    """List the hooks that are configured for rolls, by point."""

    verb: ClassVar[str] = "hooks"
    role: ClassVar[Role] = Role.VIEWER
    about_no_host: ClassVar[bool] = True


#: By verb.
COMMANDS: Mapping[str, type[Command]] = {
    command.verb: command
    for command in (
        Migrate,
        Save,
        Load,
        Discard,
        Saved,
        Evacuate,
        Roll,
        Restore,
        Activate,
        Cordon,
        Uncordon,
        Cancel,
        Postcopy,
        Resolve,
        Plan,
        Check,
        ListPolicies,
        ListHooks,
    )
}
