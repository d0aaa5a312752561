# SPDX-License-Identifier: ISC
"""A private PostgreSQL: real, small, on a unix socket only."""
import contextlib
import os
import pathlib
import signal
import subprocess

from environment import free_port, give, run, unprivileged

ADMIN = "ops"  # a member of postern_admin


def programs():
    """The folder of the newest server that is installed."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    if not found:
        raise RuntimeError("PostgreSQL is not installed")
    return found[-1]


class Cluster:
    """Started by start(); stop() ends it; the data stay in the folder."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.bin = programs()
        self.database = "postern"
        self.environment_more = {}

    @property
    def conninfo(self):
        return f"host={self.folder} port={self.port} dbname={self.database}"

    @property
    def environment(self):
        # Debian's psql in front of that folder is a script that looks for a server, and takes five times as long.
        return {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "PGHOST": str(self.folder), "PGPORT": str(self.port),
                "PGUSER": "postgres", **self.environment_more}

    def create(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        give(self.folder, "postgres")
        run(*unprivileged("postgres"), self.bin / "initdb", "-D", self.folder / "data", "-U", "postgres",
            "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", cwd="/")
        with open(self.folder / "data/postgresql.conf", "a", encoding="ascii") as conf:
            conf.write(f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\n"
                       f"port = {self.port}\nshared_buffers = '32MB'\nmax_connections = 200\nfsync = off\n")

    def start(self):
        """Returns when it answers."""
        run(*unprivileged("postgres"), self.bin / "pg_ctl", "-D", self.folder / "data", "-w", "-t", "60",
            "-l", self.folder / "log", "start", cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, capture_output=False)

    def start_if_stopped(self):
        if not (self.folder / "data/postmaster.pid").exists():
            self.start()

    def stop(self, how="fast"):
        if (self.folder / "data/postmaster.pid").exists():
            run(*unprivileged("postgres"), self.bin / "pg_ctl", "-D", self.folder / "data", "-m", how, "-w",
                "-t", "60", "stop", cwd="/")

    def freeze(self, frozen):
        """Stops or continues the server and all its backends, as a hung machine would."""
        postmaster = int((self.folder / "data/postmaster.pid").read_text().split()[0])
        number = signal.SIGSTOP if frozen else signal.SIGCONT
        os.kill(postmaster, number)  # first: it may be about to make another backend
        for pid in run("ps", "-o", "pid=", "--ppid", postmaster).stdout.split():
            with contextlib.suppress(ProcessLookupError):  # that of a client that has just gone
                os.kill(int(pid), number)

    def sql(self, text, database=None, stderr=False, **variables):
        """Runs a script; its rows as text, without headers, or what it said beside them."""
        command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database or self.database]
        for name, value in variables.items():
            command += ["-v", f"{name}={value}"]
        done = run(*command, input=text.encode(), env=self.environment)
        return (done.stderr if stderr else done.stdout).decode().strip()

    @contextlib.contextmanager
    def as_user(self, name):
        """What follows connects as that user."""
        before, self.environment_more = self.environment_more, {**self.environment_more, "PGUSER": name}
        try:
            yield
        finally:
            self.environment_more = before

    def script(self, path, answers="", environment=None, **variables):
        """Runs a file of scripts/admin as an admin does: one who may do what admins may, and no more."""
        command = ["psql", "-XAtq", "-d", self.database, "-f", path]
        for name, value in variables.items():
            command += ["-v", f"{name}={value}"]
        return run(*command, input=answers.encode(),
                   env={**self.environment, "PGUSER": ADMIN, **(environment or {})}).stdout.decode()


class Session:
    """A psql that stays, as an admin's does."""

    def __init__(self, cluster):
        self.process = subprocess.Popen(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", cluster.database], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=cluster.environment)
        self.count = 0

    def ask(self, text):
        """The lines of its answer; notices that came are among them."""
        self.count += 1
        self.process.stdin.write(f"{text}\nselect 'answer {self.count}';\n")
        self.process.stdin.flush()
        lines = []
        while (line := self.process.stdout.readline()) != f"answer {self.count}\n":
            assert line, "psql has ended"
            lines.append(line.rstrip("\n"))
        return lines

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()
