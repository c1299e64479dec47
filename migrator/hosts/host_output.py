"""Parsing of what commands on a host print, without trust: it is understood, or a :class:`HostError` says what is not.

A host may have been broken into, or have programs that print otherwise than those we know. Whatever they print costs
that host, and nothing else.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from pydantic_core import CoreSchema, SchemaValidator, from_json
from pydantic_core import core_schema as form

from migrator.errors import HostError
from migrator.text import clean

#: What reading a text raises that is not what its reader expects. RuntimeError: a generator that wanted more of it.
_STRANGE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(StopIteration, RuntimeError),
)
#: The greatest number that is believed: above what any machine has of anything, and below what a float loses.
_GREATEST = 2**60


class reading_output:  # noqa: N801 - it is used like a function
    """Context for parsing a host's output: ``with reading_output(host, "its sockets"):``.

    :raise HostError: it could not be read.
    """

    def __init__(self, host: str, what: str) -> None:
        self._host, self._what = host, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, _STRANGE):
            why = clean(" ".join(str(error)[:300].split())) or type(error).__name__
            raise HostError(
                self._host, f"what it shows of {self._what} cannot be understood ({why})"
            ) from error


def number(text: str, base: int = 10) -> int:
    """Parse a number that a machine may have.

    :raise ValueError: it is none.
    """
    found = int(text[:64], base)
    if abs(found) > _GREATEST or len(text) > 64:
        raise ValueError(f"{text[:20]}… is no number of anything")
    return found


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
