"""``migrator config check``: everything that keeps the service from starting with a configuration."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from migrator import settings as configuration
from migrator.cli import Exit
from migrator.errors import UsageError
from migrator.settings import DEFAULT_PATH, Settings
from migrator.site.from_settings import make_site
from migrator.store.place import journal_name
from migrator.text import clean


def main(file: Path | None, *, json_output: bool) -> None:
    """Print what is wrong, a line each, and exit with 2; or what is configured."""
    path = file or DEFAULT_PATH
    try:
        settings = configuration.load(path, also=_missing)
        make_site(settings)  # connects nothing
    except UsageError as error:
        problems = str(error).splitlines()
        if json_output:
            print(json.dumps({"ok": False, "file": str(path), "problems": problems}))
        else:
            for problem in problems:
                print(clean(problem))
        sys.exit(Exit.USAGE)
    if json_output:
        print(json.dumps({"ok": True, "file": str(path), "problems": [], **document(settings)}))
    else:
        for line in summary(settings, path):
            print(clean(line))


def _missing(settings: Settings) -> list[str]:
    """Return the files without which the service would not start.

    Whether it may read them only its own user can tell: that is the doctor's question.
    """
    named = [
        (f"{section}.{key}", getattr(found, key))
        for section, found in (("http", settings.http), ("mqtt", settings.mqtt))
        for key in ("tls_ca", "tls_certificate", "tls_key")
        if getattr(found, key, None) is not None
    ]
    return [f"{name}: {path} is not there" for name, path in named if not path.exists()]


def document(settings: Settings) -> dict[str, Any]:
    """Return the configuration in short, without a secret."""
    return {
        "files": [str(each) for each in settings.files],
        "site": settings.site.name,
        "hosts": [host.name for host in settings.hosts],
        "policies": sorted(settings.policies),
        "guests": [guest.match for guest in settings.guests],
        "http": [str(place) for place in (settings.http.socket, settings.http.listen) if place is not None],
        "broker": f"{settings.mqtt.host}:{settings.mqtt.broker_port}" if settings.mqtt.host else None,
        "journal": journal_name(settings.store),
    }


def summary(settings: Settings, path: Path) -> list[str]:
    """Return the configuration in short, in lines for a person."""
    more = len(settings.files) - 1
    included = f" and {more} included file{'s' if more > 1 else ''}" if more else ""
    how = Counter("over SSH" if host.ssh is not None else "on this machine" for host in settings.hosts)
    ways = ", ".join(f"{count} {way}" for way, count in how.items())
    http = settings.http
    places = [
        f"unix:{http.socket}" if http.socket else "",
        f"{'https' if http.tls_key else 'http'}://{http.listen}" if http.listen else "",
        f"metrics at http://{http.metrics_listen}" if http.metrics_listen else "",
    ]
    mqtt = settings.mqtt
    operators = ", ".join(mqtt.operators) or "nobody"
    broker = (
        f"{mqtt.host}:{mqtt.broker_port}{' with TLS' if mqtt.tls else ''}; operators: {operators}"
        if mqtt.host
        else "none"
    )
    policies = ", ".join(sorted(settings.policies)) or "those built in"
    return [
        f"ok: {path}{included}",
        f"site      {settings.site.name}, instance {settings.site.instance}",
        f"hosts     {len(settings.hosts)}" + (f" ({ways})" if ways else "; add [[hosts]]"),
        f"guests    {len(settings.guests)} {'entry' if len(settings.guests) == 1 else 'entries'} of [[guests]]",
        f"policies  {policies}; default: {settings.site.default_policy}",
        f"http      {', '.join(place for place in places if place)}",
        f"broker    {broker}",
        f"journal   {journal_name(settings.store)}",
    ]
