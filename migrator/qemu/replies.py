"""The form of a QEMU's answer to every command that we send, as far as we read it.

A QEMU is not trusted: one that was broken into, or is no QEMU at all, answers what it likes. Everything it says is
checked here before anybody reads it, so that no reader has to be careful: types, presence, lengths, bounds of numbers,
text that can be written. What we do not read may be there and is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

# Not pydantic itself, whose start takes longer than that of everything else in `migrator direct`.
from pydantic_core import CoreSchema, PydanticCustomError, SchemaValidator, ValidationError
from pydantic_core import core_schema as form

from migrator.text import clean, shortened

#: The most members that a list or an object has: a flat list of block nodes is the longest that is honest.
_MANY = 20_000
#: Characters of a name, a path, an id; and of a text: QEMU puts file names into JSON into file names.
_NAME, _TEXT = 4_096, 65_536
#: Nesting of a value of which only its reader knows the form, and of images that are based on each other.
_DEEP = 64


def _bounded(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        if len(value) > _TEXT:
            raise PydanticCustomError("too_long", "a text is too long")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise PydanticCustomError("no_text", "a text cannot be written")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise PydanticCustomError("not_finite", "a number is not finite")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise PydanticCustomError("too_great", "a number is too great")
    elif isinstance(value, list | dict):
        if depth == _DEEP or len(value) > _MANY:
            raise PydanticCustomError("too_large", "it is too deep or too long")
        for part in value if isinstance(value, list) else (*value, *value.values()):
            _bounded(part, depth + 1)
    return value


def _object(needed: Mapping[str, CoreSchema], may_have: Mapping[str, CoreSchema] | None = None) -> CoreSchema:
    fields = {name: form.typed_dict_field(each) for name, each in needed.items()}
    fields |= {name: form.typed_dict_field(each, required=False) for name, each in (may_have or {}).items()}
    return form.typed_dict_schema(fields, strict=True)


def _list(each: CoreSchema, most: int = _MANY) -> CoreSchema:
    return form.list_schema(each, max_length=most, strict=True)


_name = form.str_schema(max_length=_NAME, strict=True)
_text = form.str_schema(max_length=_TEXT, strict=True)
_flag = form.bool_schema(strict=True)
_number = form.int_schema(ge=-(2**63), lt=2**64, strict=True)
#: How many, or how many bytes: more than any machine has, and a float can hold the product of two.
_count = form.int_schema(ge=0, le=2**60, strict=True)
_rate = form.float_schema(ge=0, le=1e15, allow_inf_nan=False, strict=True)
#: A value whose form only its reader knows.
_any = form.no_info_plain_validator_function(_bounded)
#: Nothing of it is read.
_nothing = form.any_schema()


def _or_none(each: CoreSchema) -> CoreSchema:
    return form.nullable_schema(each)


def _table(each: CoreSchema, most: int = 1_000) -> CoreSchema:
    return form.dict_schema(_name, each, max_length=most, strict=True)


_named = _object({"name": _name})
_cache = _object({"direct": _flag, "no-flush": _flag})
#: An image and what it is based on.
_image = form.definitions_schema(
    form.definition_reference_schema("image"),
    [
        form.typed_dict_schema(
            {
                "filename": form.typed_dict_field(_text),
                "virtual-size": form.typed_dict_field(_count),
                "backing-image": form.typed_dict_field(
                    form.definition_reference_schema("image"), required=False
                ),
                "actual-size": form.typed_dict_field(_count, required=False),
                "cluster-size": form.typed_dict_field(_count, required=False),
                "encrypted": form.typed_dict_field(_flag, required=False),
                "snapshots": form.typed_dict_field(_list(_nothing), required=False),
                "format-specific": form.typed_dict_field(_any, required=False),
            },
            ref="image",
            strict=True,
        )
    ],
)
_node = {
    "file": _text,
    "drv": _name,
    "ro": _flag,
    "cache": _cache,
    "detect_zeroes": _name,
}
_WAYS, _KINDS = ("", "_rd", "_wr"), ("", "_max", "_max_length")
_figures = {f"{of}{way}{kind}": _count for of in ("bps", "iops") for way in _WAYS for kind in _KINDS}
_limits: dict[str, CoreSchema] = {**_figures, "iops_size": _count, "group": _name}
_bitmap = _object({"persistent": _flag}, {"name": _name})
_inserted = _object({**_node, "image": _image, "node-name": _name}, {**_limits, "encrypted": _flag})
_pci = _object(
    {
        "bus": _count,
        "slot": _count,
        "function": _count,
        "qdev_id": _name,
        "id": _object({"vendor": _count, "device": _count}),
    }
)
_vnc = _object({"auth": _name})
_histogram = _object({"boundaries": _list(_number, 1_000)})
_child = _object({"name": _name, "type": _name})
#: Where a QEMU listens; other kinds are not read.
_address = form.tagged_union_schema(
    {
        "inet": _object({"host": _name, "port": form.str_schema(pattern=r"^[0-9]{1,5}$", strict=True)}),
        "unix": _object({"path": _name}),
        **dict.fromkeys(("fd", "vsock"), _object({})),
    },
    "type",
    strict=True,
)
_ram = _object(
    {
        **dict.fromkeys(
            ("total", "remaining", "transferred", "dirty-sync-count", "dirty-pages-rate"), _count
        ),
        "mbps": _rate,
    },
    {"page-size": _count, "postcopy-requests": _count},
)

#: Form of the answer to every command.
REPLIES: Final[Mapping[str, CoreSchema]] = {
    # Asked.
    "query-block": _list(
        _object({"device": _name}, {"qdev": _name, "removable": _flag, "inserted": _inserted})
    ),
    "query-block-exports": _list(_object({"id": _name, "type": _name, "node-name": _name})),
    "query-blockstats": _list(
        _object(
            {
                "stats": _object(
                    {},
                    dict.fromkeys(
                        ("rd_latency_histogram", "wr_latency_histogram", "flush_latency_histogram"),
                        _histogram,
                    ),
                )
            },
            {"qdev": _name},
        )
    ),
    "query-chardev": _list(_object({"label": _name, "filename": _text})),
    "query-commands": _list(_named),
    "query-cpus-fast": _list(_object({"qom-path": _name, "cpu-index": _count, "thread-id": _count})),
    "query-dirty-rate": _object(
        {"status": _name}, {"dirty-rate": form.int_schema(ge=-1, le=2**40, strict=True)}
    ),
    "query-fdsets": _list(_object({"fdset-id": _number, "fds": _list(_nothing)})),
    "query-hotpluggable-cpus": _list(_object({"type": _name, "props": _table(_number)}, {"qom-path": _name})),
    "query-iothreads": _list(_object({"id": _name, "thread-id": _count})),
    "query-jobs": _list(
        _object(
            {"id": _name, "type": _name, "status": _name},
            {"error": _text, "current-progress": _number, "total-progress": _number},
        )
    ),
    "query-kvm": _object({"enabled": _flag}),
    "query-memdev": _list(_object({"size": _count}, {"id": _name})),
    "query-memory-size-summary": _table(_count, 16),
    "query-migrate": _object(
        {},
        {
            "status": _name,
            "error-desc": _text,
            "ram": _ram,
            "total-time": _count,
            "downtime": _number,
            "expected-downtime": _number,
            "cpu-throttle-percentage": form.int_schema(ge=0, le=100, strict=True),
            "blocked-reasons": _list(_text, 1_000),
            "socket-address": _list(_address, 16),
            "postcopy-blocktime": _count,
            "postcopy-vcpu-blocktime": _list(_count, 4_096),
        },
    ),
    "query-migrate-capabilities": _list(_object({"capability": _name, "state": _flag}), 1_000),
    "query-migrate-parameters": _table(_any),
    "query-name": _object({}, {"name": _name}),
    "query-named-block-nodes": _list(
        _object(
            {**_node, "node-name": _name, "write_threshold": _count},
            {"image": _image, "encrypted": _flag, "active": _flag, "dirty-bitmaps": _list(_bitmap, 1_000)},
        )
    ),
    "query-pci": _list(_object({"bus": _count, "devices": _list(_pci, 1_000)}), 1_000),
    "query-qmp-schema": _list(
        _object(
            {"name": _name, "meta-type": _name},
            {"arg-type": _name, "members": _list(_object({}, {"name": _name}))},
        )
    ),
    "query-replay": _object({}, {"mode": _name}),
    "query-spice": _object({"enabled": _flag}, {"auth": _name}),
    "query-status": _object({"status": _name}),
    "query-uuid": _object(
        {
            "UUID": form.str_schema(
                pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", strict=True
            )
        }
    ),
    "query-vcpu-dirty-limit": _list(_nothing),
    "query-version": _object(
        {
            "qemu": _object(
                dict.fromkeys(("major", "minor", "micro"), form.int_schema(ge=0, le=9_999, strict=True))
            )
        }
    ),
    "query-vnc-servers": _list(_object({"id": _name, "auth": _name, "server": _list(_vnc, 1_000)}), 1_000),
    "device-list-properties": _list(_object({"name": _name, "type": _name}, {"default-value": _any})),
    "qom-get": _any,  # by the property: see _PROPERTIES
    "qom-list": _list(_child),
    "qom-list-types": _list(_named),
    "trace-event-get-state": _list(_object({"name": _name, "state": _name})),
    "x-debug-query-block-graph": _object(
        {
            "nodes": _list(_object({"id": _count, "name": _name, "type": _name})),
            "edges": _list(_object({"parent": _count, "child": _count, "name": _name})),
        }
    ),
    "x-query-virtio-status": _object({}, {"vhost-started": _flag}),
    # Answers with a text: what the human monitor says.
    "human-monitor-command": form.str_schema(max_length=2**20, strict=True),
    # Told: that it answered is all we read.
    **dict.fromkeys(
        (
            *("announce-self", "calc-dirty-rate", "cont", "qmp_capabilities", "quit", "set-action", "stop"),
            *("system_powerdown", "system_reset", "yank"),
            *("migrate", "migrate-continue", "migrate-incoming", "migrate-start-postcopy", "migrate_cancel"),
            *("migrate-pause", "migrate-recover"),
            *("migrate-set-capabilities", "migrate-set-parameters", "trace-event-set-state"),
            *("object-add", "object-del", "qom-set", "device_add", "netdev_add", "netdev_del", "chardev-add"),
            *(
                "block-latency-histogram-set",
                "block-set-write-threshold",
                "block_set_io_throttle",
                "blockdev-add",
            ),
            *(
                "blockdev-change-medium",
                "blockdev-close-tray",
                "blockdev-insert-medium",
                "blockdev-open-tray",
            ),
            *("blockdev-remove-medium", "eject"),
            *("nbd-server-start", "nbd-server-stop", "block-export-add", "blockdev-mirror", "blockdev-del"),
            *("block-export-del", "block-dirty-bitmap-add", "block-dirty-bitmap-enable"),
            *("block-dirty-bitmap-merge", "block-dirty-bitmap-remove"),
            *("block-job-cancel", "block-job-change", "block-job-set-speed", "job-dismiss"),
        ),
        _nothing,
    ),
}

_short = form.union_schema([_name, _number])
#: Form of properties, whatever object has them. For all others only their reader knows it.
_PROPERTIES: Final[Mapping[str, CoreSchema]] = {
    "addr": _or_none(_short),
    "bootindex": _or_none(_number),
    "chardev": _or_none(_name),
    "drive": _or_none(_name),
    "family": _or_none(_number),
    "feature-words": _or_none(
        _list(
            _object(
                {"cpuid-input-eax": _count, "cpuid-register": _name, "features": _count},
                {"cpuid-input-ecx": _count},
            ),
            1_000,
        )
    ),
    "identity": _text,
    "mac": _or_none(_name),
    "mem-path": _or_none(_name),
    "model": _or_none(_number),
    "netdev": _or_none(_name),
    "parent_bus": _or_none(_name),
    "stepping": _or_none(_number),
    "type": _or_none(_name),
}

_event = SchemaValidator(
    _object(
        {"event": _name},
        {
            "data": _table(_any),
            "timestamp": _object(
                {},
                {
                    "seconds": form.int_schema(ge=-1, lt=2**40, strict=True),
                    "microseconds": form.int_schema(ge=-1, lt=10**6, strict=True),
                },
            ),
        },
    )
)
_replies = {command: SchemaValidator(each) for command, each in REPLIES.items()}
#: Of a command that is not in the table, of which there is none but in tests: it can be kept, and no more is known.
_other = SchemaValidator(_any)
_properties = {name: SchemaValidator(each) for name, each in _PROPERTIES.items()}


def wrong_with(command: str, arguments: Mapping[str, Any] | None, answer: Any) -> str:
    """Say why this is no answer to that command; empty where it is one."""
    check = _replies.get(command, _other)
    if command == "qom-get" and arguments is not None:
        check = _properties.get(str(arguments.get("property")), check)
    return _wrong(check, answer)


def wrong_with_event(event: Mapping[str, Any]) -> str:
    """Say why this is no event; empty where it is one."""
    return _wrong(_event, event)


def _wrong(check: SchemaValidator, answer: Any) -> str:
    try:
        check.validate_python(answer)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"][:8])
        words = f"{clean(where)}: {first['msg']}" if where else first["msg"]
        return f"{words}, not {clean(shortened(first['input']))}"
    return ""
