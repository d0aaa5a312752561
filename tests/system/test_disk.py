# SPDX-License-Identifier: ISC
"""A spool on a real file system that gets full: of mail, of what others put there, of files."""
import contextlib
import os
import shutil
import smtplib
import time

from client import connect, message
from environment import eventually, give, run
from gateway import USER
from load import Load
from test_faults import send
from test_refusals import plain, session

MIB = 1 << 20
AGAIN_IN = 10  # seconds, from when there is room


class Disk:
    """A small ext4 under the spool, from mount() to unmount()."""

    def __init__(self, stage, inodes):
        self.stage, self.folder, self.image = stage, stage.gateway.folder / "spool", stage.folder / "disk"
        with open(self.image, "wb") as image:
            image.truncate(64 * MIB)
        run("mkfs.ext4", "-q", "-m", "0", "-N", inodes, self.image)

    def mount(self):
        run("mount", "-o", "loop", self.image, self.folder)
        give(self.folder, USER)

    def unmount(self):
        if os.path.ismount(self.folder):
            run("umount", self.folder)
        self.image.unlink()

    def free(self):
        state = os.statvfs(self.folder)
        return state.f_bavail * state.f_frsize

    def leave(self, octets):
        """Others take all but so much."""
        with open(self.folder / "ballast", "ab") as ballast, contextlib.suppress(OSError):
            while (much := self.free() - octets) > 0:
                os.posix_fallocate(ballast.fileno(), ballast.tell(), much)
                ballast.seek(0, os.SEEK_END)
        # The last blocks one by one: fallocate() takes all or nothing.
        if octets == 0:
            with contextlib.suppress(OSError), open(self.folder / "ballast", "ab", buffering=0) as ballast:
                while True:
                    ballast.write(bytes(4096))

    def give_back(self):
        (self.folder / "ballast").unlink()


@contextlib.contextmanager
def small_disk(stage, inodes=1024):
    gateway = stage.gateway
    gateway.stop()
    gateway.submission = {"message_size": "1M"}
    disk = Disk(stage, inodes)
    try:
        disk.mount()
        gateway.start()
        yield disk
    finally:
        try:
            gateway.stop()
        except Exception:
            gateway.kill_all()
            raise
        finally:
            disk.unmount()


NO_ROOM = "452 4.3.1 Not enough storage, try again later"


def until_refused(load):
    """Nobody gets anything through any more."""
    def quiet():
        before, asked = load.acknowledged, len(load.replies)
        time.sleep(0.5)
        return load.acknowledged == before and len(load.replies) > asked

    eventually(quiet, 60)


def upstream_returns(stage):
    stage.upstream.start()
    stage.gateway.tool("queue", "retry", "all")  # and not when its rest is over


def refusals(load):
    return {(reply.verb, reply.text) for reply in load.not_successes()}


def not_root():
    if os.geteuid() != 0:
        print("# not root: nothing can be mounted")
    return os.geteuid() != 0


def test_mail_fills_it(stage):
    """452 to MAIL below the reserve, nothing else; delivery makes room, and then it accepts by itself."""
    if not_root():
        return
    with small_disk(stage) as disk:
        pids = stage.gateway.children()
        stage.upstream.stop()
        disk.leave(16 * MIB)
        with Load(stage, kept=3, name="full") as load:
            until_refused(load)
            full, left = load.acknowledged, disk.free()
            upstream_returns(stage)
            eventually(lambda: disk.free() > left, 30)
            began = time.monotonic()
            load.wait_acknowledged(20, AGAIN_IN)
            took = time.monotonic() - began
        load.close_books()
        assert stage.gateway.children() == pids and not load.lost_connections and not load.twice()
        assert refusals(load) == {("MAIL", NO_ROOM)}, refusals(load)
    print(f"# {full} messages until it was full with {left >> 10} KiB left; accepted {took:.1f} s after there was room")


