"""Commands of a fake QEMU: their effects and their answers."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from migrator.core.model import MigrationStatus, Sample
from migrator.testing import fake_network
from migrator.testing.fake_monitor import CommandRefused, Message, NeverAnswered
from migrator.testing.fake_node import ROM_BYTES, FakeNode
from migrator.testing.fake_settings import check_capabilities, check_parameters
from migrator.testing.fake_stream import FakeStream
from migrator.testing.workload import MIB, PAGE_BYTES

#: A migration in one of these is over.
_OVER = {None, "none", "completed", "failed", "cancelled"}
_IN_POSTCOPY = {"postcopy-active", "postcopy-paused", "postcopy-recover-setup", "postcopy-recover"}
_POWER_DOWN_SECONDS = 0.02


class FakeCommands:
    """Executes commands on a node.

    :param answers: recorded ones, made to fit this guest; what is in no method here is answered with them.
    """

    def __init__(self, node: FakeNode, answers: dict[str, Any]) -> None:
        self._node = node
        self._answers = answers
        self._probe: tuple[float, int] | None = None
        schema = node.recorded["schema"]
        objects = {entry["name"]: entry["members"] for entry in schema if entry["meta-type"] == "object"}
        commands = [entry for entry in schema if entry["meta-type"] == "command"]
        self._members = {entry["name"]: objects.get(entry["arg-type"], []) for entry in commands}
        self.oob = frozenset(entry["name"] for entry in commands if entry.get("allow-oob"))
        self._plain: dict[str, Callable[[], Any]] = {
            "cont": self._cont,
            "migrate-pause": self._migrate_pause,
            "migrate-start-postcopy": self._start_postcopy,
            "migrate_cancel": self._cancel,
            "query-dirty-rate": self._query_dirty_rate,
            "query-migrate": self._query_migrate,
            "query-migrate-capabilities": self._query_capabilities,
            "query-migrate-parameters": lambda: dict(node.parameters),
            "query-qmp-schema": lambda: schema,
            "query-status": self._query_status,
            "query-yank": self._query_yank,
            "quit": self._quit,
            "stop": self._stop,
            "system_powerdown": self._power_down,
            "system_reset": self._reset,
        }
        self._methods: dict[str, Callable[[Message], Any]] = {
            "announce-self": lambda given: {},
            "calc-dirty-rate": self._calc_dirty_rate,
            "migrate": self._migrate,
            "migrate-continue": self._migrate_continue,
            "migrate-incoming": self._migrate_incoming,
            "migrate-recover": self._migrate_recover,
            "migrate-set-capabilities": self._set_capabilities,
            "migrate-set-parameters": self._set_parameters,
            "object-add": self._object_add,
            "object-del": self._object_del,
            "qom-get": self._qom_get,
            "qom-list": self._qom_list,
            "qom-set": self._qom_set,
            "yank": self._yank,
        }

    def execute(self, name: str, arguments: Message) -> Any:
        """Execute one command, and return its answer.

        :raise Refused: as QEMU would.
        """
        members = self._members.get(name)
        if members is None:
            raise CommandRefused(f"The command {name} has not been found", "CommandNotFound")
        if name != "object-add":  # whose members depend on the type
            self._check(members, arguments)
        self._node.catch_up()
        if name in self._plain:
            return self._plain[name]()
        if name in self._methods:
            return self._methods[name](arguments)
        if name in self._answers:
            return deepcopy(self._answers[name])
        raise CommandRefused(f"the fake QEMU knows {name} by name only")

    @staticmethod
    def _check(members: list[dict[str, Any]], given: Message) -> None:
        known = {member["name"]: member for member in members}
        for name, value in given.items():
            if name not in known:
                raise CommandRefused(f"Parameter '{name}' is unexpected")
            if known[name]["type"] == "str" and not isinstance(value, str):
                raise CommandRefused(f"Invalid parameter type for '{name}', expected: string")
        for name, member in known.items():
            if name not in given and "default" not in member:
                raise CommandRefused(f"Parameter '{name}' is missing")

    # --- looking -----------------------------------------------------------------------------------------------------

    def _query_status(self) -> Message:
        node = self._node
        singlestep = {"singlestep": False} if node.old else {}
        return {"status": node.run, "running": node.run == "running", **singlestep}

    def _query_migrate(self) -> Message:
        node = self._node
        answer: Message = {}
        if node.status is not None:
            answer["status"] = node.status
            if node.error:
                answer["error-desc"] = node.error
        if node.listens_at is not None and node.status not in _OVER - {None}:
            address = {"type": "inet", "host": node.listen_host, "port": node.listens_at, "ipv4": True}
            answer["socket-address"] = [address]
        outgoing = node.stream is not None and node.stream.source is node
        sample = node.last_sample
        if outgoing and node.stream is not None and node.status not in ("setup", None):
            sample = node.stream.guest.sample()
        if sample is not None and node.status not in ("setup", "failed", "cancelled", None):
            answer |= _figures(sample, node)
        return answer

    def _query_capabilities(self) -> list[Message]:
        return [{"capability": name, "state": state} for name, state in self._node.capabilities.items()]

    def _query_yank(self) -> list[Message]:
        found: list[Message] = deepcopy(self._answers["query-yank"])
        return [*found, *([{"type": "migration"}] if self._yankable else [])]

    @property
    def _yankable(self) -> bool:
        node = self._node
        return node.listens_at is not None or (node.stream is not None and node.stream.moving)

    def _qom_get(self, given: Message) -> Any:
        path, name = given["path"], given["property"]
        if path.startswith("/objects/") and (added := self._node.objects.get(path[len("/objects/") :])):
            return added[name]
        properties = self._node.recorded["properties"]
        if not any(key.split(" ")[0] == path for key in properties):
            raise CommandRefused(f"Device '{path}' not found", "DeviceNotFound")
        found = properties.get(f"{path} {name}")
        if found is None:
            raise CommandRefused(f"Property '{path}.{name}' not found")
        return deepcopy(found)

    def _qom_list(self, given: Message) -> Any:
        if given["path"] == "/objects":
            added = self._node.objects.items()
            return [{"name": name, "type": f"child<{each['qom-type']}>"} for name, each in added]
        found = self._node.recorded["lists"].get(given["path"])
        if found is None:
            raise CommandRefused(f"Device '{given['path']}' not found", "DeviceNotFound")
        return deepcopy(found)

    def _qom_set(self, given: Message) -> Message:
        added = self._node.objects.get(given["path"].removeprefix("/objects/"))
        if added is None:
            raise CommandRefused(f"Device '{given['path']}' not found", "DeviceNotFound")
        added[given["property"]] = given["value"]
        return {}

    def _object_add(self, given: Message) -> Message:
        name = given["id"]
        if name in self._node.objects:
            raise CommandRefused(f"attempt to add duplicate property '{name}' to object (type 'container')")
        self._node.objects[name] = {key: each for key, each in given.items() if key != "id"}
        return {}

    def _object_del(self, given: Message) -> Message:
        if self._node.objects.pop(given["id"], None) is None:
            raise CommandRefused(f"object '{given['id']}' not found")
        return {}

    def _calc_dirty_rate(self, given: Message) -> Message:
        seconds = given["calc-time"]
        if not 1 <= seconds <= 60:
            words = "calc-time is out of range[1, 60]."
            raise CommandRefused(
                words if self._node.old else "Calculation time is out of range [50ms, 60000ms]."
            )
        if self._node.guest is not None:
            self._node.guest.memory.probe()
            self._probe = (self._node.guest.now, seconds)
        return {}

    def _query_dirty_rate(self) -> Message:
        answer: Message = dict(self._answers["query-dirty-rate"])
        guest = self._node.guest
        if self._probe is None or guest is None:
            return answer
        began, seconds = self._probe
        answer |= {"status": "measuring", "calc-time": seconds, "sample-pages": 512}
        if guest.now >= began + seconds:
            rate = guest.memory.probe() / (guest.now - began)
            self._probe = None
            self._answers["query-dirty-rate"] = answer | {"status": "measured", "dirty-rate": int(rate / MIB)}
            return dict(self._answers["query-dirty-rate"])
        return answer

    # --- the guest ---------------------------------------------------------------------------------------------------

    def _cont(self) -> Message:
        node = self._node
        if node.run == "inmigrate":
            node.autostart = True
        elif node.run == "finish-migrate":
            raise CommandRefused("Migration is not finalized yet")
        elif node.run != "running":
            stream = node.stream
            if stream is not None and stream.destination is node:
                stream.hand_over()
            elif stream is not None and stream.moving:
                stream.cont_guest()
            else:
                node.resume()
        return {}

    def _stop(self) -> Message:
        node = self._node
        stream = node.stream
        if node.run == "inmigrate":
            node.autostart = False
        elif node.status == "postcopy-paused" and node.run == "running":
            raise NeverAnswered
        elif node.run == "running":
            if stream is not None and stream.source is node:
                stream.stop_guest()
            else:
                node.run = "paused"
                if node.guest is not None:
                    node.guest.stop()
                node.emit("STOP")
        return {}

    def _quit(self) -> Message:
        self._node.shut_down("host-qmp-quit", guest=False)
        return {}

    def _power_down(self) -> Message:
        node = self._node
        node.emit("POWERDOWN")
        if node.run == "running":
            node.later(_POWER_DOWN_SECONDS, lambda: node.shut_down("guest-shutdown", guest=True))
        return {}

    def _reset(self) -> Message:
        self._node.emit("RESET", guest=False, reason="host-qmp-system-reset")
        return {}

    # --- settings ----------------------------------------------------------------------------------------------------

    def _set_capabilities(self, given: Message) -> Message:
        node = self._node
        if node.stream is not None and node.stream.moving:
            raise CommandRefused("There's a migration process in progress")
        wanted: dict[str, bool] = {}
        for entry in given["capabilities"]:
            if entry["capability"] not in node.capabilities:
                raise CommandRefused(f"Parameter 'capability' does not accept value '{entry['capability']}'")
            wanted[entry["capability"]] = entry["state"]
        check_capabilities(node.capabilities | wanted, old=node.old)
        node.capabilities |= wanted
        return {}

    def _set_parameters(self, given: Message) -> Message:
        check_parameters(self._node.parameters, given)
        self._node.parameters |= given
        self._node.tune()
        return {}

    # --- migrating ---------------------------------------------------------------------------------------------------

    def _migrate(self, given: Message) -> Message:
        node = self._node
        if "uri" not in given:
            raise CommandRefused("need either 'uri' or 'channels' argument")
        uri = given["uri"]
        if given.get("resume"):
            if node.status != "postcopy-paused" or node.stream is None:
                raise CommandRefused("Cannot resume if there is no paused migration")
            node.stream.recover(uri)
            return {}
        if node.stream is not None and node.stream.moving:
            raise CommandRefused("There's a migration process in progress")
        if node.run == "inmigrate":
            raise CommandRefused("Guest is waiting for an incoming migration")
        if node.run == "postmigrate":
            raise CommandRefused("Can't migrate the vm that was paused due to previous migration")
        try:
            fake_network.address(uri)
        except CommandRefused as error:
            if node.old and "protocol" in str(error):
                node.status = "failed"
                raise CommandRefused("Parameter 'uri' expects a valid migration protocol") from None
            raise
        FakeStream(node, uri)
        return {}

    def _migrate_incoming(self, given: Message) -> Message:
        node = self._node
        if not node.incoming:
            raise CommandRefused("'-incoming' was not specified on the command line")
        if node.was_told_to_listen:
            raise CommandRefused("The incoming migration has already been started")
        if node.old:
            node.emit("MIGRATION", status="setup")
        fake_network.listen(node, given["uri"])
        node.was_told_to_listen = True
        node.exit_on_error = given.get("exit-on-error", True)
        if not node.old:
            node.set_status("setup")
        return {}

    def _migrate_continue(self, given: Message) -> Message:
        node = self._node
        if given["state"] not in set(MigrationStatus):
            raise CommandRefused(f"Parameter 'state' does not accept value '{given['state']}'")
        if node.status != given["state"] or node.stream is None:
            raise CommandRefused(f"Migration not in expected state: {node.status or 'none'}")
        node.stream.proceed()
        return {}

    def _start_postcopy(self) -> Message:
        node = self._node
        if not node.capabilities["postcopy-ram"]:
            raise CommandRefused("Enable postcopy with migrate_set_capability before the start of migration")
        if node.status is None:
            raise CommandRefused("Postcopy must be started after migration has been started")
        if node.stream is not None and node.stream.source is node:
            node.stream.start_postcopy()
        return {}

    def _migrate_pause(self) -> Message:
        node = self._node
        if node.status != "postcopy-active" or node.stream is None:
            states = "postcopy-active state" if node.old else "postcopy-active or postcopy-recover state"
            raise CommandRefused(f"migrate-pause is currently only supported during {states}")
        node.stream.pause("" if node.old else "Postcopy migration is paused by the user")
        return {}

    def _migrate_recover(self, given: Message) -> Message:
        node = self._node
        if node.status != "postcopy-paused" or not node.incoming:
            raise CommandRefused("Migrate recover can only be run when postcopy is paused.")
        fake_network.stop_listening(node)
        if node.old:
            node.emit("MIGRATION", status="setup")
        fake_network.listen(node, given["uri"])
        return {}

    def _cancel(self) -> Message:
        node = self._node
        if node.status in _IN_POSTCOPY and not node.old:
            raise CommandRefused("Postcopy migration in progress, cannot cancel.")
        if node.stream is not None and node.stream.source is node and node.status != "cancelling":
            node.stream.cancel()
        return {}

    def _yank(self, given: Message) -> Message:
        for instance in given["instances"]:
            kind = instance.get("type")
            if kind not in ("migration", "chardev", "block-node"):
                raise CommandRefused(f"Parameter 'type' does not accept value '{kind}'")
            if kind == "migration":
                if not self._yankable:
                    raise CommandRefused("Instance not found", "DeviceNotFound")
                if self._node.stream is not None:
                    self._node.stream.break_off()
        return {}


def _figures(sample: Sample, node: FakeNode) -> Message:
    """Return the figures that query-migrate shows at the source."""
    sent = sample.transferred_bytes
    answer: Message = {
        "setup-time": 0,
        "total-time": round(sample.at_seconds * 1e3),
        "ram": {
            "total": sample.total_bytes + ROM_BYTES,
            "remaining": sample.remaining_bytes,
            "transferred": sent,
            "dirty-sync-count": sample.round,
            "dirty-pages-rate": round(sample.dirty_rate_bytes_per_second / PAGE_BYTES),
            "mbps": sample.bandwidth_bytes_per_second * 8 / 1e6,
            "pages-per-second": round(sample.bandwidth_bytes_per_second / PAGE_BYTES),
            "page-size": PAGE_BYTES,
            "normal": sent // PAGE_BYTES,
            "normal-bytes": sent // PAGE_BYTES * PAGE_BYTES,
            "duplicate": max(0, sample.total_bytes - sample.remaining_bytes - sent) // PAGE_BYTES,
            "postcopy-requests": sample.postcopy_requests,
            "multifd-bytes": 0,
            "precopy-bytes": sent,
            "postcopy-bytes": 0,
            "downtime-bytes": 0,
            "dirty-sync-missed-zero-copy": 0,
            **({"skipped": 0} if node.old else {}),
        },
    }
    if sample.downtime_seconds:
        answer["downtime"] = round(sample.downtime_seconds * 1e3)
    else:
        answer["expected-downtime"] = round(sample.expected_downtime_seconds * 1e3)
    if sample.throttle_ratio:
        answer["cpu-throttle-percentage"] = round(sample.throttle_ratio * 100)
    return answer
