# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The images of a disk, with contents that a malicious guest may have written."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.disks import Images, Unreadable
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.qcow2 import read_image
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import Disk


def images() -> Images:
    return Images(None, local=True)  # these tests send no request to the daemon


def disk(path: Path, fmt: str = "qcow2") -> Disk:
    return Disk(target="vda", type="file", path=str(path), format=fmt, writable=True, mode=None)


def header(backing: bytes, *, fmt: bytes | None = b"qcow2", snapshots: int = 0, table: int = 0) -> bytes:
    """The header of a qcow2 image of version 3."""
    extension = b"" if fmt is None else struct.pack(">II", 0xE2792ACA, len(fmt)) + fmt.ljust(-(-len(fmt) // 8) * 8, b"\0")
    extension += bytes(8)
    fixed = struct.pack(">4sIQI40xIQ24xII", b"QFI\xfb", 3, 104 + len(extension), len(backing), snapshots, table, 4, 104)
    return fixed + extension + backing


def test_raw_disk_is_never_detected_as_another_format(tmp_path: Path) -> None:
    """The guest can write the whole disk, including the first bytes."""
    raw = tmp_path / "raw.img"
    raw.write_bytes(header(b"/etc/passwd"))
    assert images().layers(disk(raw, "raw"), up=False, asking=False) == [str(raw)]


@pytest.mark.parametrize("fmt", [b"raw", None])
def test_base_image_without_declared_qcow2_format_is_not_read(tmp_path: Path, fmt: bytes | None) -> None:
    top, base = tmp_path / "top.qcow2", tmp_path / "base.img"
    base.write_bytes(header(b"/etc/passwd"))
    top.write_bytes(header(b"base.img", fmt=fmt))
    assert images().layers(disk(top), up=False, asking=False) == [str(top), str(base)]


@pytest.mark.qemu
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_chain_from_qemu_img_is_followed_to_its_end(tmp_path: Path, compat: str) -> None:
    names = [str(tmp_path / f"{number}.qcow2") for number in range(3)]
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", names[0], "1M"], check=True)
    for fmt, base, top in (("raw", names[0], names[1]), ("qcow2", names[1], names[2])):
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", "-F", fmt, "-b", base, top]
        subprocess.run(command, check=True)
    assert images().layers(disk(Path(names[2])), up=False, asking=False) == names[::-1]


def test_cycle_of_base_images_ends(tmp_path: Path) -> None:
    for name, base in (("a", b"b"), ("b", b"a")):
        (tmp_path / name).write_bytes(header(base))
    assert images().layers(disk(tmp_path / "a"), up=False, asking=False) is None


def test_image_name_with_a_nul_byte_is_reported_as_damage(tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    top.write_bytes(header(b"ba\0se"))
    assert images().layers(disk(top), up=False, asking=False) is None
    with pytest.raises(Unreadable, match="damaged"):
        images().read(str(top))


def test_path_that_is_no_file_or_block_device_is_not_opened(tmp_path: Path) -> None:
    """Opening a FIFO would block, and opening a device may have side effects."""
    fifo, top = tmp_path / "fifo", tmp_path / "top.qcow2"
    os.mkfifo(fifo)
    top.write_bytes(header(b"fifo"))
    for path in (str(fifo), "/dev/null", str(tmp_path)):
        with pytest.raises(Unreadable, match="neither a regular file nor a block device"):
            images().read(path)
        assert images().at_hand(path) is None
    assert images().layers(disk(top), up=False, asking=False) is None


@pytest.mark.parametrize("where", [2**63 - 8, 2**64 - 8])
def test_table_beyond_the_end_of_the_file_is_reported_as_damage(tmp_path: Path, where: int) -> None:
    top = tmp_path / "top.qcow2"
    top.write_bytes(header(b"", snapshots=1, table=where))
    with pytest.raises(Unreadable):
        images().read(str(top))


def test_table_is_read_only_up_to_the_maximum_length() -> None:
    """The header allows 65536 entries of 130 kB each."""
    entry = struct.pack(">12xHH16xI4x", 0xFFFF, 0xFFFF, 0)[:40]
    entry += bytes(2 * 0xFFFF)
    entry += bytes(-len(entry) % 8)
    begin = header(b"", snapshots=65536, table=4096)
    reads = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal reads
        reads += length
        if offset == 0:
            return begin
        at = (offset - 4096) % len(entry)
        return (entry * (2 + length // len(entry)))[at : at + length]

    with pytest.raises(ValueError, match="too long"):
        read_image(read)
    assert reads < 32 * 1024 * 1024
