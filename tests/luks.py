"""Images in LUKS format, made without QEMU.

``qemu-img create -f luks`` first measures how fast this machine derives keys, by the CPU time that the kernel has
counted for a thread. It counts that now and then, so it may say that nothing was used; QEMU (7.2.22 and 10.0.2) then
fails with "Unable to get accurate CPU usage", whatever ``iter-time`` says. What is written here is the format's version
1 with few iterations, which a QEMU opens at once.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_SECTOR, _KEY_BYTES, _STRIPES, _ITERATIONS, _SLOTS = 512, 64, 4000, 1000, 8
#: Where the material of the first slot begins, and of each other after the one before, in sectors.
_FIRST, _EACH = 8, 504
_ENABLED, _DISABLED = 0x00AC71F3, 0x0000DEAD
HEADER_BYTES = (_FIRST + _SLOTS * _EACH) * _SECTOR


def write_luks(path: Path, secret: str, size_bytes: int) -> None:
    """Write an image of which a guest sees so many bytes, with one slot that the secret opens."""
    master = os.urandom(_KEY_BYTES)
    salt, slot_salt = os.urandom(32), os.urandom(32)
    digest = hashlib.pbkdf2_hmac("sha256", master, salt, _ITERATIONS, 20)
    header = struct.pack(
        ">6sH32s32s32sII20s32sI40s",
        *(b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256"),
        *(HEADER_BYTES // _SECTOR, _KEY_BYTES, digest, salt, _ITERATIONS, str(uuid.uuid4()).encode()),
    )
    for number in range(_SLOTS):
        opens = number == 0
        header += struct.pack(
            ">II32sII",
            *((_ENABLED, _ITERATIONS, slot_salt) if opens else (_DISABLED, 0, b"")),
            *(_FIRST + number * _EACH, _STRIPES),
        )
    key = hashlib.pbkdf2_hmac("sha256", secret.encode(), slot_salt, _ITERATIONS, _KEY_BYTES)
    with path.open("wb") as file:
        file.write(header)
        file.seek(_FIRST * _SECTOR)
        file.write(_encrypted(key, _split(master)))
        file.truncate(HEADER_BYTES + size_bytes)


def _split(key: bytes) -> bytes:
    """Return a key spread over stripes, all of which are needed to have it back."""
    stripes, spread = b"", bytes(_KEY_BYTES)
    for _ in range(_STRIPES - 1):
        stripe = os.urandom(_KEY_BYTES)
        stripes, spread = stripes + stripe, _diffused(_xor(spread, stripe))
    return stripes + _xor(spread, key)


def _diffused(block: bytes) -> bytes:
    parts = [block[start : start + 32] for start in range(0, len(block), 32)]
    return b"".join(
        hashlib.sha256(number.to_bytes(4, "big") + part).digest()[: len(part)]
        for number, part in enumerate(parts)
    )


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def _encrypted(key: bytes, content: bytes) -> bytes:
    return b"".join(
        Cipher(algorithms.AES(key), modes.XTS((start // _SECTOR).to_bytes(16, "little")))
        .encryptor()
        .update(content[start : start + _SECTOR])
        for start in range(0, len(content), _SECTOR)
    )
