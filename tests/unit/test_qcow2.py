# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The header of a qcow2 image, as written by qemu-img and on a damaged disk."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.qcow2 import Image, Read, read_image


def reading(data: bytes) -> Read:
    return lambda offset, length: data[offset : offset + length]


@pytest.mark.qemu
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_snapshots_and_backing_file_are_read_as_qemu_img_wrote_them(tmp_path: Path, compat: str) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    names = ["a", "it's \u00e4", "a", "x" * 200, "1"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), "1M"], check=True)
    options = ["-o", f"compat={compat}", "-F", "qcow2", "-b", base.name]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(top)], check=True)
    for name in names:
        subprocess.run(["qemu-img", "snapshot", "-c", name, str(top)], check=True)
    marks = ["first", "second one"] if compat == "1.1" else []
    for mark in marks:
        subprocess.run(["qemu-img", "bitmap", "--add", str(top), mark], check=True)
    image = read_image(reading(top.read_bytes()))
    assert image and image.backing == "base.qcow2" and list(image.bitmaps) == marks
    assert [(one.id, one.name) for one in image.snapshots] == [(str(number), name) for number, name in enumerate(names, 1)]
    assert all(abs(one.taken - top.stat().st_mtime) < 60 for one in image.snapshots)
    below = read_image(reading(base.read_bytes()))
    assert below == Image((), None)


def test_other_format_is_no_qcow2_image() -> None:
    assert read_image(reading(b"")) is None
    assert read_image(reading(bytes(1024))) is None


@given(st.binary(max_size=300))
def test_damaged_extension_is_reported(rest: bytes) -> None:
    header = b"QFI\xfb" + struct.pack(">I64xQQQII", 3, 0, 0, 1, 4, 104)
    assert len(header) == 104
    with contextlib.suppress(ValueError):
        assert read_image(reading(header + b"\x23\x85\x28\x75" + rest)) is not None


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1), st.integers(0, 400))
def test_damaged_image_is_reported(rest: bytes, count: int, table: int) -> None:
    header = b"QFI\xfb" + struct.pack(">IQI40xIQ", 3, 0, 0, count, table)
    assert len(header) == 72
    with contextlib.suppress(ValueError):
        image = read_image(reading(header + rest))
        assert image is not None and len(image.snapshots) == count
