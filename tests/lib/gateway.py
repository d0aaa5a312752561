# SPDX-License-Identifier: ISC
"""A gateway under test: configuration, start, log, the tool."""
import contextlib
import os
import pathlib
import signal
import subprocess
import threading
import time

from environment import BUILD, free_port, give, parse_logfmt, run, unprivileged

USER = "nobody"


class Gateway:
    """One posternd with all its children; start() returns when it is ready."""

    def __init__(self, folder, cluster, certificate, key, upstream_port, port=None, tls_port=None):
        self.folder, self.cluster = folder, cluster
        self.port, self.tls_port = port or free_port(), tls_port or free_port()
        self.certificate, self.key = certificate, key
        self.upstreams = {"up": {"hosts": [f"localhost:{upstream_port}"], "tls": "none"}}
        self.submission = {}
        self.hosts = ["127.0.0.1"]
        self.listener = {}  # options of both listeners, or of the first:
        self.tls_listener = None
        self.retry = {"first": "1s", "max": "2s"}
        self.route = "up"
        self.extra = ""
        self.environment = {}
        self.descriptors = None  # how many each process may have; None: as many as this one
        self.clock = None
        self.user = USER
        self.process, self.database = None, None  # where its database was when it started
        self.reader = None  # of what the process says
        self.lines = []
        self.news = threading.Condition()
        for name in ("", "spool", "run"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            give(folder / name, USER)

    @property
    def conf(self):
        return self.folder / "postern.conf"

    @staticmethod
    def value(value):
        if isinstance(value, list):
            return "[" + ", ".join(f'"{item}"' for item in value) + "]"
        if isinstance(value, bool):
            return str(value).lower()
        return str(value) if isinstance(value, int) else f'"{value}"'

    def group(self, settings):
        return "{ " + "  ".join(f"{k} = {self.value(v)}" for k, v in settings.items()) + " }"

    def write_conf(self):
        def listener(port, tls, options):
            return self.group({"address": [f"{host}:{port}" for host in self.hosts], "tls": tls, **options})

        upstreams = "\n".join(f"  {name} = {self.group(u)}" for name, u in self.upstreams.items())
        self.conf.write_text(f"""hostname = "gateway.test"
database = "{self.cluster.conninfo}"
spool = "{self.folder}/spool"
runtime = "{self.folder}/run"
listener = {{
  submission = {listener(self.port, "starttls", self.listener)}
  submissions = {listener(self.tls_port, "implicit", self.listener if self.tls_listener is None else self.tls_listener)}
}}
tls = {{ certificate = "{self.certificate}"  key = "{self.key}" }}
submission = {self.group(self.submission)}
upstream = {{
{upstreams}
}}
route = "{self.route}"
retry = {self.group(self.retry)}
{self.extra}
""")

    def start(self, wait=True):
        self.write_conf()
        for path in (self.certificate, self.key):
            os.chmod(path, 0o644)
        self.lines, self.database = [], self.cluster.conninfo
        # With the umask of a strict service manager, which must not show.
        self.process = subprocess.Popen(
            [*(["prlimit", f"--nofile={self.descriptors}"] if self.descriptors else []),
             *(unprivileged(self.user) if self.user else []), BUILD / "posternd", "-c", self.conf], stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, env={**os.environ, **self.environment}, cwd="/", umask=0o077)
        self.reader = threading.Thread(target=self.read, args=(self.process,), daemon=True)
        self.reader.start()
        if wait:
            self.wait_event("ready", seconds=30)
        return self

    def read(self, process):
        for raw in process.stderr:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            with open(self.folder / "log", "a", encoding="utf-8") as log:
                log.write(line + "\n")
            with self.news:
                self.lines.append(line)
                self.news.notify_all()
        with self.news:
            self.news.notify_all()

    def events(self, name, **fields):
        """The log's lines of that event with these fields, as dictionaries."""
        with self.news:
            lines = list(self.lines)
        found = [parse_logfmt(line) for line in lines if f"event={name} " in line + " "]
        return [f for f in found if all(f.get(k) == str(v) for k, v in fields.items())]

    def wait_event(self, name, seconds=20, count=1, **fields):
        until = time.monotonic() + seconds
        while True:
            # What it said before it ended may still have to be read.
            ended = self.reader is not None and not self.reader.is_alive()
            found = self.events(name, **fields)
            if len(found) >= count:
                return found[-1]
            with self.news:
                left = until - time.monotonic()
                if left <= 0 or ended:
                    tail = "\n".join(self.lines[-15:])
                    raise AssertionError(f"no event {name} {fields}; the log ends:\n{tail}")
                self.news.wait(min(left, 0.5))

    def sanitizer_reports(self):
        """What the sanitizers of the build have said, of all starts."""
        log = self.folder / "log"
        text = log.read_text(encoding="utf-8") if log.exists() else ""
        return [line for line in text.splitlines() if "Sanitizer" in line or "runtime error:" in line]

    def children(self):
        """Pids by role."""
        found = {}
        pid = self.process.pid
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):  # it is gone already
                name = pathlib.Path(f"/proc/{child}/cmdline").read_bytes().decode().rstrip("\0")
                if name.startswith("posternd: "):
                    found[name.removeprefix("posternd: ")] = int(child)
        return found

    def cpu_seconds(self, role):
        """What that process has used of processors so far."""
        fields = pathlib.Path(f"/proc/{self.children()[role]}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def make_clock(self):
        """From the next start on its clocks stand where set_clock() says."""
        self.clock = self.folder / "clock"
        self.clock.write_bytes(bytes(8))
        self.clock.chmod(0o644)
        self.environment = {**self.environment, "POSTERN_TEST_CLOCK": str(self.clock)}

    def set_clock(self, seconds):
        """So far ahead of the machine's; only builds with test hooks can."""
        with open(self.clock, "r+b") as file:
            file.write(int(seconds * 1_000_000).to_bytes(8, "little", signed=True))

    def stop(self, seconds=15):
        """Asks for a clean stop; its exit status."""
        if not self.process:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(seconds)
        self.process = None
        return status

    def kill(self):
        """kill -9 of the supervisor alone."""
        self.process.kill()
        self.process.wait(10)
        self.process = None

    def kill_all(self):
        """kill -9 of every process at once."""
        for pid in (self.process.pid, *self.children().values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def tool(self, *words, check=True):
        """Runs `postern`; its output (or the finished process without check)."""
        command = [BUILD / "postern", "-c", self.conf, *words]
        if check:
            return run(*command, env=self.cluster.environment).stdout.decode()
        return subprocess.run(command, capture_output=True, env=self.cluster.environment, check=False, text=True)

    def queue_count(self, state=""):
        """Messages in the queue, or those of them in one state."""
        if not state:
            return int(self.tool("queue", "list", "--count"))
        return self.tool("queue", "list").count(f" state={state} ")

    def wait_queue(self, count, seconds=20):
        until = time.monotonic() + seconds
        while (now := self.queue_count()) != count:
            if time.monotonic() > until:
                raise AssertionError(f"{now} messages in the queue, not {count}:\n{self.tool('queue', 'list')}")
            time.sleep(0.05)
