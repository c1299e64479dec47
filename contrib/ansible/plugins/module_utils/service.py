"""A migrator service, for the modules of this collection: needs nothing but Python's own library."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import time
import uuid
from urllib.parse import quote, urlencode, urlsplit

SOCKET = "unix:/run/migrator/api.sock"
#: As the document of an evacuation has them: guests that are no longer its concern.
_SETTLED = ("moved", "gone", "saved")
_HTTP_UNAVAILABLE = 503
_HTTP_PROBLEMS = 400
#: Guests that are named in a message; the result has all.
_NAMED = 5

#: Of every module, besides its own.
OPTIONS = {
    "server": {"type": "str"},
    "token_file": {"type": "path", "no_log": False},
    "ca_file": {"type": "path"},
    "timeout": {"type": "float", "default": 70.0},
    "away_timeout": {"type": "float", "default": 300.0},
}
#: Of modules that have guests moved; doc_fragments/moving.py says what they are.
MOVING = {
    "host": {"type": "str", "required": True},
    "policy": {"type": "str"},
    "wait": {"type": "bool", "default": True},
    "wait_timeout": {"type": "float", "default": 7200.0},
    "poll": {"type": "float", "default": 2.0},
}


class ServiceError(Exception):
    """What went wrong, in one line.

    :ivar code: of the service's problem; empty where there is none.
    :ivar result: what is known besides, for the task's result.
    """

    def __init__(self, message, code="", **result):
        super().__init__(one_line(message))
        self.code = code
        self.result = result


class Away(ServiceError):
    """The service gave no answer."""


class Document(dict):
    """An object of an answer; a part that it lacks, and that every migrator gives, is a :class:`ServiceError`."""

    def __missing__(self, key):
        raise ServiceError(f"what answers is no migrator, or another version: its answer lacks {key!r}")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("migrator", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Service:
    """One service.

    :param params: of the module: see :data:`OPTIONS`.
    :raise ServiceError: they cannot be used.
    """

    def __init__(self, params):
        self.server = (params["server"] or os.environ.get("MIGRATOR_SERVER") or SOCKET).rstrip("/")
        self._timeout = params["timeout"]
        self._away_seconds = params["away_timeout"]
        self._headers = {"Accept": "application/json", "User-Agent": "ansible"}
        token = os.environ.get("MIGRATOR_TOKEN", "")
        if params["token_file"]:
            token = _first_line(params["token_file"])
        if token:
            self._headers["Authorization"] = "Bearer " + token
        self._tls = None
        if self.server.startswith("https://"):
            try:
                self._tls = ssl.create_default_context(cafile=params["ca_file"])
            except (OSError, ssl.SSLError) as error:
                raise ServiceError(f"ca_file: {params['ca_file']}: {_reason(error)}") from None
        self._check_address()

    def _check_address(self):
        if self.server.startswith("unix:"):
            return
        try:
            parts = urlsplit(self.server)
            host = parts.hostname if parts.port != 0 else None  # one that is no number is an error
        except ValueError:
            host = None
        if not host or not self.server.startswith(("http://", "https://")):
            raise ServiceError(f"server: {self.server} is no address: write unix:PATH or https://HOST:PORT")
        if self.server.startswith("http:") and host not in ("localhost", "127.0.0.1", "::1"):
            raise ServiceError(
                f"server: {self.server} would show the token to everyone on the way: use https://"
            )

    def get(self, *path, **query):
        """Return the document at a path, whose parts are given.

        :raise ServiceError: the service answers with a problem, or not at all.
        """
        given = {key: value for key, value in query.items() if value is not None}
        return self._request("GET", _path(path) + ("?" + urlencode(given) if given else ""), None, {})

    def post(self, *path, **body):
        """Give a command, once: with a lost answer it is sent again under the same key.

        :raise ServiceError: the service refused, or gave no answer; then it may have taken the command.
        """
        given = json.dumps({key: value for key, value in body.items() if value is not None})
        key = {"Idempotency-Key": str(uuid.uuid4()), "Content-Type": "application/json"}
        return self.patiently(lambda: self._request("POST", _path(path), given, key))

    def items(self, *path, **query):
        """Return the items of a list, all of them."""
        items = self.get(*path, **query)["items"]
        if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
            raise ServiceError(f"what answers at {self.server} is no migrator: it lists nothing")
        return items

    def wait(self, begun, seconds, poll):
        """Return the document of an evacuation or a restore once it has ended.

        :raise ServiceError: it has not within so many seconds, it goes on; or the service stays away.
        """
        until = time.monotonic() + seconds
        one = begun
        while one["ended_at"] is None:
            if time.monotonic() > until:
                raise ServiceError(
                    f"{one['id']} goes on, after {seconds:g} s: {left_text(one)}; "
                    "wait_timeout is how long this task waits for it",
                    evacuation=one,
                )
            time.sleep(poll)
            one = self.patiently(lambda: self.get("evacuations", begun["id"]))
        return one

    def under_way(self, host):
        """Return what empties or fills a host now, or ``None``."""
        running = self.items("evacuations", active="true", host=host)
        return next((each for each in running if each["state"] != "scheduled"), None)

    def patiently(self, ask):
        """Return what `ask` returns, which is called again while the service is away, up to `away_timeout`.

        :raise ServiceError: the service answers with a problem, or stays away.
        """
        until = time.monotonic() + self._away_seconds
        while True:
            try:
                return ask()
            except Away:
                if time.monotonic() > until:
                    raise
                time.sleep(min(1.0, self._away_seconds / 10 + 0.01))

    def _request(self, method, path, body, headers):
        connection = self._connection()
        try:
            connection.request(method, "/api/v1/" + path, body=body, headers={**self._headers, **headers})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Away(f"no answer from the service at {self.server}: {_reason(error)}") from None
        finally:
            connection.close()
        try:
            document = json.loads(text, object_hook=Document)
        except (ValueError, RecursionError):  # the latter of brackets in thousands
            document = None
        if not isinstance(document, dict) or answer.status in range(300, 400):
            raise Away(f"what answers at {self.server} is no migrator (status {answer.status})")
        if answer.status == _HTTP_UNAVAILABLE:
            raise Away(f"the service at {self.server}: {one_line(document.get('detail')) or 'unavailable'}")
        if answer.status >= _HTTP_PROBLEMS:
            raise ServiceError(
                one_line(document.get("detail")) or f"the service at {self.server}: status {answer.status}",
                document.get("code", ""),
                findings=document.get("findings", []),
            )
        return document

    def _connection(self):
        if self.server.startswith("unix:"):
            return _UnixConnection(self.server[len("unix:") :], self._timeout)
        parts = urlsplit(self.server)
        if self._tls is not None:
            return http.client.HTTPSConnection(
                parts.hostname, parts.port or 443, timeout=self._timeout, context=self._tls
            )
        return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=self._timeout)


def left_text(one):
    """Return who is left of an evacuation or a restore, and why, in one line."""
    left = [each for each in one["guests"] if each["standing"] not in _SETTLED]
    if not left:
        return one["error"] or one["state"]
    told = ", ".join(f"{guest_text(each)} ({each['standing']}{_why(each)})" for each in left[:_NAMED])
    more = f", and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    still = {"restore": "not at home", "group": "not moved"}.get(one["kind"], f"still on {one['host']}")
    return f"{len(left)} of {len(one['guests'])} guests {still}: {told}{more}"


def guest_text(guest):
    """Return how people call a guest of an evacuation or a plan."""
    return guest["guest_name"] or guest["guest"]


def _why(guest):
    return f": {guest['reason']}" if guest["reason"] else ""


def one_line(text):
    """Return a text without what would steer a terminal: guests have any names; empty where it is none."""
    if not isinstance(text, str):
        return ""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _path(parts):
    return "/".join(quote(part, safe="") for part in parts)


def _first_line(path):
    try:
        with open(path, encoding="utf-8") as file:
            token = file.readline().strip()
    except (OSError, ValueError) as error:
        raise ServiceError(f"token_file: {path}: {_reason(error)}") from None
    if not token or not token.isascii() or not token.isprintable():
        raise ServiceError(f"token_file: the first line of {path} is no token")
    return token


def _reason(error):
    if isinstance(error, socket.timeout):
        return "it takes longer than the time-out"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
