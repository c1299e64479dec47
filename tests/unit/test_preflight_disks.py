"""What speaks against a host because of disks: files that are missing, not the same, or cached unsafely."""

from __future__ import annotations

from dataclasses import replace

import pytest

from migrator.core.policy import CopiedDisks
from migrator.core.preflight import host_disks
from migrator.core.process.command_line import CommandLine, ImageUse
from migrator.core.process.files import FileFacts, FileKind, SameFile, parent, same_file
from migrator.core.process.image_paths import ImagePaths
from tests.host_case import (
    ARGV,
    BASE,
    BASE_SEEN,
    CASE,
    DISK,
    FILE,
    IMAGE,
    SEEN,
    SOURCE,
    THERE,
    codes,
    with_files,
    with_options,
    with_source,
)


def node(text: str) -> list[str]:
    """A block node in JSON that opens the image, with double quotes for single ones."""
    return [text.replace("'", '"').replace("IMAGE", IMAGE)]


GIB = 1 << 30


class TestDisks:
    @pytest.mark.parametrize(
        ("there", "found"),
        [
            (FileFacts(), ["disk-file-missing"]),
            (replace(FILE, filesystem="ext4", mount_source="/dev/vda1"), ["disk-not-shared"]),
            (replace(FILE, kind=FileKind.BLOCK), ["disk-not-shared"]),
            (replace(FILE, mount_source="10.0.0.1:/export"), ["disk-maybe-not-shared"]),
            (replace(FILE, inode=9), ["disk-maybe-not-shared"]),
            (replace(FILE, writable=False), ["disk-access"]),
            (replace(FILE, readable=False, writable=False), ["disk-access"]),
        ],
    )
    def test_file_at_the_target(self, there: FileFacts, found: list[str]) -> None:
        assert codes(with_files(CASE, {IMAGE: there})) == found

    @pytest.mark.parametrize(("probed", "found"), [(SameFile.YES, []), (SameFile.NO, ["disk-not-shared"])])
    def test_what_identities_do_not_tell_a_probe_does(self, probed: SameFile, found: list[str]) -> None:
        case = with_files(CASE, {IMAGE: replace(FILE, mount_source="10.0.0.1:/export")})
        assert host_disks.paths_to_probe(case) == [IMAGE]
        assert codes(replace(case, probed={IMAGE: probed})) == found
        assert host_disks.paths_to_probe(CASE) == []

    @pytest.mark.parametrize(
        ("there", "found"),
        [
            (FILE, ["disk-not-copied"]),
            (replace(FILE, inode=9), ["disk-maybe-not-shared", "disk-not-copied"]),
            (replace(FILE, filesystem="ext4", mount_source="/dev/vda1"), ["disk-not-shared"]),
        ],
    )
    def test_one_that_may_be_shared_is_not_written_over_with_itself(
        self, there: FileFacts, found: list[str]
    ) -> None:
        assert CASE.policy is not None
        case = replace(CASE, policy=replace(CASE.policy, disks=CopiedDisks.ALL))
        assert sorted(codes(with_files(case, {IMAGE: there}))) == found
        remote = with_source(disks=(replace(DISK, file="rbd:a/b"),))
        assert codes(replace(remote, policy=case.policy))[:1] == ["disk-not-copied"]

    @pytest.mark.parametrize(
        ("filesystem", "disks", "found"),
        [
            ("nfs4", CopiedDisks.AUTO, "disk-file-missing"),
            ("ceph", CopiedDisks.AUTO, "disk-file-missing"),
            ("nfs4", CopiedDisks.ALL, "disk-copied"),
            ("ext4", CopiedDisks.AUTO, "disk-copied"),
        ],
    )
    def test_one_on_storage_that_may_just_not_be_mounted_there_is_not_copied_unasked(
        self, filesystem: str, disks: CopiedDisks, found: str
    ) -> None:
        assert CASE.policy is not None
        case = with_source(disks=(replace(DISK, format="raw"),))
        case = replace(case, policy=replace(CASE.policy, disks=disks))
        local = replace(FILE, filesystem=filesystem, size_bytes=GIB)
        case = with_files(case, {IMAGE: local}, here=True)
        place = FileFacts(
            kind=FileKind.DIRECTORY, readable=True, writable=True, executable=True, free_bytes=1 << 40
        )
        assert codes(with_files(case, {IMAGE: FileFacts(), parent(IMAGE): place})) == [found]

    @pytest.mark.parametrize(
        ("volumes", "form", "size", "found"),
        [
            (True, "raw", GIB, "disk-copied"),
            (False, "raw", GIB, "disk-not-copied"),
            (True, "qcow2", 2 * GIB, "disk-copied"),
            (True, "luks", GIB, "disk-not-copied"),
            (True, "raw", 2 * GIB, "disk-not-copied"),
        ],
    )
    def test_block_device_is_copied_where_the_target_can_make_one(
        self, volumes: bool, form: str, size: int, found: str
    ) -> None:
        case = with_source(disks=(replace(DISK, format=form),))
        case = replace(case, volumes=volumes)
        device = replace(FILE, kind=FileKind.BLOCK, filesystem="devtmpfs", size_bytes=size)
        case = with_files(case, {IMAGE: device}, here=True)
        assert codes(with_files(case, {IMAGE: FileFacts(), parent(IMAGE): FileFacts()})) == [found]

    @pytest.mark.parametrize(
        ("form", "there", "volumes", "found"),
        [
            ("raw", "/srv/a.qcow2", False, "disk-copied"),
            ("raw", "/dev/vg0/a.qcow2", True, "disk-copied"),
            ("qcow2", "/dev/vg0/a.qcow2", True, "disk-copied"),
            ("raw", "/dev/vg0/a.qcow2", False, "disk-not-copied"),
        ],
    )
    def test_image_that_goes_to_another_directory_is_looked_for_there(
        self, form: str, there: str, volumes: bool, found: str
    ) -> None:
        above = parent(there)
        case = with_source(disks=(replace(DISK, format=form),))
        elsewhere = ImagePaths(here={"fast": "/images"}, there={"fast": above})
        case = with_files(replace(case, volumes=volumes, image_paths=elsewhere), {}, here=True)
        case = with_files(case, {IMAGE: replace(FILE, filesystem="ext4", size_bytes=GIB)}, here=True)
        place = FileFacts(
            kind=FileKind.DIRECTORY, readable=True, writable=True, executable=True, free_bytes=1 << 40
        )
        assert codes(with_files(case, {there: FileFacts(), above: place})) == [found]
        other = replace(FILE, filesystem="ext4", mount_source="/dev/vda1")
        assert "disk-not-shared" in codes(with_files(case, {there: other, above: place}))

    def test_raw_image_of_which_the_guest_sees_a_part_is_not_copied(self) -> None:
        case = with_source(disks=(replace(DISK, format="raw", virtual_bytes=GIB),))
        for size, found in (
            (GIB - 511, "disk-copied"),
            (GIB - 512, "disk-not-copied"),
            (GIB + 1, "disk-not-copied"),
        ):
            local = replace(FILE, filesystem="ext4", size_bytes=size)
            place = FileFacts(
                kind=FileKind.DIRECTORY, readable=True, writable=True, executable=True, free_bytes=1 << 40
            )
            seen = with_files(case, {IMAGE: local}, here=True)
            assert codes(with_files(seen, {IMAGE: FileFacts(), "/images": place})) == [found]

    def test_read_only_disk_may_be_a_copy_of_the_same_size(self) -> None:
        case = with_source(disks=(replace(DISK, read_only=True),))
        copy = replace(FILE, filesystem="ext4", mount_source="/dev/vda1", writable=False)
        assert codes(with_files(case, {IMAGE: copy})) == []
        assert codes(with_files(case, {IMAGE: replace(copy, size_bytes=1)})) == ["disk-size"]
        assert codes(with_files(case, {IMAGE: replace(copy, readable=False)})) == ["disk-access"]
        assert host_disks.paths_to_probe(case) == []

    def test_one_kernel_tells_for_certain(self) -> None:
        one = replace(CASE, there=replace(THERE, boot_id="one"))
        local = replace(FILE, filesystem="ext4")
        one = with_files(with_files(one, {IMAGE: local}), {IMAGE: local}, here=True)
        assert codes(one) == []
        assert codes(with_files(one, {IMAGE: replace(local, inode=9)})) == ["disk-not-shared"]
        assert codes(with_files(one, {IMAGE: replace(local, device="0:51")})) == ["disk-not-shared"]

    @pytest.mark.parametrize(
        ("drive", "found"),
        [
            ("cache=none", []),
            ("cache=directsync", []),
            ("cache.direct=on", []),
            ("cache=writeback", ["cache-unsafe"]),
            ("cache=writethrough", ["cache-unsafe"]),
            ("cache=unsafe", ["cache-unsafe"]),
            ("cache=none,cache.direct=off", ["cache-unsafe"]),
            ("", ["cache-unsafe"]),
            ("cache=none,snapshot=on", ["snapshot"]),
            ("cache=none,file.locking=off", ["disk-lock-off"]),
        ],
    )
    def test_how_a_drive_is_opened(self, drive: str, found: list[str]) -> None:
        argv = [word for word in ARGV if not word.startswith("file=")]
        argv[argv.index("-drive") + 1 : argv.index("-drive") + 1] = [
            f"file={IMAGE},if=none,format=qcow2,{drive}"
        ]
        assert codes(replace(CASE, command=CommandLine(argv))) == found

    @pytest.mark.parametrize(
        ("nodes", "found"),
        [
            ([f"driver=file,node-name=f,filename={IMAGE},cache.direct=on", "qcow2,file=f,node-name=d"], []),
            ([f"driver=file,node-name=f,filename={IMAGE}", "qcow2,file=f,cache.direct=on"], ["cache-unsafe"]),
            ([f"driver=qcow2,cache.direct=on,file.driver=file,file.filename={IMAGE}"], []),
            (
                node(
                    "{'driver':'qcow2','file':{'driver':'file','filename':'IMAGE','cache':{'direct':true}}}"
                ),
                [],
            ),
            (
                node(
                    "{'driver':'qcow2','cache':{'direct':true},'file':{'driver':'file','filename':'IMAGE'}}"
                ),
                [],
            ),
            (node("{'driver':'qcow2','file':{'driver':'file','filename':'IMAGE'}}"), ["cache-unsafe"]),
            (
                node(
                    "{'driver':'qcow2','cache':{'direct':true},"
                    "'file':{'driver':'file','filename':'IMAGE','locking':'off'}}"
                ),
                ["disk-lock-off"],
            ),
        ],
    )
    def test_how_a_block_node_is_opened(self, nodes: list[str], found: list[str]) -> None:
        at = ARGV.index("-drive")
        argv = [*ARGV[:at], *(word for node in nodes for word in ("-blockdev", node)), *ARGV[at + 2 :]]
        assert codes(replace(CASE, command=CommandLine(argv))) == found

    def test_page_cache_is_no_matter_on_one_machine_or_where_caches_know_each_other(self) -> None:
        argv = [word.replace(",cache=none", "") for word in ARGV]
        case = replace(CASE, command=CommandLine(argv))
        assert codes(case) == ["cache-unsafe"]
        ceph = replace(FILE, filesystem="ceph")
        assert codes(with_files(with_files(case, {IMAGE: ceph}), {IMAGE: ceph}, here=True)) == []
        assert "cache-unsafe" not in codes(replace(case, there=replace(THERE, boot_id="one")))

    def test_disk_that_was_plugged_in_later_is_not_known_to_be_safe(self) -> None:
        later = replace(DISK, device="disk1", file="/images/b.raw", format="raw")
        case = with_source(disks=(DISK, later))
        case = with_files(with_files(case, {"/images/b.raw": FILE}), {"/images/b.raw": FILE}, here=True)
        assert codes(case) == ["cache-unknown"]
        for direct, found in ((True, []), (False, ["cache-unsafe"])):
            opened = {"/images/b.raw": ImageUse(path="/images/b.raw", direct=direct)}
            assert codes(replace(case, opened=opened)) == found

    def test_what_qemu_has_open_counts_more_than_its_command_line(self) -> None:
        assert codes(replace(CASE, opened={IMAGE: ImageUse(path=IMAGE)})) == ["cache-unsafe"]

    def test_variables_of_the_firmware_need_only_room(self) -> None:
        flash = replace(DISK, device="/machine/system.flash1", format="raw")
        case = with_source(disks=(flash,))
        local = replace(FILE, filesystem="ext4", mount_source="/dev/vda1")
        room = replace(local, kind=FileKind.DIRECTORY)
        here = with_files(case, {IMAGE: local}, here=True)
        assert codes(with_files(here, {IMAGE: local})) == []
        assert codes(with_files(here, {IMAGE: replace(local, size_bytes=9)})) == ["disk-size"]
        missing = {IMAGE: FileFacts()}
        assert codes(with_files(here, {**missing, "/images": room})) == []
        assert codes(with_files(here, missing)) == ["disk-file-missing"]
        assert codes(with_files(here, {**missing, "/images": replace(room, writable=False)})) == [
            "disk-access"
        ]

    def test_a_disk_that_is_only_called_flash_is_none(self) -> None:
        local = replace(FILE, filesystem="ext4", mount_source="/dev/vda1")
        for name in ("flash0", "system.flash0", "pflash0", "flash/virtio-backend"):
            case = with_files(with_source(disks=(replace(DISK, device=name),)), {IMAGE: local})
            assert "disk-not-shared" in codes(with_files(case, {IMAGE: local}, here=True))

    def test_flash_is_not_read_again(self) -> None:
        flash = replace(DISK, device="/machine/system.flash1")
        assert codes(replace(with_source(disks=(flash,)), opened={IMAGE: ImageUse(path=IMAGE)})) == []

    def test_image_that_was_handed_over_open(self) -> None:
        passed = replace(DISK, device="d1", file="/dev/fdset/2", format="raw")
        assert codes(with_source(disks=(DISK, passed))) == ["passed-descriptor"]
        case = with_options("-drive", "file=/dev/fdset/2,if=none,id=d1,format=raw")
        assert codes(case) == []  # no disk of the guest

    def test_snapshot_of_all_drives(self) -> None:
        temporary = replace(DISK, file="/var/tmp/vl.ABC123")
        assert codes(replace(with_options("-snapshot"), source=replace(SOURCE, disks=(temporary,)))) == [
            "snapshot"
        ]

    def test_disk_that_somebody_writes_to_at_the_target(self) -> None:
        locked = replace(CASE, files_there=replace(SEEN, written=frozenset({"0:50:7"})))
        assert codes(locked) == ["disk-locked"]
        assert codes(replace(locked, there=replace(THERE, boot_id="one"))) == []  # it is the source itself

    @pytest.mark.parametrize(
        ("file", "found"),
        [("nbd://nas:10809/a", ["disk-remote"]), ("rbd:pool/a", ["disk-remote"]), ("null-co://", [])],
    )
    def test_disk_that_is_no_file(self, file: str, found: list[str]) -> None:
        assert codes(with_source(disks=(DISK, replace(DISK, device="d1", file=file, format="raw")))) == found

    def test_image_that_only_the_command_line_names(self) -> None:
        case = with_options("-drive", "if=pflash,file=/fw/code.fd,format=raw,readonly=on")
        assert codes(case) == ["disk-file-missing"]
        assert codes(with_files(case, {"/fw/code.fd": FILE})) == []


