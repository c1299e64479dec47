"""The directory of QEMU's certificates on a host: a piece of a script there, a pure function here. No key is read."""

from __future__ import annotations

from migrator.certificates import host_certificates
from migrator.core.process.certificates import CA_FILE, CLIENT_FILES, SERVER_FILES, HostCertificates
from migrator.errors import HostError
from migrator.hosts.access import HostAccess

_CERTIFICATES = (CA_FILE, SERVER_FILES[0], CLIENT_FILES[0])
_KEYS = (SERVER_FILES[1], CLIENT_FILES[1])
#: More bytes than any file of certificates has.
_MOST_BYTES = 65_536

# The directory is in $tls. What files hold is indented: no line of theirs is taken for one of ours.
SHOW_CERTIFICATES = rf"""
for f in {" ".join(_CERTIFICATES)}; do
  [ -e "$tls/$f" ] || continue
  if [ -r "$tls/$f" ] && [ -f "$tls/$f" ]; then
    echo "has $f"; head -c {_MOST_BYTES} -- "$tls/$f" | sed 's/^/ /'; echo
  else echo "unreadable $f"; fi
done
for f in {" ".join(_KEYS)}; do
  [ -e "$tls/$f" ] || continue
  if grep -q ENCRYPTED -- "$tls/$f" 2>/dev/null; then echo "passphrase $f"; else echo "key $f"; fi
done
"""


async def read_certificates(access: HostAccess, directory: str) -> HostCertificates:
    """Read a directory of certificates.

    :raise HostError: the host cannot be asked.
    """
    script = f"tls=$1{SHOW_CERTIFICATES}echo end\n".encode()
    output = await access.run(["sh", "-s", "--", directory], stdin=script)
    if not output.text.endswith("end\n"):
        raise HostError(access.name, f"its certificates cannot be read: {output.complaint or 'no answer'}")
    return parse_certificates(directory, output.text)


def parse_certificates(directory: str, text: str) -> HostCertificates:
    """Parse what :data:`SHOW_CERTIFICATES` printed. Pure."""
    certificates: dict[str, list[str]] = {}
    keys: list[str] = []
    problems: list[str] = []
    current: list[str] = []
    for line in text.splitlines():
        if line.startswith(" "):
            current.append(line[1:])
            continue
        kind, _, name = line.partition(" ")
        if kind == "has" and name in _CERTIFICATES:
            current = certificates[name] = []
        elif kind == "key" and name in _KEYS:
            keys.append(name)
        elif kind == "passphrase" and name in _KEYS:
            problems.append(f"{name} has a passphrase, which nobody would be there to give")
        elif kind == "unreadable" and name in _CERTIFICATES:
            problems.append(f"{name} cannot be read")
    return host_certificates(
        directory,
        {name: "\n".join(lines).encode(errors="replace") for name, lines in certificates.items()},
        keys=keys,
        problems=problems,
    )
