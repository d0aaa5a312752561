# SPDX-License-Identifier: ISC
"""The second half of scripts/quickstart: what runs once everything is installed and built."""
import argparse
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests" / "lib"))

from certificates import Authority  # noqa: E402
from dkim_check import python_dkim, records  # noqa: E402
from environment import free_port, run, temporary_folder, unprivileged  # noqa: E402
from gateway import Gateway  # noqa: E402
from postgres import Cluster  # noqa: E402
from upstream import Upstream  # noqa: E402

DOMAIN, LOGIN = "example.org", "demo@example.org"


def say(text):
    print(f"== {text}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/quickstart")
    parser.add_argument("--check", action="store_true", help="end after the proof")
    parser.add_argument("--dir", type=pathlib.Path, help="keep everything here")
    parser.add_argument("--port", type=int, default=5587)
    parser.add_argument("--tls-port", type=int, default=5465)
    return parser.parse_args()


def check_ports(*ports):
    if len(set(ports)) < len(ports):
        sys.exit("--port and --tls-port are the same; choose two")
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except PermissionError:
                sys.exit(f"port {port} is for root; choose others with --port and --tls-port")
            except OverflowError:
                sys.exit(f"{port} is no port; choose others with --port and --tls-port")
            except OSError:
                sys.exit(f"port {port} is taken; choose others with --port and --tls-port")


def open_folder(folder):
    """Makes the folder of --dir, or says why it cannot be it."""
    if len(str(folder)) > 60:
        sys.exit(f"{folder} is too long for the sockets in it; choose a shorter --dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"{folder} is not empty; choose a new folder")
        folder.chmod(0o755)
    except OSError as error:
        sys.exit(f"{folder} cannot be used ({error.strerror}); choose another --dir")
    # As root, PostgreSQL and the gateway run as users without power.
    for user in ("postgres", "nobody"):
        if subprocess.run([*unprivileged(user), "test", "-x", folder], check=False).returncode != 0:
            folder.rmdir()
            sys.exit(f"the user {user} cannot enter {folder}; choose another --dir, such as one below /tmp")


class Demonstration:
    def __init__(self, options):
        self.kept = options.dir is not None
        self.folder = options.dir.resolve() if self.kept else temporary_folder()
        if self.kept:
            open_folder(self.folder)
        self.password = secrets.token_urlsafe(12)
        self.cluster = Cluster(self.folder / "pg")
        authority = Authority(self.folder / "tls", "Postern demonstration")
        self.authority = authority.certificate
        certificate, key = authority.issue("gateway", "DNS:localhost", "IP:127.0.0.1")
        self.upstream = Upstream(free_port(), *authority.issue("upstream", "DNS:localhost"),
                                 logins={"gateway": "upstream-secret"})
        self.gateway = Gateway(self.folder / "gw", self.cluster, certificate, key, self.upstream.port, options.port,
                               options.tls_port)
        password_file = self.folder / "upstream.password"
        password_file.write_text("upstream-secret\n")
        self.gateway.upstreams = {"up": {
            "hosts": [f"localhost:{self.upstream.port}"], "tls": "verify", "ca_file": self.authority,
            "username": "gateway", "password_file": password_file}}

    def start(self):
        say("database: a private PostgreSQL, the schema, the account demo@example.org")
        self.cluster.create()
        self.cluster.start()
        self.cluster.sql("create database postern", database="postgres")
        self.gateway.write_conf()
        print(self.gateway.tool("database", "migrate"), end="")
        self.cluster.sql("select postern.account_create(:'login', :'password')", login=LOGIN, password=self.password)
        say("DKIM keys; in the real DNS these records would stand:")
        zone_text = self.gateway.tool("dkim", "create", DOMAIN)
        print(zone_text, end="")
        self.zone = records(zone_text)
        say("an upstream that keeps what it gets, and the gateway")
        self.upstream.start()
        self.gateway.start()
        for line in self.gateway.lines:
            print(f"   {line}")

    def swaks(self):
        return ["swaks", "--server", f"127.0.0.1:{self.gateway.port}", "--tls", "--auth", "PLAIN", "--auth-user", LOGIN,
                "--auth-password", self.password, "--from", LOGIN, "--to", "somebody@example.net"]

    def prove(self):
        say("a message, sent by swaks")
        run(*self.swaks(), "--header", "Subject: Through the gateway")
        taken = self.upstream.take()
        say(f"as the upstream got it (TLS: {'yes' if taken.tls else 'no'}, logged in as {taken.login}):")
        print(taken.octets.decode("utf-8", "replace").replace("\r\n", "\n").rstrip() + "\n")
        say("signatures, judged by python3-dkim:")
        verdicts = python_dkim(taken.octets, self.zone)
        for algorithm, verdict in verdicts:
            print(f"   {algorithm}: {'valid' if verdict is True else verdict}")
        if [v for _, v in verdicts] != [True, True] or not taken.tls or not taken.login:
            raise RuntimeError("the message did not arrive as it should; the log is above and in "
                               f"{self.folder}/gw/log")

    def stay(self):
        say("ready; Ctrl-C ends it")
        print(f"""
   Outgoing server   localhost
   Port              {self.gateway.port} with STARTTLS, or {self.gateway.tls_port} with TLS from the start
   User name         {LOGIN}
   Password          {self.password}
   Authority         {self.authority}

   {' '.join(self.swaks())}

   Log               {self.folder}/gw/log
   Queue             build/postern -c {self.gateway.conf} queue list
   Database          psql "{self.cluster.conninfo} user=postgres"
""", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})

    def stop(self, keep):
        for end in (self.gateway.stop, self.upstream.stop, self.cluster.stop):
            try:
                end()
            except Exception as error:  # the others must be ended all the same
                print(f"while ending: {error}", file=sys.stderr)
        if not keep and not self.kept:
            shutil.rmtree(self.folder, ignore_errors=True)


def main():
    options = arguments()
    check_ports(options.port, options.tls_port)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    demonstration = Demonstration(options)
    failed = True
    try:
        demonstration.start()
        demonstration.prove()
        failed = False
        if options.check:
            say("everything held")
        else:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            demonstration.stay()
    except (RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
        print(f"scripts/quickstart: {error}", file=sys.stderr)
        print(f"logs are in {demonstration.folder}", file=sys.stderr)
    finally:
        demonstration.stop(keep=failed)
    return 1 if failed else 0


sys.exit(main())
