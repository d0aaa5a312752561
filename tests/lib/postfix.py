# SPDX-License-Identifier: ISC
"""A Postfix of its own, as a customer has it: it relays through the gateway, with a login or by its address. Needs root."""
import os
import pwd

from environment import free_port, run

# qmgr looks at all of its queue each second: else what it once left alone, being still delivered, waits for 5 minutes.
MASTER = """127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
scache unix - - n - 1 scache
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""


WITH_A_LOGIN = """smtp_tls_security_level = secure
smtp_tls_CAfile = {authority}
smtp_tls_secure_cert_match = hostname
smtp_sasl_auth_enable = yes
smtp_sasl_password_maps = inline:{{ {{[localhost]:{gateway_port} = {login}:{password}}} }}
smtp_sasl_security_options = noanonymous
"""
BY_ITS_ADDRESS = """smtp_tls_security_level = none
smtp_bind_address = {source}
"""


class Postfix:
    """start() returns when it takes mail on `port`; log() is what it has said."""

    def __init__(self, folder, gateway_port, authority=None, login=None, password=None, source=None):
        self.folder, self.port = folder, free_port()
        conf, queue, data = (folder / name for name in ("conf", "queue", "data"))
        for path in (folder, conf, queue, data):
            path.mkdir(parents=True)
            path.chmod(0o755)
        os.chown(data, pwd.getpwnam("postfix").pw_uid, 0)
        (conf / "master.cf").write_text(MASTER.format(port=self.port))
        how = (WITH_A_LOGIN if login else BY_ITS_ADDRESS).format(
            authority=authority, gateway_port=gateway_port, login=login, password=password, source=source)
        (conf / "main.cf").write_text(f"""compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
myhostname = customer.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
smtputf8_enable = yes
relayhost = [localhost]:{gateway_port}
smtp_host_lookup = native
{how}minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
""")
        # Postfix logs only to files below these prefixes.
        self.log_file = folder / "log"
        with open(conf / "main.cf", "a", encoding="utf-8") as main:
            main.write(f"maillog_file_prefixes = {folder}\nmaillog_file = {self.log_file}\n")
        self.conf = conf

    def start(self):
        run("postfix", "-c", self.conf, "start")
        return self

    def stop(self):
        run("postfix", "-c", self.conf, "stop")

    def log(self):
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""
