"""Quick start of the commands: nothing is made ready that the one that was typed does not need."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from typer import BadParameter
from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.main import get_group

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.main import Typer


class Group(TyperGroup):
    """The program itself: its own commands, and those of :attr:`more`, which are imported once one is asked for."""

    #: Modules of which each has further commands in its ``app``.
    more: tuple[str, ...] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments as Typer does, or complete them."""
        _lighten(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, or none."""
        if cmd_name not in self.commands:
            self._complete()
        if command := super().get_command(ctx, cmd_name):
            _lighten(command.get_params(ctx))  # with --help
        return command

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        self._complete()
        return super().list_commands(ctx)

    def _complete(self) -> None:
        modules, self.more = self.more, ()
        for module in modules:
            app: Typer = importlib.import_module(module).app
            self.commands.update(get_group(app).commands)


# Typer asks pydantic to make text of text, and to load it for that takes as long as all the rest of the start.


def _is_ready(parameter: Any, value: Any) -> bool:
    """Tell whether a value that was typed, or is the default, is what the command gets."""
    if parameter.nargs != 1:
        return False
    if value is None or value == ():
        return not parameter.required
    kind = parameter.type_descriptor
    if kind.parameter_info.parser is not None:
        return False
    if parameter.multiple:
        return bool(kind.annotation == list[str]) and all(isinstance(each, str) for each in value)
    return kind.annotation is str and isinstance(value, str)


def _process(parameter: Any, ctx: Any, value: Any) -> Any:
    """Return a value that is ready as the command gets it, through the parameter's own callback if it has one."""
    value = tuple(value or ()) if parameter.multiple else value
    return parameter.callback(ctx, parameter, value) if parameter.callback else value


def _convert(process: Callable[[Any, Any], Any], ctx: Any, value: Any) -> Any:
    """Return what Typer makes of a value; an error that it raises does not begin with pydantic's name for it."""
    try:
        return process(ctx, value)
    except BadParameter as error:
        error.message = error.message.removeprefix("Value error, ")
        raise


class _Option(TyperOption):
    def process_value(self, ctx: Any, value: Any) -> Any:
        if _is_ready(self, value):
            return _process(self, ctx, value)
        return _convert(super().process_value, ctx, value)


class _Argument(TyperArgument):
    def process_value(self, ctx: Any, value: Any) -> Any:
        if _is_ready(self, value):
            return _process(self, ctx, value)
        return _convert(super().process_value, ctx, value)


def _lighten(parameters: list[Any]) -> None:
    for parameter in parameters:
        if type(parameter) is TyperOption:
            parameter.__class__ = _Option
        elif type(parameter) is TyperArgument:
            parameter.__class__ = _Argument
