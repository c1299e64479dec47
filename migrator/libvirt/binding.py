"""libvirt's Python binding, where it is installed."""

from __future__ import annotations

import sys
import threading
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from migrator.errors import UsageError

#: Tells what to install where it is missing.
MISSING = (
    "guests of libvirt take its Python binding, which is not installed: pip install 'migrator[libvirt]', "
    "make install LIBVIRT=1, or apt-get install python3-libvirt (docs/libvirt.md)"
)
#: Where Debian has its package of it, which a virtual environment does not see.
_DEBIAN = Path("/usr/lib/python3/dist-packages")
#: Levels of an error, which share their prefix with the codes.
_LEVELS = {"VIR_ERR_NONE", "VIR_ERR_WARNING", "VIR_ERR_ERROR"}


#: Its modules are loaded once, whichever thread needs them first.
_loading = threading.Lock()


@cache
def load() -> Any:
    """Return the binding's module; its errors are raised and not printed.

    :raise UsageError: it is not installed; says what to install.
    """
    with _loading:
        try:
            import libvirt  # noqa: PLC0415 - only where a host has guests of libvirt
        except ImportError:
            libvirt = load_from(_DEBIAN)
    libvirt.registerErrorHandler(lambda context, error: None, None)
    return libvirt


def load_from(directory: Path) -> Any:
    """Return the binding that a package of the system has in a directory, if this Python can run it; nothing else there
    is seen.

    :raise UsageError: there is none for this Python; says what to install.
    """
    module: Any = None
    for name in ("libvirtmod", "libvirt"):  # which the second imports
        spec = PathFinder.find_spec(name, [str(directory)])
        if spec is None or spec.loader is None:
            raise UsageError(MISSING)
        module = sys.modules[name] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            raise UsageError(MISSING) from error
    return module


def is_installed() -> bool:
    """Return whether the binding is there."""
    try:
        load()
    except UsageError:
        return False
    return True


@cache
def _codes() -> dict[int, str]:
    module = load()
    names = [name for name in dir(module) if name.startswith("VIR_ERR_") and name not in _LEVELS]
    return {getattr(module, name): name for name in names}


def error_code(error: Any) -> str:
    """Return the name of an error's code (``VIR_ERR_NO_DOMAIN``)."""
    return _codes().get(error.get_error_code(), "VIR_ERR_UNKNOWN")


def error_text(error: Any) -> str:
    """Return what libvirt says of an error, in one line."""
    return " ".join(str(error.get_error_message() or error).split())
