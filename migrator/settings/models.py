"""Models of the configuration, section by section. ``config/migrator.toml`` says of each key what it is for."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from migrator.addresses import SERVICE_SOCKET
from migrator.core import findings
from migrator.core.drain.limits import FIRST_PAUSE_SECONDS, MOST_ATTEMPTS, GroupRules, Otherwise
from migrator.core.inventory import MONITOR_SOCKETS, TLS_DIRECTORY, Guest, Host
from migrator.core.placement import Options, Strategy
from migrator.core.policy import (
    Backing,
    BlockJobs,
    Compression,
    CopiedDisks,
    LastResort,
    PostcopyMode,
    Preference,
    SourceImages,
    Start,
    StreamRoute,
    TlsUse,
)
from migrator.core.schedule.transfers import LinkRules
from migrator.errors import UsageError
from migrator.settings.matching import matches
from migrator.settings.values import (
    AutoOrBool,
    DatabaseUrl,
    FileMode,
    FilePath,
    HostName,
    HostPatterns,
    LibvirtDaemon,
    LibvirtPeer,
    Listen,
    ListenAddress,
    Name,
    OptionalHost,
    OptionalPath,
    Rate,
    RateOrAuto,
    Ratio,
    ReachableHosts,
    Seconds,
    SecondsOrNone,
    Secret,
    Size,
    SshAddress,
    StreamsOrAuto,
    Text,
    Url,
    wrong,
)
from migrator.text import shortened

#: No limit and no count of ours is meant to be larger; journal and event loop take no number of any size.
_MOST = 1_000_000_000
Positive = Annotated[int, Field(ge=1, le=_MOST)]
#: What core goes by where nothing is configured; there each value has its reason.
_LINKS, _PLACEMENT = LinkRules(), Options()
#: Longer than nothing.
Duration = Annotated[Seconds, Field(gt=0)]
#: A command and its arguments; no shell reads it.
Arguments = tuple[Text, ...]


class Section(BaseModel):
    """Frozen; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


def _instance() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().partition(".")[0])[:64] or "migrator"


class SiteSettings(Section):
    """``[site]``"""

    name: Name = "default"
    instance: Name = Field(default_factory=_instance)
    default_policy: Name = "default"
    tls: TlsUse = TlsUse.PREFER
    #: The authority that `migrator pki` makes; the service needs nothing of it.
    pki_dir: FilePath = Path("/etc/migrator/pki")
    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: Where people open the page and read the runbook; for links in dashboards and alerts.
    page_url: Url = ""
    runbook_url: Url = ""
    #: Seconds that a clean stop may take; systemd's TimeoutStopSec must be longer.
    stop_timeout: Duration = 60.0


class HttpSettings(Section):
    """``[http]``"""

    socket: OptionalPath = Path(SERVICE_SOCKET)
    socket_mode: FileMode = 0o660
    socket_owner: str = ""
    socket_group: str = ""
    listen: ListenAddress = None
    tls_certificate: OptionalPath = None
    tls_key: OptionalPath = None
    hosts: tuple[HostName, ...] = ()
    #: Without a token, and so for this machine alone unless somebody says otherwise.
    metrics_listen: ListenAddress = Listen(host="127.0.0.1", port=9733)
    #: Of one caller, on average and at once: far more than watching takes.
    requests_per_second: Annotated[float, Field(gt=0)] = 50.0
    burst: Positive = 200
    #: Streams of events at a time, of all callers and of one: a browser with many tabs.
    streams: Positive = 256
    streams_per_caller: Positive = 32
    #: At a time, of all and of one address; fewer where the process may have few file descriptors.
    connections: Positive = 512
    connections_per_address: Positive = 128
    #: Requests begun for one address, whoever it says it is; more wait their turn.
    address_requests_per_second: Annotated[float, Field(gt=0)] = 100.0
    #: Bytes; the largest command is a list of findings to accept.
    max_body: Annotated[Size, Field(ge=1024)] = 65_536
    #: Seconds until an answer has begun: a preflight looks at two hosts, each within 30 s.
    request_timeout: Duration = 60.0

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise wrong("tls_certificate and tls_key belong together: give both or neither")
        if self.listen is not None and not self.listen.loopback and self.tls_key is None:
            raise wrong(
                f"listen = {str(self.listen)!r} can be reached from elsewhere, which takes tls_certificate and tls_key"
            )
        if self.socket is None and self.listen is None:
            raise wrong("with neither socket nor listen nobody could reach the service: give one")
        return self


