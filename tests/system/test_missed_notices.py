# SPDX-License-Identifier: ISC
"""What a session knows is asked about again before its next message, when a notice may have been missed or time has passed."""
import os
import signal

from environment import eventually
from test_networks import Server, listening
from test_refusals import plain, session


def connected(stage, login, password="secret-1"):
    bare = session(stage, login=False)
    assert bare.ask(plain(login, password)).startswith("235")
    return bare


def deaf(stage, changes):
    """The changes are made in the moment in which nobody listens."""
    stage.cluster.sql(f"begin; {changes}; select pg_terminate_backend(pid) from pg_stat_activity"
                      " where usename in ('postern_auth', 'postern_relay') \\; commit")


def mail(bare, sender, parameters=""):
    answer = bare.ask(f"MAIL FROM:<{sender}>{parameters}")
    if answer.startswith("250"):
        bare.ask("RSET")
    return answer


def test_what_was_revoked_while_nobody_listened(stage):
    for login in ("deaf-password", "deaf-sender", "deaf-token", "deaf-network", "deaf-nothing"):
        stage.account(f"{login}@example.org", "secret-1", f"@{login}.example")
    token = stage.cluster.sql("select postern.app_password_create('deaf-token@example.org', 'phone')")
    stage.cluster.sql("select postern.network_grant('deaf-network@example.org', '127.0.9.0/24')")
    listening(stage)
    server = Server(stage, "127.0.9.1")
    assert mail(server, "a@deaf-network.example").startswith("250")
    sessions = {name: connected(stage, f"deaf-{name}@example.org", token if name == "token" else "secret-1")
                for name in ("password", "sender", "token", "nothing")}
    deaf(stage, """
        select postern.account_set_password('deaf-password@example.org', 'secret-2');
        select postern.sender_revoke('deaf-sender@example.org', '@deaf-sender.example');
        select postern.credential_revoke('deaf-token@example.org', 'phone');
        select postern.network_revoke('deaf-network@example.org', '127.0.9.0/24')""")
    # The rights of one are read anew, in the session that it has.
    eventually(lambda: mail(sessions["sender"], "a@deaf-sender.example").startswith("550 5.7.1"), 20)
    assert mail(sessions["sender"], "deaf-sender@example.org").startswith("250")
    for name in ("password", "token"):
        assert mail(sessions[name], f"a@deaf-{name}.example").startswith("421 4.7.0"), name
    eventually(lambda: mail(server, "a@deaf-network.example").startswith("421 4.7.0"), 20)
    assert mail(sessions["nothing"], "a@deaf-nothing.example").startswith("250")
    for bare in sessions.values():
        bare.close()
    server.close()


def test_a_credential_ends_in_mid_session(stage):
    stage.account("ending@example.org", "secret-1")
    token = stage.cluster.sql("select postern.app_password_create('ending@example.org', 'phone', expires_at => now() + interval '3 s')")
    by_token, by_password = connected(stage, "ending@example.org", token), connected(stage, "ending@example.org")
    assert mail(by_token, "ending@example.org").startswith("250")
    eventually(lambda: mail(by_token, "ending@example.org").startswith("421 4.7.0"), 20)
    assert mail(by_password, "ending@example.org").startswith("250")
    by_password.close()


def test_a_plan_is_felt_in_the_session(stage):
    stage.cluster.sql("select postern.plan_set('shrinking', message_bytes => 100000)")
    stage.cluster.sql("select postern.account_create('shrunk@example.org', 'secret-1', 'shrinking')")
    bare = connected(stage, "shrunk@example.org")
    assert mail(bare, "shrunk@example.org", " SIZE=50000").startswith("250")
    stage.cluster.sql("select postern.plan_set('shrinking', message_bytes => 10000)")
    eventually(lambda: mail(bare, "shrunk@example.org", " SIZE=50000").startswith("552"), 20)
    assert mail(bare, "shrunk@example.org", " SIZE=5000").startswith("250")
    bare.close()


def test_what_was_revoked_while_auth_was_dead(stage):
    stage.account("orphan@example.org", "secret-1")
    bare = connected(stage, "orphan@example.org")
    assert mail(bare, "orphan@example.org").startswith("250")
    dead = stage.gateway.children()["auth"]
    os.kill(stage.gateway.process.pid, signal.SIGSTOP)
    try:
        os.kill(dead, signal.SIGKILL)
        stage.cluster.sql("select postern.account_set_password('orphan@example.org', 'secret-2')")
    finally:
        os.kill(stage.gateway.process.pid, signal.SIGCONT)
    eventually(lambda: mail(bare, "orphan@example.org").startswith("421 4.7.0"), 20)
    bare.close()