def test_others_fill_it(stage):
    """To the last block, while messages come: nothing half, and room for what delivery must write."""
    if not_root():
        return
    with small_disk(stage) as disk:
        pids = stage.gateway.children()
        stage.upstream.stop()
        with Load(stage, kept=3, name="others") as load:
            load.wait_acknowledged(50)
            disk.leave(0)
            until_refused(load)
            disk.give_back()
            began = time.monotonic()
            load.wait_acknowledged(20, AGAIN_IN)
            took = time.monotonic() - began
            eventually(lambda: load.acknowledged_octets > 8 * MIB, 30)
            disk.leave(0)
            until_refused(load)
            upstream_returns(stage)
            load.wait_all()
            load.wait_acknowledged(20, AGAIN_IN)  # with what delivery has freed
        load.close_books()
        assert stage.gateway.children() == pids and not load.lost_connections and not load.twice()
        assert refusals(load) <= {("MAIL", NO_ROOM), ("DOT", NO_ROOM)}, refusals(load)
        refused = sum(reply.verb == "DOT" for reply in load.not_successes())
    print(f"# {load.acknowledged} messages accepted, {refused} refused at their end; accepted again after {took:.1f} s")


def test_one_account_does_not_take_it(stage):
    """It never ends its messages: it gets 452, and another account has room all the time."""
    if not_root():
        return
    with small_disk(stage) as disk, contextlib.ExitStack() as crowd:
        stage.account("greedy@example.org", "secret-2")
        there, piece = disk.free(), b"0123456789abcde\r\n" * 60000
        for number in range(60):
            greedy = session(stage, login=False)
            crowd.callback(greedy.close)
            assert greedy.ask(plain("greedy@example.org", "secret-2")).startswith("235")
            assert greedy.ask("MAIL FROM:<greedy@example.org>").startswith("250"), number
            if not greedy.ask("RCPT TO:<bob@example.net>").startswith("250"):
                break
            assert greedy.ask("DATA").startswith("354")
            greedy.send(b"From: <greedy@example.org>\r\n\r\n" + piece)
            if number % 5 == 0:
                send(stage, str(number))
                assert stage.upstream.take().subject == str(number)
        # Half is its share, once all of its messages are nearly there and nothing is kept for their rest.
        assert there * 2 // 5 < disk.free(), f"{there} octets, and now {disk.free()}"
        stage.gateway.wait_event("share.full", account="greedy@example.org", what="disk")
        send(stage, "last")
        assert stage.upstream.take().subject == "last"


def test_it_starts_when_it_is_full(stage):
    if not_root():
        return
    with small_disk(stage) as disk:
        stage.upstream.stop()
        with Load(stage, name="before") as load:
            load.wait_acknowledged(20)
        eventually((disk.folder / "out/spare").exists)  # `relay` makes it beside its start
        disk.leave(0)
        stage.gateway.kill_all()
        stage.gateway.start()
        bare = session(stage)
        assert bare.ask("MAIL FROM:<alice@example.org>") == NO_ROOM
        upstream_returns(stage)
        load.wait_all()
        disk.give_back()
        eventually(lambda: bare.ask("MAIL FROM:<alice@example.org>").startswith("250"), AGAIN_IN)
        bare.close()
        load.close_books()
        assert not load.twice()


def test_no_files_are_left(stage):
    """A large body needs one: it is refused; a small message does not, and delivery goes on."""
    if not_root():
        return
    with small_disk(stage, inodes=64) as disk:
        send(stage, "before")
        stage.upstream.take()
        others = disk.folder / "others"
        others.mkdir()
        with contextlib.suppress(OSError):
            for number in range(1000):
                (others / str(number)).touch()
        assert os.statvfs(disk.folder).f_favail == 0
        client = connect(stage)
        large = message("large", body=b"0123456789abcde\r\n" * 20000)
        try:
            client.sendmail("alice@example.org", ["bob@example.net"], large)
            raise AssertionError("a large message was accepted")
        except smtplib.SMTPDataError as error:
            assert f"{error.smtp_code} {error.smtp_error.decode()}" == NO_ROOM
        client.sendmail("alice@example.org", ["bob@example.net"], message("small"))
        assert stage.upstream.take().subject == "small"
        shutil.rmtree(others)
        client.sendmail("alice@example.org", ["bob@example.net"], large)
        assert stage.upstream.take().subject == "large"
        client.quit()