class MqttSettings(Section):
    """``[mqtt]``"""

    host: OptionalHost = ""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    tls: bool = False
    tls_ca: OptionalPath = None
    tls_certificate: OptionalPath = None
    tls_key: OptionalPath = None
    username: str = ""
    password: Secret = SecretStr("")
    password_file: OptionalPath = None
    operators: tuple[Name, ...] = ()
    viewers: tuple[Name, ...] = ()
    #: Of the operators those who may say where the guest of a held migration is.
    resolvers: tuple[Name, ...] = ()
    #: By user: patterns of the hosts that his commands are limited to.
    hosts: Mapping[Name, HostPatterns] = {}
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    #: Seconds; a broker that says nothing is given up after at most twice as long.
    keepalive: Annotated[Seconds, Field(ge=1, le=65535)] = 15.0
    #: Seconds, of connecting and of each acknowledgement.
    timeout: Duration = 5.0
    #: Seconds that the broker keeps commands for a service that is away.
    session_expiry: Duration = 86_400.0
    #: States and decisions that wait for a broker that is away: some minutes of a large evacuation.
    queue_limit: Positive = 10_000
    #: Bytes; a larger command is refused, and the document in a larger reply is left out.
    max_command_size: Annotated[Size, Field(ge=1024)] = 65_536
    max_reply_size: Annotated[Size, Field(ge=1024)] = 1 << 20
    #: Commands carried out at a time, of one user a quarter; and how many more wait of one user that change nothing.
    max_commands: Positive = 32
    max_waiting_commands: Positive = 64
    #: Seconds after ``sent_at`` at which a command without ``expires_at`` expires.
    command_lifetime: Duration = 600.0
    #: Seconds that a caller's clock may be ahead of ours.
    clock_tolerance: Seconds = 300.0
    #: Seconds that the retained state of what has ended stays.
    keep_ended: Seconds = 86_400.0
    #: Seconds at least between two messages of progress of one migration.
    progress_interval: Annotated[Seconds, Field(ge=1)] = 1.0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.tls_key is not None and self.tls_certificate is None:
            raise wrong("tls_key is of no use without tls_certificate")
        if not self.tls and (self.tls_ca or self.tls_certificate):
            raise wrong("tls_ca and tls_certificate are of no use without tls = true")
        if self.password.get_secret_value() and self.password_file:
            raise wrong("password and password_file contradict each other: give one")
        if (self.password.get_secret_value() or self.password_file) and not self.username:
            raise wrong("a password is of no use without username")
        if both := set(self.operators) & set(self.viewers):
            raise wrong(
                f"{', '.join(sorted(both))} is in operators and in viewers: operators may look anyway"
            )
        if strange := set(self.resolvers) - set(self.operators):
            raise wrong(f"{', '.join(sorted(strange))} is in resolvers and not in operators: put it in both")
        if strange := set(self.hosts) - set(self.operators) - set(self.viewers):
            raise wrong(
                f"hosts limits {', '.join(sorted(strange))}, who is in neither operators nor viewers: put it there, too"
            )
        return self

    @property
    def broker_port(self) -> int:
        """Port that was given, else the usual one with or without TLS."""
        return self.port or (8883 if self.tls else 1883)


class StoreSettings(Section):
    """``[store]``"""

    path: FilePath = Path("/var/lib/migrator/journal.db")
    url: DatabaseUrl = ""
    tls: Literal["auto", "off"] = "auto"
    tls_ca: OptionalPath = None
    tls_certificate: OptionalPath = None
    tls_key: OptionalPath = None
    password: Secret = SecretStr("")
    password_file: OptionalPath = None
    retention: Duration = 90 * 86_400.0
    prune_interval: Duration = 3600.0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        password = bool(self.password.get_secret_value())
        server = (self.tls_ca, self.tls_certificate, self.tls_key, self.password_file)
        if not self.url and (password or any(server) or self.tls != "auto"):
            raise wrong("tls, tls_ca, tls_certificate, tls_key and a password are of no use without url")
        if self.tls_key is not None and self.tls_certificate is None:
            raise wrong("tls_key is of no use without tls_certificate")
        if self.tls == "off" and (self.tls_ca or self.tls_certificate):
            raise wrong('tls_ca and tls_certificate are of no use with tls = "off"')
        if password and self.password_file:
            raise wrong("password and password_file contradict each other: give one")
        return self


class ControllerSettings(Section):
    """``[controller]``"""

    lease: Annotated[Seconds, Field(ge=2, le=60)] = 6.0


