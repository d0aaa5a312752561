# SPDX-License-Identifier: ISC
"""posternd itself: its check of the configuration, its users, its locks, its signals."""
import os
import pathlib
import pwd
import signal
import socket
import subprocess
import time

from client import connect, message
from environment import BUILD, TOP, free_port, run, temporary_folder
from gateway import Gateway
from test_faults import eventually, logs_in, send
from test_refusals import session


def posternd(*words):
    return subprocess.run([BUILD / "posternd", *map(str, words)], capture_output=True, text=True, timeout=20, check=False)


def test_what_the_quickstart_cannot_do_it_says(stage):
    taken = stage.gateway.port
    occupied = stage.folder / "occupied"
    occupied.mkdir()
    (occupied / "file").touch()
    closed = stage.folder / "closed"
    closed.mkdir(mode=0o700)
    options = ["--port", str(free_port()), "--tls-port", str(free_port()), "--dir"]
    for words, said in (
            (["--port", str(taken)], f"port {taken} is taken"),
            (["--port", "70000"], "70000 is no port"),
            (["--port", "6601", "--tls-port", "6601"], "are the same"),
            ([*options, str(occupied)], "is not empty"),
            ([*options, str(occupied / "file")], "cannot be used (File exists)"),
            ([*options, "/proc/none"], "cannot be used (No such file or directory)"),
            ([*options, "/tmp/" + "a" * 70], "choose a shorter --dir"),
            *([([*options, str(closed / "inner")], "cannot enter")] if os.geteuid() == 0 else [])):
        done = subprocess.run(["/usr/bin/python3", TOP / "scripts/quickstart.py", "--check", *words], capture_output=True,
                              text=True, timeout=60, check=False)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, (words, done)
    assert not os.path.exists("/tmp/" + "a" * 70) and not (closed / "inner").exists()


def test_versions_and_usage(stage):
    assert posternd("--version").stdout.startswith("posternd ")
    assert run(BUILD / "postern", "--version").stdout.startswith(b"postern ")
    assert posternd("--nonsense").returncode == 2
    assert stage.gateway.tool("nonsense", check=False).returncode == 2