class TestBackingChain:
    LOCAL = replace(BASE_SEEN, filesystem="ext4", mount_source="/dev/vda1")

    @pytest.mark.parametrize(
        ("base", "found"),
        [
            (BASE_SEEN, []),
            (FileFacts(), ["backing-missing"]),
            (LOCAL, ["backing-not-shared"]),
            (replace(LOCAL, size_bytes=1), ["backing-differs"]),
        ],
    )
    def test_file_at_the_target(self, base: FileFacts, found: list[str]) -> None:
        assert codes(with_files(CASE, {BASE: base})) == found

    @pytest.mark.parametrize(
        ("here", "there", "found"),
        [
            ((IMAGE, BASE), (IMAGE, "/other"), ["backing-differs"]),
            ((IMAGE, BASE), (IMAGE,), ["backing-differs"]),
            ((IMAGE, BASE), None, []),
            (None, (IMAGE, BASE), []),
            (None, (IMAGE, "/gone"), ["backing-missing"]),
            (None, None, ["backing-unknown"]),
        ],
    )
    def test_chain(
        self, here: tuple[str, ...] | None, there: tuple[str, ...] | None, found: list[str]
    ) -> None:
        case = replace(
            CASE,
            files_here=replace(SEEN, chains={IMAGE: here} if here else {}),
            files_there=replace(SEEN, chains={IMAGE: there} if there else {}),
        )
        assert codes(case) == found

    def test_what_qemu_has_open_counts_more_than_the_image(self) -> None:
        based = replace(CASE, based={IMAGE: (IMAGE, "/other")})
        assert codes(based) == ["backing-missing"]
        assert codes(with_files(based, {"/other": BASE_SEEN, BASE: FileFacts()})) == []

    def test_raw_disks_are_based_on_nothing_and_never_probed(self) -> None:
        raw = with_source(disks=(replace(DISK, format="raw"),))
        raw = replace(raw, files_here=replace(SEEN, chains={}), files_there=replace(SEEN, chains={}))
        assert codes(raw) == []
        assert host_disks.images(raw.source) == {}
        assert host_disks.images(SOURCE) == {IMAGE: "qcow2"}