class LimitsSettings(Section):
    """``[limits]``"""

    #: Prepared or running at the same time in the whole site.
    migrations_at_a_time: Positive = 100
    link_reserve: Annotated[Ratio, Field(lt=1)] = _LINKS.reserve_ratio
    assumed_link_speed: Annotated[Rate, Field(ge=1 << 20)] = int(_LINKS.assumed_link_bytes_per_second)
    sharing_at_a_time: Positive = _LINKS.quiet_at_a_time
    prepared_per_source: Positive = _LINKS.prepared_per_source
    prepared_per_target: Positive = _LINKS.prepared_per_target
    attempts: Positive = MOST_ATTEMPTS
    first_pause: Duration = FIRST_PAUSE_SECONDS
    #: Seconds between two looks at a host, beside those that something seen there causes.
    refresh_interval: Duration = 180.0
    #: Seconds for which the recovery of a broken postcopy stream is tried before a person has to look.
    stream_recovery: Duration = 3600.0
    #: Seconds after a guest's arrival in which images at its source stay, where its policy has them removed.
    source_image_grace: Duration = 3600.0
    #: Commands at a time; OpenSSH's server allows 10 sessions a connection, four of which watch, guard and set options.
    ssh_sessions: Annotated[int, Field(ge=1, le=64)] = 6
    ssh_connect_timeout: Duration = 10.0
    #: Seconds; a connection is dropped when nothing came over it for three times as long.
    ssh_keepalive: Duration = 5.0


class TracesSettings(Section):
    """``[traces]``"""

    endpoint: Url = ""
    headers_file: OptionalPath = None
    ca_file: OptionalPath = None
    sample_ratio: Ratio = 1.0
    timeout: Duration = 10.0

    @property
    def url(self) -> str:
        """Where to send: OTLP's own path where the endpoint has none."""
        base = self.endpoint.rstrip("/")
        return f"{base}/v1/traces" if base.count("/") == 2 else self.endpoint


class PlacementSettings(Section):
    """``[placement]``"""

    strategy: Strategy = _PLACEMENT.strategy
    max_tries: Positive = _PLACEMENT.max_tries


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and value and not value.startswith("/"):
        raise wrong(f"{shortened(value)} is no absolute path on the host")
    return value


#: A path on the host, not here.
HostPath = Annotated[str, BeforeValidator(_absolute)]


def _plain_directory(value: Any) -> Any:
    parts = (
        value.removeprefix("/").rstrip("/").split("/")
        if isinstance(value, str) and value != "/"
        else ["root"]
    )
    if any(each in ("", ".", "..") for each in parts):
        raise wrong(f"{shortened(value)} is no directory: write its path without `.`, `..` and `//`")
    return value


#: A directory on the host, by which paths are compared as they are written.
HostDirectory = Annotated[HostPath, BeforeValidator(_plain_directory)]


#: In it are ``MIGRATION-XXXXXX/control.qmp``, with ids of 12 characters, and the path of a Unix socket takes 107 bytes.
_RUN_DIRECTORY_BYTES = 107 - len("/0123456789ab-XXXXXX/control.qmp")


def _with_room_for_sockets(value: Any) -> Any:
    if isinstance(value, str) and (size := len(value.rstrip("/").encode())) > _RUN_DIRECTORY_BYTES:
        raise wrong(
            f"{shortened(value)} has {size} bytes: with more than {_RUN_DIRECTORY_BYTES} the sockets in it have no "
            "room for their names; choose a shorter directory"
        )
    return value


#: A directory on the host in which guests' sockets are made.
RunDirectoryPath = Annotated[HostPath, BeforeValidator(_with_room_for_sockets)]


class ImageTemplate(Section):
    """``image_template`` of a host: how a volume is made there for a disk that is one at the source.

    Commands with ``{path}``, ``{name}`` and ``{group}`` (the last part of the path and the one before it), and
    ``{size}`` in bytes.
    """

    make: Arguments
    remove: Arguments

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for key, words, needed in (("make", self.make, "{size}"), ("remove", self.remove, "")):
            if not words:
                raise wrong(f"{key} is empty: give the command and its arguments")
            try:
                filled = self.filled(words, path="/dev/group/name", size_bytes=1)
            except (KeyError, IndexError, ValueError):
                raise wrong(
                    f"{key} names what does not exist; there are {{path}}, {{name}}, {{group}}, {{size}}"
                ) from None
            if filled == words or not any(needed in word for word in words):
                raise wrong(
                    f"{key} does not say which volume, or of what size: use {{path}} or {{name}}, and {{size}}"
                )
        return self

    @staticmethod
    def filled(words: Arguments, *, path: str, size_bytes: int) -> tuple[str, ...]:
        """Return a command for one volume."""
        parent, _, name = path.rpartition("/")
        about = {"path": path, "name": name, "group": parent.rpartition("/")[2], "size": str(size_bytes)}
        return tuple(word.format(**about) for word in words)


