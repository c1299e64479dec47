"""Images that can be copied to another host as they are, and those that cannot. Pure."""

from __future__ import annotations

from migrator.core.preflight.facts import Disk

#: Formats of which an image is made anew at the target with the same features.
COPIED_FORMATS = ("raw", "qcow2", "luks")


#: The most that a guest stands still so that its mirrors can be ended: in its policy's ceilings, or in seconds if that
#: is more.
_END_CEILINGS, _LEAST_END_SECONDS = 4.0, 1.0
#: How fast mirrors are while the guest stands still shows after so long.
_RATE_SECONDS = 0.2


def longest_end_seconds(ceiling_seconds: float) -> float:
    """Return for how long a guest may stand still for its disks alone before its move is undone."""
    return max(_LEAST_END_SECONDS, _END_CEILINGS * ceiling_seconds)


def seconds_to_end(
    left_bytes: int, *, sent_bytes: int, passed_seconds: float, carried_bytes_per_second: float
) -> float:
    """Return how long a guest will stand still yet until its mirrors can be ended, at the best.

    :param sent_bytes: since it stands still, which is `passed_seconds` ago.
    :param carried_bytes_per_second: the most that was ever seen to be carried; 0: nothing was.
    """
    now = sent_bytes / passed_seconds if passed_seconds >= _RATE_SECONDS else 0.0
    fastest = max(now, carried_bytes_per_second)
    return left_bytes / fastest if fastest > 0 else 0.0


def why_not_copied(disk: Disk) -> str:
    """Return why a disk cannot be copied without losing something; empty where it can."""
    image = disk.image
    if disk.format not in COPIED_FORMATS:
        return f"its driver is {disk.format}, and images of raw, qcow2 and luks are copied"
    if image.encrypted and not (disk.format == "luks" and image.header_bytes):
        return "it is encrypted: its header, with the keys, would be made anew, and its contents be sent in clear"
    if image.snapshots:
        return f"its {image.snapshots} internal snapshots would stay behind"
    if image.bitmaps:
        return f"its {image.bitmaps} persistent dirty bitmaps would stay behind"
    if image.data_file:
        return "its contents are in a file of their own (data_file)"
    return ""
