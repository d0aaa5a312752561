# SPDX-License-Identifier: ISC
"""Lets a chosen allocation of a chosen process fail; failing_malloc.c is the other side."""
import mmap
import struct

from environment import BUILD

SIZE = 24


class FailingMemory:
    """Use it for the environment of a gateway that is started then."""

    def __init__(self, folder):
        self.path = folder / "allocations"
        self.path.write_bytes(bytes(SIZE))
        self.path.chmod(0o666)
        with open(self.path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), SIZE)

    @property
    def environment(self):
        return {"LD_PRELOAD": str(BUILD / "tests/lib/libfailing_malloc.so"),
                "POSTERN_FAILING_MALLOC": str(self.path)}

    def fail(self, pid, number):
        """From now on allocations of that process are counted, and that one fails."""
        self.map[0:SIZE] = struct.pack("<QQQ", 0, 0, number)
        self.map[0:8] = struct.pack("<Q", pid)

    def stop(self):
        """How many were asked for since fail()."""
        self.map[0:8] = bytes(8)
        return struct.unpack("<Q", self.map[8:16])[0]
