# SPDX-License-Identifier: ISC
"""Thousands of clients in one process: see crowd.c."""
import base64
import subprocess

from environment import BUILD


class Crowd:
    """So many of one kind, from so many addresses; they are there when it is made."""

    def __init__(self, kind, port, count, sources, login=None):
        response = [base64.b64encode("\0".join(("", *login)).encode()).decode()] if login else []
        self.process = subprocess.Popen(
            [BUILD / "tests" / "lib" / "crowd", kind, str(port), str(count), str(sources), *response],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            self.process.kill()
            raise AssertionError(f"the crowd did not come: {self.process.communicate()[1]}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.leave()

    def leave(self):
        """All of them go; how many of the idle ones had been closed by the server."""
        out, error = self.process.communicate(timeout=30)
        assert self.process.returncode == 0 and not error, error
        return int(out.removeprefix("lost "))
