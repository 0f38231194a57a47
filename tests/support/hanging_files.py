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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_IN = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, ...
_OUT = struct.Struct("<IiQ")
_LOOKUP, _GETATTR, _OPEN, _READ = 1, 3, 14, 15
_RELEASE, _FLUSH, _INIT = 18, 25, 26
_FORGET, _BATCH_FORGET, _INTERRUPT = 2, 42, 36
_MNT_FORCE, _MNT_DETACH = 1, 2
_FOPEN_NOFLUSH = 1 << 5


class HangingFile:
    """`path` can be looked at and opened; after so many reads, which are answered, all hangs until
    go_on(). Below zero: it never hangs.

    `fresh_inodes`: each look-up gives it another inode number, as some network file systems do.
    `ctime_is_now`: each look gives it the time as its ctime, as others do.
    """

    def __init__(
        self,
        folder: Path,
        content: bytes,
        reads: int,
        *,
        fresh_inodes: bool = False,
        ctime_is_now: bool = False,
    ) -> None:
        self._fresh_inodes, self._ctime_is_now = fresh_inodes, ctime_is_now
        self._inode = 2
        self._kept = (
            0 if fresh_inodes or ctime_is_now else 3600
        )  # seconds that the kernel may trust
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
            self._inode += self._fresh_inodes
            entry = struct.pack("<QQQQII", self._inode, 1, self._kept, self._kept, 0, 0)
            return entry + self._attributes(self._inode)
        if opcode == _GETATTR:
            return struct.pack("<QII", self._kept, 0, 0) + self._attributes(node)
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
        written = 1_700_000_000
        changed = time.time_ns() if self._ctime_is_now and node != 1 else written * 10**9
        seconds, rest = divmod(changed, 10**9)
        return struct.pack(
            "<QQQQQQIIIIIIIIII",
            *(node, size, size // 512, written, written, seconds),
            *(0, 0, rest, mode, 1, 0, 0, 0, 4096, 0),
        )


@contextmanager
def hanging_file(
    folder: Path,
    content: bytes,
    reads: int = 1,
    *,
    fresh_inodes: bool = False,
    ctime_is_now: bool = False,
) -> Iterator[HangingFile]:
    """By default only its header can be read; each read is of 128 KiB at most."""
    folder.mkdir()
    file = HangingFile(folder, content, reads, fresh_inodes=fresh_inodes, ctime_is_now=ctime_is_now)
    try:
        yield file
    finally:
        file.close()
