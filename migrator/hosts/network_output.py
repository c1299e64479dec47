"""Parsing of what ``ip`` and ``bridge`` print as JSON, without trust; see :mod:`migrator.hosts.host_output`.

By itself, as the library that checks it takes longer to load than a host without a network of guests takes to be read.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import CoreSchema, SchemaValidator, from_json
from pydantic_core import core_schema as form


def _object(**fields: CoreSchema) -> CoreSchema:
    return form.typed_dict_schema(
        {name: form.typed_dict_field(each, required=False) for name, each in fields.items()},
        strict=True,
        extra_behavior="ignore",
    )


def _list(each: CoreSchema, most: int) -> CoreSchema:
    return form.list_schema(each, strict=True, max_length=most)


_name = form.str_schema(strict=True, max_length=256)
_few = _list(_name, 256)
_interfaces = SchemaValidator(
    _list(
        _object(
            ifname=_name,
            address=_name,
            master=_name,
            link=form.nullable_schema(_name),
            flags=_few,
            addr_info=_list(_object(local=_name), 10_000),
            linkinfo=_object(
                info_kind=_name,
                info_data=_object(
                    id=form.int_schema(strict=True, ge=0, le=2**32),
                    vlan_filtering=form.int_schema(strict=True, ge=0, le=2**32),
                ),
                info_slave_data=_object(learning=form.bool_schema(strict=True)),
            ),
        ),
        20_000,
    )
)
_vlans = SchemaValidator(
    _list(
        _object(
            ifname=_name,
            vlans=_list(
                _object(
                    vlan=form.int_schema(strict=True, ge=0, le=2**16),
                    vlanEnd=form.int_schema(strict=True, ge=0, le=2**16),
                    flags=_few,
                ),
                5_000,
            ),
        ),
        20_000,
    )
)
_forwarding = SchemaValidator(
    _list(
        _object(
            mac=_name,
            master=_name,
            state=_name,
            vlan=form.int_schema(strict=True, ge=0, le=2**16),
        ),
        5_000,
    )
)


def interfaces(text: str) -> list[dict[str, Any]]:
    """Parse the output of ``ip -j -d addr show``; empty where there is no ``ip`` that prints JSON.

    :raise ValueError: the output is of another form.
    """
    return _entries(_interfaces, text)


def vlans(text: str) -> list[dict[str, Any]]:
    """Parse the output of ``bridge -j vlan show``, like :func:`interfaces`."""
    return _entries(_vlans, text)


def forwarding(text: str) -> list[dict[str, Any]] | None:
    """Parse the output of ``bridge -j fdb show``, like :func:`interfaces`; ``None`` where it prints nothing."""
    return _entries(_forwarding, text, name="mac") if text.lstrip().startswith("[") else None


def _entries(check: SchemaValidator, text: str, *, name: str = "ifname") -> list[dict[str, Any]]:
    try:
        found = from_json(text, allow_inf_nan=False)
    except ValueError:
        if text.lstrip().startswith(("[{", "[[")):
            raise  # JSON that breaks off, or nests without end
        return []  # there is no such command, or an old one
    checked: list[dict[str, Any]] = check.validate_python(found)
    return [each for each in checked if each.get(name)]  # there are empty entries
