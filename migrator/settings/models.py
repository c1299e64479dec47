"""Models of the configuration, section by section; those about hosts are in :mod:`.host_sections`.

``config/migrator.toml`` says of each key what it is for.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from migrator.addresses import SERVICE_SOCKET
from migrator.core import findings
from migrator.core.drain.limits import FIRST_PAUSE_SECONDS, MOST_ATTEMPTS, GroupRules, Otherwise
from migrator.core.inventory import Guest
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
from migrator.settings.section import LARGEST, Duration, Positive, Section
from migrator.settings.values import (
    DatabaseUrl,
    FileMode,
    FilePath,
    HostName,
    HostPatterns,
    Listen,
    ListenAddress,
    Name,
    OptionalHost,
    OptionalPath,
    Rate,
    RateOrAuto,
    Ratio,
    Seconds,
    SecondsOrNone,
    Secret,
    Size,
    StreamsOrAuto,
    Text,
    Url,
    wrong,
)

#: What core goes by where nothing is configured; there each value has its reason.
_LINKS, _PLACEMENT = LinkRules(), Options()


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


class GuestSettings(Section):
    """One of ``[[guests]]``; what is not given is left to the others that match."""

    match: Text
    policy: Name | None = None
    priority: Annotated[int, Field(ge=-LARGEST, le=LARGEST)] | None = None
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
