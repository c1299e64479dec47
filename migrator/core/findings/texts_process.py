"""Texts of findings about whose a process is; see :mod:`migrator.core.findings.texts`."""

from __future__ import annotations

from migrator.core.findings.texts import Texts

#: What the process of the source is beside its command line: compared with what a process started at the target is.
PROCESS: Texts = {
    "process-unknown": (
        "warning",
        "the source's process may not be looked into, so that nothing is known of its directory and its open files",
        "let migrator be root on the source's host, or the user that QEMU runs as",
    ),
    "process-user": (
        "overridable",
        "QEMU cannot be started at the target as the user that it runs as at the source (uid in /proc/PID/status)",
        'let migrator be root at the target (ssh = "root@…"), or the same user there',
    ),
    "user-differs": (
        "warning",
        "the name of the user that QEMU runs as stands for another number at the target",
        "give that user the same uid and gid on all hosts: shared storage knows the numbers only",
    ),
    "user-missing": (
        "warning",
        "the target has no account for the uid that QEMU runs as; it is started under the number all the same",
        "make that user on all hosts, with the same uid and gid",
    ),
    "runas-missing": (
        "error",
        "the user that QEMU is to become (-runas, -run-with user=) does not exist at the target: it would not start",
        "make that user there, with the same uid and gid",
    ),
    "chroot": (
        "error",
        "QEMU has another root directory (-chroot): at the switch a destination would not find its images there",
        "start the guest without it, with -sandbox and a user of its own instead",
    ),
    "mount-namespace": (
        "error",
        "a path of the guest leads to another file in the mounts of the source's process than on its host",
        "start the guest outside of that container or sandbox, or mount the same there for the host",
    ),
    "user-namespace": (
        "overridable",
        "the source's process has a user namespace of its own: its users and rights are not those of its host",
        "start the guest outside of that container",
    ),
    "process-namespace": (
        "warning",
        "the source's process has namespaces of its own (a container, a sandbox); the destination has its host's",
        "see that what they keep from the guest is kept from it there by other means",
    ),
    "relative-path": (
        "error",
        "paths of the command line are relative, and the directory that they go from is not known or not at the target",
        "use absolute paths, or make that directory there",
    ),
    "image-unreachable": (
        "error",
        "QEMU opens an image again by its relative path at the switch, and its process has left that directory",
        "until the guest has moved, let a symbolic link lead there; start guests with absolute paths",
    ),
    "working-directory": (
        "warning",
        "the source's working directory is not at the target, or that user may not enter it; QEMU is started in /",
        "make that directory there",
    ),
    "disk-replaced": (
        "error",
        "the path of a disk does not lead to the file that the source has open: that was deleted, renamed or hidden",
        "put that file back under its name; cat of /proc/PID/fd/N still reads it",
    ),
    "run-directory": (
        "error",
        "the user that QEMU runs as may not enter the directory in which the destination has its sockets",
        "chmod o+x that directory and those above it, or configure another (run_dir)",
    ),
    "process-settings": (
        "warning",
        "groups, umask, limits, CPUs, scheduling, OOM adjustment, rights or label cannot be made as at the source",
        "let migrator be root at the target, or set it there after the move",
    ),
    "cgroup": (
        "warning",
        "the source is in a cgroup with limits, or a slice of its own, and the target has no systemd to make one",
        "put QEMU into such a cgroup there after the move",
    ),
}
