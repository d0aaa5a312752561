# SPDX-License-Identifier: ISC
"""No process dies of an allocation that fails, nothing is refused for good, nothing is lost."""
import smtplib
import ssl

from client import connect, message
from environment import eventually
from failing_malloc import FailingMemory

ACCOUNTS = 400


def make_accounts(stage):
    """Many, so that each login is the first of its account, and asks the database."""
    stage.cluster.sql(f"""
        create temporary table one as
            select verifier from postern.credential where account =
                (select id from postern.account where login = 'alice@example.org') limit 1;
        select postern.account_create('m' || n || '@example.org', verifier) from one, generate_series(1, {ACCOUNTS}) n""")


def send(stage, number):
    """A login and a message; its subject when it was accepted."""
    login, subject = f"m{number}@example.org", f"memory {number}"
    try:
        client = connect(stage, login, "secret-1")
        client.sendmail(login, ["bob@example.net"], message(subject, sender=login))
        client.quit()
        return subject
    except smtplib.SMTPRecipientsRefused as refused:
        assert all(code < 500 for code, _ in refused.recipients.values()), refused
    except smtplib.SMTPResponseException as refused:
        assert refused.smtp_code < 500, refused
    except (smtplib.SMTPServerDisconnected, ssl.SSLError, OSError):
        pass
    return None


def subjects(stage):
    with stage.upstream.lock:
        return [m.subject for m in stage.upstream.messages]


def test_each_allocation_fails_in_turn(stage):
    gateway = stage.gateway
    gateway.stop()
    make_accounts(stage)
    memory = FailingMemory(stage.folder)
    gateway.environment = memory.environment
    gateway.start()
    eventually(lambda: len(gateway.children()) == 3)
    children = gateway.children()
    number, accepted = 0, []
    for role in ("auth", "submit", "relay"):
        failing = 0
        asked = 1
        while failing <= asked:
            number, failing = number + 1, failing + 1
            memory.fail(children[role], failing)
            subject = send(stage, number)
            if subject:
                accepted.append(subject)
                eventually(lambda: subject in subjects(stage), 20)
            asked = memory.stop()
            assert gateway.children() == children, f"allocation {failing} of {role}"
        print(f"# {role}: {failing - 1} allocations failed")
        assert failing > 5
    gateway.wait_queue(0)
    came = subjects(stage)
    assert set(came) >= set(accepted)
    twice = {s for s in came if came.count(s) > 1}
    assert not twice, twice
