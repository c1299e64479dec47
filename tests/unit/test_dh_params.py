"""The group for Diffie-Hellman that hosts are given is the one of the standard, to the last bit."""

from __future__ import annotations

import base64

from migrator.pki.authority import DH_PARAMS

BITS = 3072


def e_times(bits: int) -> int:
    """Return 2^bits times e, without what is behind the point."""
    more = 64
    total, term, number = 0, 1 << (bits + more), 0
    while term:
        total, number = total + term, number + 1
        term //= number
    return total >> more


def test_group_is_ffdhe3072_of_rfc_7919() -> None:
    prime = (1 << BITS) - (1 << (BITS - 64)) + ((e_times(BITS - 130) + 2_625_351) << 64) - 1
    number = b"\0" + prime.to_bytes(BITS // 8, "big")
    integers = b"\x02\x82" + len(number).to_bytes(2, "big") + number + b"\x02\x01\x02"
    lines = DH_PARAMS.decode("ascii").splitlines()
    assert (lines[0], lines[-1]) == ("-----BEGIN DH PARAMETERS-----", "-----END DH PARAMETERS-----")
    found = base64.b64decode("".join(lines[1:-1]))
    assert found == b"\x30\x82" + len(integers).to_bytes(2, "big") + integers
