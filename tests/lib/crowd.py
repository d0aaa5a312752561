# SPDX-License-Identifier: ISC
"""Thousands of clients in one process: see crowd.c."""
import base64
import subprocess

from environment import BUILD


class Crowd:
    """So many of one kind, from so many addresses; they are there when it is made."""

    def __init__(self, kind, port, count, sources, login=None):
        self.kind = kind
        response = [base64.b64encode("\0".join(("", *login)).encode()).decode()] if login else []
        self.process = subprocess.Popen(
            [BUILD / "tests" / "lib" / "crowd", kind, str(port), str(count), str(sources), *response],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            self.process.kill()
            raise AssertionError(f"the crowd did not come: {self.process.communicate()[1]}")

    def read_met(self, line):
        return {name: int(number) for name, number in (word.split("=") for word in line.split())}

    def met(self):
        """
        What it has met so far: `here`, who are being served now; and of all that were `made`, who have `heard` from
        the server, were `ended` by it, or were `sent_away` without being served.
        """
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read_met(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.leave()

    def leave(self):
        """All of them go; what they have met."""
        out, error = self.process.communicate(timeout=30)
        assert self.process.returncode == 0 and not error, error
        return self.read_met(out)
