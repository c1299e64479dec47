"""The page at ``/``: plain files, served as they are; nothing comes from elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter
from starlette.responses import Response

from migrator.http.problems import ProblemError

router = APIRouter()

_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
#: In the page's own files, whatever a guest's name would like to add to it: no inline script or style runs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
#: In ``index.html``: the directory that the other files are served from, and one line for each module.
_BASE, _PRELOADS = "{{base}}", "{{preloads}}"


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page; it asks the API for everything, with the cookie."""
    return Response(
        _index(),
        media_type="text/html",
        headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"},
    )


@router.get("/page/{version}/{name:path}", include_in_schema=False)
async def part(version: str, name: str) -> Response:
    """One file of the page; its address changes with the content of any of them, so that a browser may keep it."""
    found = _files().get(name)
    if found is None or version != _version():
        raise ProblemError(404, "not-found", "the page has no such file: load it again")
    return Response(
        found,
        media_type=_TYPES[name[name.rindex(".") :]],
        headers={"Cache-Control": "public, max-age=31536000, immutable"},
    )


@functools.cache
def _index() -> str:
    text = files("migrator.http").joinpath("page", "index.html").read_text(encoding="utf-8")
    base = f"/page/{_version()}"
    modules = (
        f'<link rel="modulepreload" href="{base}/{each}">' for each in _files() if each.endswith(".js")
    )
    return text.replace(_BASE, base).replace(_PRELOADS, "\n".join(modules))


@functools.cache
def _files() -> Mapping[str, bytes]:
    return dict(sorted(_below(files("migrator.http").joinpath("page"), "")))


def _below(directory: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for each in directory.iterdir():
        if each.is_dir():
            yield from _below(each, f"{prefix}{each.name}/")
        elif each.name.endswith(tuple(_TYPES)):
            yield f"{prefix}{each.name}", each.read_bytes()


@functools.cache
def _version() -> str:
    return sha256(b"".join(name.encode() + text for name, text in _files().items())).hexdigest()[:16]