class HostDefaults(Section):
    """``[host_defaults]``: what :class:`HostSettings` take that say nothing else."""

    key_file: OptionalPath = None
    known_hosts: OptionalPath = None
    sockets: tuple[HostPath, ...] = MONITOR_SOCKETS
    look_for: Literal["processes", "sockets"] = "processes"
    qemu: HostPath = ""
    run_dir: RunDirectoryPath = ""
    log_dir: HostPath = ""
    systemd: AutoOrBool = None
    start_timeout: Duration = 30.0
    launch: Literal["replicate", "template", "attached"] = "replicate"
    template: Arguments = ()
    attached: HostPath = ""
    link_speed: RateOrAuto = None
    memory: Size = 0
    #: Bytes that are never given to guests: what the host itself needs.
    memory_reserve: Size = 2 << 30
    cpu_overcommit: Annotated[float, Field(gt=0)] = Host.cpu_overcommit_ratio
    labels: dict[Text, str] = Field(default_factory=dict)
    max_incoming: Positive | None = None
    max_outgoing: Positive | None = None
    ports: Literal["keep", "any"] = "keep"
    #: Directory of certificates for QEMU, as QEMU names its files.
    tls_dir: HostPath = TLS_DIRECTORY
    #: Directories of images, or volume groups, by names that hosts share.
    image_directories: dict[Text, HostDirectory] = Field(default_factory=dict)
    #: ``None``: disks that are block devices are not copied to there.
    image_template: ImageTemplate | None = None
    #: Directory for guests that an evacuation saves as a last resort.
    saved_dir: HostPath = ""
    #: Where the libvirt of a host is, as that host sees it; ``auto``: where it usually is, if there is one.
    libvirt: LibvirtDaemon = "auto"
    #: By which the libvirtd of other hosts reach it; empty: they do not.
    libvirt_peer_uri: LibvirtPeer = ""


class HostSettings(HostDefaults):
    """One of ``[[hosts]]``."""

    name: Name
    ssh: SshAddress | None = None
    prefix: Arguments = ()
    address: ReachableHosts = (Host.address,)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.ssh is not None and self.prefix:
            raise wrong("ssh and prefix contradict each other: a prefix is for hosts on this machine")
        if not any(self.sockets):
            raise wrong("sockets is empty: no guest would ever be found there")
        if self.launch == "template" and not self.template:
            raise wrong('launch = "template" takes template: the command that starts the QEMU')
        if self.launch == "attached" and not self.attached:
            raise wrong('launch = "attached" takes attached: the QMP socket of the QEMU that waits')
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return where other hosts reach it with a migration's stream, the usual address first."""
        return self.address

    def as_host(self) -> Host:
        """Return the host as the engine knows it before it has been looked at."""
        return Host(
            name=self.name,
            address=self.addresses[0],
            link_bytes_per_second=self.link_speed,
            memory_bytes=self.memory,
            memory_reserve_bytes=self.memory_reserve,
            cpu_overcommit_ratio=self.cpu_overcommit,
            labels=self.labels,
            max_incoming=self.max_incoming,
            max_outgoing=self.max_outgoing,
            spare_ports=self.ports == "any",
            saved_dir=self.saved_dir,
        )


class GuestSettings(Section):
    """One of ``[[guests]]``; what is not given is left to the others that match."""

    match: Text
    policy: Name | None = None
    priority: Annotated[int, Field(ge=-_MOST, le=_MOST)] | None = None
    group: str | None = None
    anti_affinity: str | None = None
    requires: dict[Text, str] | None = None
    movable: bool | None = None
    ports: Literal["keep", "any"] | None = None
    accept: tuple[Text, ...] | None = None

    @field_validator("accept")
    @classmethod
    def _acceptable(cls, codes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        try:
            findings.accept((), codes or ())
        except UsageError as error:
            raise wrong(str(error)) from error
        return codes

    def matches(self, guest: Guest) -> bool:
        """Tell whether the entry means this guest, by uuid, name, or HOST/NAME."""
        return matches(guest, self.match)


class GroupSettings(Section):
    """One of ``[groups.NAME]``."""

    together: bool = GroupRules.together
    wait: Duration = GroupRules.wait_seconds
    otherwise: Otherwise = GroupRules.otherwise

    def rules(self) -> GroupRules:
        """Return what a plan goes by."""
        return GroupRules(together=self.together, wait_seconds=self.wait, otherwise=self.otherwise)


class PolicySettings(Section):
    """One of ``[policies.NAME]``; what is not given is as in the policy that it extends."""

    extends: Name | None = None
    max_downtime: Seconds | None = None
    max_bandwidth: RateOrAuto = None
    max_throttle: Ratio | None = None
    postcopy: PostcopyMode | None = None
    max_duration: SecondsOrNone = None
    last_resort: LastResort | None = None
    block_jobs: BlockJobs | None = None
    prefer: Preference | None = None
    start: Start | None = None
    max_postcopy_stall: Seconds | None = None
    max_shutdown: Seconds | None = None
    disks: CopiedDisks | None = None
    source_images: SourceImages | None = None
    backing: Backing | None = None
    tls: TlsUse | None = None
    stream: StreamRoute | None = None
    streams: StreamsOrAuto = None
    compress: Compression | None = None
