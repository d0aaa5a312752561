# SPDX-License-Identifier: ISC
"""The whole stage: database, certificates, an upstream, a gateway, accounts."""
import contextlib
import shutil

from certificates import Authority
from dkim_check import records
from environment import BUILD, free_port, run, temporary_folder
from gateway import Gateway
from postgres import ADMIN, Cluster
from upstream import Upstream

DOMAIN = "example.org"


def alone(test):
    """Marks one that measures time: no other is played beside it."""
    test.alone = True
    return test


class Stage:
    """Made once for many tests; close() ends everything that it started."""

    def __init__(self, folder=None):
        self.folder = folder or temporary_folder()
        self.cluster = Cluster(self.folder / "pg")
        self.authority = Authority(self.folder / "tls")
        self.certificate, self.key = self.authority.issue("gateway", "DNS:localhost", "DNS:gateway.test",
                                                          "IP:127.0.0.1")
        self.upstream = Upstream(free_port()).start()
        self.gateway = Gateway(self.folder / "gw", self.cluster, self.certificate, self.key, self.upstream.port)
        self.zone = {}

    def open(self):
        self.cluster.create()
        self.cluster.start()
        self.cluster.sql("create database postern", database="postgres")
        self.gateway.write_conf()
        self.gateway.tool("database", "migrate")
        self.cluster.sql(f"create role {ADMIN} login in role postern_admin")
        self.zone = records(self.gateway.tool("dkim", "create", DOMAIN))
        self.account("alice@example.org", "secret-1")
        self.gateway.start()
        return self

    def account(self, login, password, *senders):
        self.cluster.sql("select postern.account_create(:'login', :'password')", login=login, password=password)
        for pattern in senders:
            self.cluster.sql("select postern.sender_grant(:'login', :'pattern')", login=login, pattern=pattern)
        return login, password

    @contextlib.contextmanager
    def database(self, name, options=""):
        """A new, empty database in the place of the stage's: for SQL, and in the configuration."""
        self.cluster.sql(f"create database {name} {options}", database="postgres")
        before, self.cluster.database = self.cluster.database, name
        try:
            self.gateway.write_conf()
            yield self.cluster
        finally:
            self.cluster.database = before
            self.gateway.write_conf()

    def prepare(self):
        """Between two tests: everything runs as at the start, and nothing is on its way."""
        self.cluster.start_if_stopped()
        if self.upstream.server is None:
            self.upstream.start()
        self.upstream.reply = None
        gateway = self.gateway
        defaults = {"upstreams": {"up": {"hosts": [f"localhost:{self.upstream.port}"], "tls": "none"}}, "submission": {},
                    "hosts": ["127.0.0.1"], "listener": {}, "tls_listener": None,
                    "retry": {"first": "1s", "max": "2s"}, "environment": {}, "descriptors": None, "extra": ""}
        alive = gateway.process is not None and gateway.process.poll() is None
        if not alive or gateway.database != self.cluster.conninfo or any(
                getattr(gateway, name) != value for name, value in defaults.items()):
            gateway.stop()
            vars(gateway).update(defaults)
            gateway.start()
        gateway.tool("queue", "retry", "all")
        gateway.wait_queue(0)
        with self.upstream.lock:
            self.upstream.messages.clear()
            self.upstream.commands.clear()

    def close(self, keep=False):
        for end in (self.gateway.stop, self.upstream.stop, self.cluster.stop):
            try:
                end()
            except Exception as error:  # everything else must still be ended
                print(f"# while closing: {error}")
                if self.gateway.process:
                    self.gateway.kill_all()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


__all__ = ["BUILD", "DOMAIN", "Stage", "alone", "run"]
