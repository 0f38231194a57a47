"""A file system whose file answers some reads and then hangs: FUSE, spoken by hand, as root.

Its server stops, as one that lost its network does: what is asked of it waits, and a kill ends the
wait. (A request that a server has taken and never answers keeps even a killed process.)
The layouts are those of include/uapi/linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import modelbroker

from .broker import BrokerProcess
from .damage import flip_in_payload

_IN = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, ...
_OUT = struct.Struct("<IiQ")
_LOOKUP, _GETATTR, _OPEN, _READ = 1, 3, 14, 15
_RELEASE, _FLUSH, _INIT = 18, 25, 26
_FORGET, _BATCH_FORGET, _INTERRUPT = 2, 42, 36
_MNT_FORCE, _MNT_DETACH = 1, 2
_FOPEN_NOFLUSH = 1 << 5


class HangingFile:
    """`path` can be looked at and opened; after so many reads, which are answered, all hangs until
    go_on()."""

    def __init__(self, folder: Path, content: bytes, reads: int) -> None:
        self.path = folder / "hangs.safetensors"
        self._folder, self._content, self._reads = folder, content, reads
        self._pause = 0.0
        self.hanging, self._goes_on = threading.Event(), threading.Event()
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._device = os.open("/dev/fuse", os.O_RDWR)
        except OSError as error:
            pytest.skip(f"no file system that hangs: /dev/fuse: {error.strerror}")
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        arguments = (b"hangs", os.fsencode(folder), b"fuse", 6, options.encode())
        if self._libc.mount(*arguments) != 0:
            number = ctypes.get_errno()
            os.close(self._device)
            pytest.skip(f"no file system that hangs: mount: {os.strerror(number)}")
        self._thread = threading.Thread(target=self._serve, name="hanging-file", daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """What hangs is answered, and all that follows."""
        self._goes_on.set()

    def hang_after(self, reads: int) -> None:
        """After so many reads more all hangs, once again."""
        self.hanging.clear()
        self._goes_on.clear()
        self._reads = reads

    def slow_down(self, pause: float) -> None:
        """Each read is followed by so many seconds of silence, until go_on()."""
        self._pause = pause

    def close(self) -> None:
        """What hangs fails now."""
        self._libc.umount2(os.fsencode(self._folder), _MNT_FORCE)  # ends what waits
        self._libc.umount2(os.fsencode(self._folder), _MNT_DETACH)
        self.go_on()
        self._thread.join()
        os.close(self._device)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 18)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # unmounted
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            body = request[_IN.size :]
            if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                continue
            answer = self._answer(opcode, node, body)
            number, data = answer if isinstance(answer, tuple) else (0, answer)
            try:
                os.write(self._device, _OUT.pack(_OUT.size + len(data), -number, unique) + data)
            except OSError:
                continue  # its asker is gone
            self._reads -= opcode == _READ
            if opcode == _READ and self._pause > 0:
                self._goes_on.wait(self._pause)
            if self._reads == 0:
                self.hanging.set()
                self._goes_on.wait()

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes | tuple[int, bytes]:
        if opcode == _INIT:
            return struct.pack("<IIIIHHIIHH32x", 7, 31, 0, 0, 16, 12, 1 << 17, 1, 32, 0)
        if opcode == _LOOKUP:
            if body.rstrip(b"\0") != os.fsencode(self.path.name):
                return errno.ENOENT, b""
            return struct.pack("<QQQQII", 2, 1, 3600, 3600, 0, 0) + self._attributes(2)
        if opcode == _GETATTR:
            return struct.pack("<QII", 3600, 0, 0) + self._attributes(node)
        if opcode == _OPEN:
            return struct.pack("<QII", 1, _FOPEN_NOFLUSH, 0)  # a close would hang too
        if opcode == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return self._content[offset : offset + size]
        if opcode in (_RELEASE, _FLUSH):
            return b""
        return errno.ENOSYS, b""

    def _attributes(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
        size = 0 if node == 1 else len(self._content)
        times = (1_700_000_000,) * 3
        return struct.pack(
            "<QQQQQQIIIIIIIIII",
            *(node, size, size // 512, *times, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0),
        )


@contextmanager
def hanging_file(folder: Path, content: bytes, reads: int = 1) -> Iterator[HangingFile]:
    """By default only its header can be read; each read is of 128 KiB at most."""
    folder.mkdir()
    file = HangingFile(folder, content, reads)
    try:
        yield file
    finally:
        file.close()


def hang_while_it_is_loaded_again(
    broker: BrokerProcess, client: modelbroker.Broker, slow: HangingFile, model: str
) -> None:
    """Damages the broker's only block, that of this file, and has it found; the load hangs then."""
    flip_in_payload(broker.blocks()[0])
    slow.hang_after(3)
    assert client.scrub(model).damaged == 1
    assert slow.hanging.wait(60)