class TestSameFile:
    BLOCK = FileFacts(kind=FileKind.BLOCK, device="8:0", serial="wwid=naa.5000")

    @pytest.mark.parametrize(
        ("here", "there", "one_machine", "same"),
        [
            (FILE, FILE, False, SameFile.YES),
            (FILE, replace(FILE, inner_path="/b"), False, SameFile.UNKNOWN),
            (FILE, replace(FILE, size_bytes=1), False, SameFile.UNKNOWN),
            (FILE, replace(FILE, filesystem="tmpfs"), False, SameFile.NO),
            (
                replace(FILE, mount_source="localhost:/x"),
                replace(FILE, mount_source="localhost:/x"),
                False,
                SameFile.UNKNOWN,
            ),
            (
                replace(FILE, filesystem="overlay"),
                replace(FILE, filesystem="overlay"),
                False,
                SameFile.UNKNOWN,
            ),
            (BLOCK, BLOCK, False, SameFile.YES),
            (BLOCK, replace(BLOCK, device="8:16"), False, SameFile.YES),
            (BLOCK, replace(BLOCK, device="8:16"), True, SameFile.NO),
            (BLOCK, replace(BLOCK, serial="wwid=naa.6000"), False, SameFile.NO),
            (BLOCK, replace(BLOCK, serial="dm=mpath-3600"), False, SameFile.UNKNOWN),
            (BLOCK, replace(BLOCK, serial=""), False, SameFile.UNKNOWN),
        ],
    )
    def test_identity(self, here: FileFacts, there: FileFacts, one_machine: bool, same: SameFile) -> None:
        assert same_file(here, there, one_machine=one_machine) is same
        assert same_file(there, here, one_machine=one_machine) is same
