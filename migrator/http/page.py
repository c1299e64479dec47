"""The page at ``/``: one file, nothing from elsewhere."""

from __future__ import annotations

import functools
import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page; it asks the API for everything, with the cookie."""
    text, policy = _page()
    return Response(
        text,
        media_type="text/html",
        headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"},
    )


@functools.cache
def _page() -> tuple[str, str]:
    text = files("migrator.http").joinpath("page.html").read_text(encoding="utf-8")
    hashes = {
        tag: " ".join(
            f"'sha256-{_hash(found)}'" for found in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    # What is written in the page itself runs, whatever a guest's name would like to add to it.
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {hashes['script']}",
            f"style-src {hashes['style']}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )
    return text, policy


def _hash(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()
