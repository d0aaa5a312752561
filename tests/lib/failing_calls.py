# SPDX-License-Identifier: ISC
"""Lets system calls of a chosen process fail; failing_calls.c is the other side."""
import errno
import os
import struct

from environment import BUILD

CALLS = ["recv", "pwritev", "fdatasync"]  # in the order of its struct, behind the pid


class FailingCalls:
    """Use it for the environment of a gateway that is started then."""

    def __init__(self, folder):
        self.path = folder / "failing-calls"
        self.path.write_bytes(bytes(4 + 4 * len(CALLS)))
        self.path.chmod(0o644)

    @property
    def environment(self):
        # The address sanitizer wants to be the first library.
        options = os.environ.get("ASAN_OPTIONS", "")
        return {"LD_PRELOAD": str(BUILD / "tests/lib/libfailing_calls.so"), "POSTERN_FAILING_CALLS": str(self.path),
                "ASAN_OPTIONS": f"{options}:verify_asan_link_order=0"}

    def fail(self, pid, call, error):
        """From now on that call of that process fails with the errno of that name; "": it works again."""
        with open(self.path, "r+b") as file:
            file.seek(4 + 4 * CALLS.index(call))
            file.write(struct.pack("<i", getattr(errno, error) if error else 0))
            file.seek(0)
            file.write(struct.pack("<i", pid))