def test_an_answer_that_cannot_be_written_is_no_success(stage):
    for words in (["--version"], ["--help"], ["-c", stage.gateway.conf, "status"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([BUILD / "postern", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1 and "cannot be written" in done.stderr, (words, done)


def test_the_check_of_the_configuration(stage):
    good = stage.gateway.conf.read_text()
    assert posternd("-c", stage.gateway.conf, "-t").returncode == 0
    bad = stage.folder / "bad.conf"
    bad.write_text(good.replace("hostname =", "hostnane =").replace('retry = { first = "1s"', 'retry = { first = "1x"')
                   .replace('route = "up"', 'route = "nowhere"'))
    done = posternd("-c", bad, "-t")
    assert done.returncode == 1
    for words in ("hostnane", "hostname", "first", "nowhere"):
        assert words in done.stderr, (words, done.stderr)
    assert all(line.startswith(f"{bad}:") for line in done.stderr.splitlines()), done.stderr
    bad.write_text(good.replace(str(stage.certificate), "/nonexistent.crt"))
    done = posternd("-c", bad, "-t")
    assert done.returncode == 1 and "/nonexistent.crt" in done.stderr
    for before, after, words in (
            (stage.cluster.conninfo, "no connection string", 'missing "="'),
            (stage.cluster.conninfo, "dbnam=postern", 'invalid connection option "dbnam"'),
            ('tls = "none"', 'tls = "verify"  ca_file = "/nonexistent.ca"', "/nonexistent.ca")):
        assert before in good
        bad.write_text(good.replace(before, after))
        done = posternd("-c", bad, "-t")
        assert done.returncode == 1 and words in done.stderr, (after, done)


def test_two_of_them_do_not_share_a_spool(stage):
    words = [*(["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []),
             BUILD / "posternd", "-c", stage.gateway.conf]
    second = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode != 0 and f"another posternd runs here (pid {stage.gateway.process.pid})" in second.stderr, second
    send(stage)
    stage.upstream.take()


def test_the_supervisor_killed_alone(stage):
    """Its children see the end of their links and go; a successor takes over."""
    children = stage.gateway.children()
    os.kill(stage.gateway.process.pid, signal.SIGKILL)
    stage.gateway.process.wait(10)
    stage.gateway.process = None
    eventually(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in children.values()), 15)
    stage.gateway.start()
    send(stage)
    stage.upstream.take()


def test_a_renewed_certificate_is_taken_up(stage):
    def shown():
        done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{stage.gateway.tls_port}"], input=b"",
                              capture_output=True, timeout=20, check=False)
        return done.stdout.decode()

    before = session(stage)
    certificate, key = stage.authority.issue("renewed", "DNS:renewed.test", "IP:127.0.0.1")
    kept = stage.certificate.read_bytes(), stage.key.read_bytes()
    stage.certificate.write_bytes(certificate.read_bytes())
    stage.key.write_bytes(key.read_bytes())
    try:
        stage.gateway.process.send_signal(signal.SIGHUP)
        stage.gateway.wait_event("reloaded")
        assert "CN = renewed" in shown()
        assert before.ask("NOOP").startswith("250"), "a live session was lost"
    finally:
        stage.certificate.write_bytes(kept[0])
        stage.key.write_bytes(kept[1])
        stage.gateway.process.send_signal(signal.SIGHUP)
    eventually(lambda: "CN = gateway" in shown())


def test_each_process_has_a_user_of_its_own(stage):
    if os.geteuid() != 0:
        print("# not root: the users cannot be told apart")
        return
    run(TOP / "scripts" / "users")
    folder = temporary_folder()
    gateway = Gateway(folder / "gw", stage.cluster, stage.certificate, stage.key, stage.upstream.port)
    gateway.user = None
    os.chown(folder / "gw/spool", 0, 0)
    os.chown(folder / "gw/run", 0, 0)
    gateway.start()
    try:
        for role, pid in gateway.children().items():
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
            assert set(map(int, uids)) == {pwd.getpwnam(f"postern_{role}").pw_uid}, (role, uids)
            assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status, status
        client = connect(type("Here", (), {"gateway": gateway}))
        client.sendmail("alice@example.org", ["bob@example.net"], message("from its own user"))
        client.quit()
        stage.upstream.take()
        gateway.wait_queue(0)
        mode = (folder / "gw/spool/out").stat()
        assert mode.st_mode & 0o777 == 0o700 and mode.st_uid == pwd.getpwnam("postern_relay").pw_uid
        # The group may ask; strangers may not.
        asked = subprocess.run(["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", BUILD / "postern", "-c",
                                gateway.conf, "queue", "list"], capture_output=True, text=True, check=False)
        assert asked.returncode == 1 and "Permission denied" in asked.stderr, asked.stderr
        began = time.monotonic()
        assert gateway.stop() == 0 and time.monotonic() - began < 10
    finally:
        if gateway.process:
            gateway.kill_all()
        run("rm", "-rf", folder)


def test_what_needs_a_restart_is_not_reloaded(stage):
    """A child that is started after such a reload must still fit the others and the sockets."""
    gateway = stage.gateway
    good = gateway.conf.read_text()
    for before, after, name in (
            (f'["127.0.0.1:{gateway.port}"]', f'["127.0.0.1:{gateway.port}", "127.0.0.1:{free_port()}"]', "listener.address"),
            ('tls = "implicit"', 'tls = "starttls"', "listener.tls"),
            (f"{gateway.folder}/spool", f"{gateway.folder}/other", "spool"),
            ("  submissions = {", "  # submissions = {", "listeners")):
        assert before in good
        gateway.conf.write_text(good.replace(before, after))
        failures = len(gateway.events("reload.failed"))
        gateway.process.send_signal(signal.SIGHUP)
        failure = gateway.wait_event("reload.failed", count=failures + 1)
        assert name in failure["reason"], failure
    submit = gateway.children()["submit"]
    os.kill(submit, signal.SIGKILL)
    eventually(lambda: gateway.children().get("submit", submit) != submit)
    gateway.conf.write_text(good)
    eventually(lambda: logs_in(stage).startswith("235"))


def test_a_stop_while_submit_is_down_is_quick(stage):
    for count in range(1, 6):
        eventually(lambda: "submit" in stage.gateway.children())
        os.kill(stage.gateway.children()["submit"], signal.SIGKILL)
        stage.gateway.wait_event("child.died", count=count, child="submit")
    began = time.monotonic()
    assert stage.gateway.stop() == 0
    assert time.monotonic() - began < 3


def test_a_stop_while_a_port_is_taken_is_quick(stage):
    stage.gateway.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", stage.gateway.port))
        other.listen()
        stage.gateway.start(wait=False)
        eventually(lambda: (stage.folder / "gw/run/lock").read_text() == str(stage.gateway.process.pid))
        time.sleep(0.5)
        assert stage.gateway.process.poll() is None, "it does not try again"
        began = time.monotonic()
        stage.gateway.process.send_signal(signal.SIGTERM)
        assert stage.gateway.process.wait(20) == 1
        assert time.monotonic() - began < 3
        stage.gateway.process = None


def test_a_bad_start_ends_at_once(stage):
    """A certificate that does not fit its key shows in `submit`; the others do not linger."""
    stage.gateway.stop()
    _, other = stage.authority.issue("misfit", "DNS:localhost")
    fitting, stage.gateway.key = stage.gateway.key, other
    # What is half built when a process gives up is not taken apart.
    stage.gateway.environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    try:
        began = time.monotonic()
        stage.gateway.start(wait=False)
        assert stage.gateway.process.wait(20) == 1
        assert time.monotonic() - began < 5
        stage.gateway.wait_event("stopped")
        assert stage.gateway.events("fatal")
    finally:
        stage.gateway.process = None
        stage.gateway.key = fitting
