# SPDX-License-Identifier: ISC
"""An Exim of its own, as a customer has it: it relays through the gateway, with a login. Needs root.

Debian's Exim cannot be installed beside Postfix: scripts/test unpacks it (scripts/packages). It insists on a user of
its name, which it finds in a list of users of its own.
"""
import os
import pathlib
import subprocess

from environment import TOP, eventually, free_port, give, unprivileged

BINARY = TOP / ".cache/exim/usr/sbin/exim4"
USER = "nobody"

CONF = """exim_path = {binary}
primary_hostname = customer.test
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
pid_file_path = {folder}/pid
deliver_drop_privilege
keep_environment =
tls_advertise_hosts =
smtputf8_advertise_hosts = *
acl_smtp_rcpt = accept
acl_smtp_data = accept

begin routers
# What comes back to its sender is kept, not sent through the gateway again.
bounces:
  driver = accept
  senders = :
  transport = box
relay:
  driver = manualroute
  route_list = * localhost byname
  self = send
  transport = gateway

begin transports
box:
  driver = appendfile
  file = {folder}/bounces
  user = {user}
  create_directory = false
gateway:
  driver = smtp
  port = {gateway_port}
  hosts_require_tls = *
  hosts_require_auth = *
  tls_verify_certificates = {authority}
  tls_verify_hosts = *
  tls_verify_cert_hostnames = *

begin retry
* * F,1h,1s

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  client_send = ^{login}^{password}
"""

# In a mount namespace of its own, which ends with it.
START = 'mount --bind "$1" /etc/passwd && mount --bind "$2" /etc/group && shift 2 && exec "$@"'


class Exim:
    """start() returns when it takes mail on `port`; log() is what it has said, bounces() what it gave up."""

    def __init__(self, folder, gateway_port, authority, login, password):
        assert BINARY.exists(), f"no {BINARY}: scripts/test system fetches it"
        self.folder, self.port, self.process = folder, free_port(), None
        for path in (folder, folder / "spool"):
            path.mkdir(parents=True)
            give(path, USER)
        self.conf = folder / "exim.conf"
        self.conf.write_text(CONF.format(binary=BINARY, port=self.port, folder=folder, user=USER, login=login,
                                         password=password, gateway_port=gateway_port, authority=authority))
        uid, gid = os.stat(folder).st_uid, os.stat(folder).st_gid
        for name, entry in (("passwd", f"Debian-exim:x:{uid}:{gid}::/nonexistent:/bin/false\n"),
                            ("group", f"Debian-exim:x:{gid}:\n")):
            (folder / name).write_text(pathlib.Path("/etc", name).read_text() + entry)

    def start(self):
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", START, "sh", self.folder / "passwd", self.folder / "group",
             *unprivileged(USER), BINARY, "-C", self.conf, "-bdf", "-q1s"], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: "daemon started" in self.log() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log()
        return self

    def stop(self):
        self.process.terminate()
        self.process.wait(10)

    def read(self, name):
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def log(self):
        return self.read("mainlog") + self.read("paniclog")

    def bounces(self):
        return self.read("bounces")
