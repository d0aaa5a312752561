# SPDX-License-Identifier: ISC
"""Where things are, whose they are, and how a process is run as somebody without power."""
import contextlib
import os
import pathlib
import pwd
import random
import re
import socket
import subprocess
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("POSTERN_BUILD", TOP / "build")).resolve()


def unprivileged(user):
    """Words in front of a command: initdb and Postern are not run as root."""
    if os.geteuid() != 0:
        return []
    group = pwd.getpwnam(user).pw_gid
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]


def give(path, user):
    """Makes a folder or file that user's, when root."""
    if os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.chown(path, entry.pw_uid, entry.pw_gid)


def temporary_folder():
    """Short, because socket paths are; searchable, because several users work below it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


ports_given = set()


def free_port():
    """
    Below those that the kernel gives to clients: one of them could take it before it is listened on. And none twice:
    most are listened on later, or again and again.
    """
    while True:
        port = random.randrange(16384, 32768)
        if port in ports_given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports_given.add(port)
            return port


def run(*command, **options):
    """Runs to its end; an error tells what the command said."""
    options = {"capture_output": True, "timeout": 120, **options}
    done = subprocess.run([str(word) for word in command], check=False, **options)
    if done.returncode != 0:
        said = (done.stderr or b"") + (done.stdout or b"")
        if isinstance(said, bytes):
            said = said.decode("utf-8", "replace")
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}: {said.strip()}")
    return done


def eventually(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.05)


def parse_logfmt(line):
    """A line of the log as a dictionary; quotes and escapes undone."""
    fields = {}
    for key, quoted, plain in re.findall(r'([a-z_]+)=(?:"((?:[^"\\]|\\.)*)"|(\S*))', line):
        fields[key] = re.sub(r"\\(.)", r"\1", quoted) if quoted else plain
    return fields
