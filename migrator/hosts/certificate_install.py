"""Puts certificates and keys into the directory of a host that QEMU reads them from."""

from __future__ import annotations

from collections.abc import Mapping

from migrator.core.process.certificates import CLIENT_FILES, DH_FILE, SERVER_FILES
from migrator.errors import HostError
from migrator.hosts.access import HostAccess

_KEYS = frozenset({SERVER_FILES[1], CLIENT_FILES[1]})

# Arguments: the directory, and who shall own the keys (empty: who owns those that are there). What is new is complete
# before the first file of it is put in its place.
_BEGIN = r"""set -e
umask 077
d=$1 owner=$2
[ -d "$d" ] || { mkdir -p -- "$d" && chmod 0755 "$d"; }
if [ -z "$owner" ] && [ -e "$d/server-key.pem" ]; then owner=$(stat -c %u:%g -- "$d/server-key.pem"); fi
new=$(mktemp -d -- "$d/.new-XXXXXXXX")
trap 'rm -rf -- "$new"' EXIT
"""
_END = rf"""[ -z "$owner" ] || chown -- "$owner" "$new"/*-key.pem
[ ! -e "$d/{DH_FILE}" ] || rm -f -- "$new/{DH_FILE}"
sync "$new"/* 2>/dev/null || :
for f in "$new"/*.pem; do mv -f -- "$f" "$d/${{f##*/}}"; done
echo done
"""
_LAST = "--- end of file ---"


async def install_certificates(
    access: HostAccess, directory: str, files: Mapping[str, bytes], *, owner: str = ""
) -> None:
    """Write the files of a directory of certificates: keys of mode 0600, the others for all to read.

    A group for Diffie-Hellman that is there already stays as it is.

    :param files: content in PEM, by name.
    :param owner: of the keys, ``USER`` or ``USER:GROUP``; empty: whoever owns those that are there, else who writes.
    :raise HostError: the host cannot be asked, or they cannot be written there; what was there stays then, as long as
        no file of the new ones is in its place.
    """
    script = [_BEGIN]
    for name, content in files.items():
        mode = "0600" if name in _KEYS else "0644"
        text = content.decode("ascii")
        script.append(
            f'cat >"$new/{name}" <<\'{_LAST}\'\n{text.rstrip()}\n{_LAST}\nchmod {mode} "$new/{name}"\n'
        )
    script.append(_END)
    output = await access.run(["sh", "-s", "--", directory, owner], stdin="".join(script).encode())
    if not output.text.endswith("done\n"):
        raise HostError(
            access.name,
            f"certificates cannot be put into {directory}: {output.complaint or 'no answer'}",
        )
