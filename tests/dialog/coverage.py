# SPDX-License-Identifier: ISC
"""What has occurred while the transcripts ran, beside the gateway's own tables: of replies what clients
received, of reasons to close what an @log of a transcript has seen, of commands what clients sent and how
it was answered. The tables are read from the sources, so that a new row is missed until a transcript has it."""
import pathlib
import re

TOP = pathlib.Path(__file__).resolve().parent.parent.parent

# What occurs in no transcript, and why: the one place for it.
EXCEPTED = {}

# Where a command leads that was taken; one that is not here leaves the session where it is.
LEADS_TO = {"EHLO": "READY", "HELO": "READY", "STARTTLS": "START", "MAIL": "MAIL", "RCPT": "RCPT", "BDAT": "BDAT"}


def read(path):
    return re.sub(r"/\*.*?\*/", "", (TOP / path).read_text(encoding="utf-8"), flags=re.S)


def read_replies():
    """(name, pattern of a line), the most exact first: "250 %s" fits much that others fit as well."""
    rows = []
    for name, code, enhanced, text in re.findall(r'REPLY\((\w+), (\d+), "(.*?)", "(.*?)", "', read("gateway/mail/replies.def")):
        words = f"{code} {enhanced}{' ' if enhanced else ''}{text}".split("%s")
        rows.append((name, re.compile(".*".join(map(re.escape, words)), re.S), sum(map(len, words))))
    rows.sort(key=lambda row: -row[2])
    return [row[:2] for row in rows]


def read_commands():
    """Rows of the command table: verb, states, flags and so on, as they are written there."""
    source = read("gateway/submit/commands.c")
    for name, meaning in re.findall(r"^#define (\w+) +(\(.*\))$", source, flags=re.M):
        source = re.sub(rf"\b{name}\b", lambda _, meaning=meaning: meaning, source)
    return [{"verb": verb, "checks": check != "no_check" or verb == "BDAT", "states": re.findall(r"S\((\w+)\)", states), "flags": flags}
            for verb, check, states, flags in
            re.findall(r'\{"(\w+)", (\w+), \w+, (.*?), ([\w| ]+)\},', source)]


def command_cases(rows):
    """What must have happened to each command."""
    states = list(dict.fromkeys(state for row in rows for state in row["states"]))
    for row in rows:
        for state in states:
            if state not in row["states"]:
                yield f"{row['verb']} refused in state {state}"
            elif state != "START" or "NEED_AUTH" not in row["flags"]:  # nobody is logged in there
                yield f"{row['verb']} taken in state {state}"
        if row["checks"]:
            yield f"{row['verb']} with arguments that do not fit"
        if "NEED_AUTH" in row["flags"]:
            yield f"{row['verb']} without a login"
        if "NOTHING_BEHIND" in row["flags"]:
            yield f"{row['verb']} with something behind it"


class Coverage:
    """Of one run; stories that play side by side share it."""

    def __init__(self):
        self.replies = read_replies()
        self.commands = read_commands()
        closings = re.findall(r'CLOSING\(\w+, "(\w+)"\)', read("gateway/submit/closing.def"))
        self.wanted = ([f"reply {name}" for name, _ in self.replies] + [f"close reason {name}" for name in closings] +
                       list(command_cases(self.commands)))
        self.seen = set()

    def see_reply(self, line):
        """The row of the table that a client's line is of; None: there is none."""
        found = next(((name, pattern) for name, pattern in self.replies if pattern.fullmatch(line)), (None, None))
        # Rows with the same words are one reply to a client, who cannot tell them apart either.
        self.seen |= {f"reply {name}" for name, pattern in self.replies if pattern == found[1]}
        return found[0]

    def see_event(self, event):
        if event.get("event") == "session.closed":
            self.seen.add(f"close reason {event['reason']}")

    def faults(self):
        yield from (f"{what} occurs in no transcript" for what in self.wanted if what not in self.seen | EXCEPTED.keys())
        yield from (f"{what} is excepted, but " + ("occurs" if what in self.seen else "is in no table")
                    for what in EXCEPTED if what in self.seen or what not in self.wanted)


class Conversation:
    """What one client sends and gets: the replies, and in which state each command was taken or refused."""

    def __init__(self, coverage):
        self.coverage = coverage
        self.state = None  # before the greeting, or when what a refusal has left behind is not clear
        self.sends = "commands"  # or "login", the next response; or "message", up to its dot
        self.octets, self.chunk = b"", 0  # not looked at yet; how many of the next belong to a BDAT
        self.at_start = True  # of a line of the message
        self.open = []  # commands that wait for their replies

    def sent(self, octets):
        self.octets += octets
        while True:
            passed, self.octets = self.octets[:self.chunk], self.octets[self.chunk:]
            self.chunk -= len(passed)
            line, end, rest = self.octets.partition(b"\n")
            if not end:
                break
            self.octets = rest
            if self.sends == "message":
                ended, self.at_start = self.at_start and line == b".\r", line.endswith(b"\r")
                if not ended:
                    continue
            words = line.split() if self.sends == "commands" else []
            if len(words) > 1 and words[0].upper() == b"BDAT" and words[1].isdigit():
                self.chunk = int(words[1])
            self.open.append(b" ".join(words).decode("utf-8", "replace").upper())
            self.sends, self.at_start = "commands", True

    def received(self, line):
        """A line of a reply; false when the table has none like it."""
        if line[3:4] == "-":
            return True
        name = self.coverage.see_reply(line)
        if name == "GREETING":
            self.state, self.open = "START", []
        elif line[:3] != "421" and self.open:
            self.answered(self.open.pop(0), name, line[:3])
        return name is not None

    def answered(self, command, name, code):
        taken = code[0] in "23"
        verb = command.partition(" ")[0]
        row = next((row for row in self.coverage.commands if row["verb"] == verb), None)
        self.sends = {"GO_AHEAD": "message", "CHALLENGE": "login"}.get(name, "commands")
        if row is None:  # none that is known, a login's next step, or the end of a message
            if not command and self.state == "RCPT":
                self.state = "READY"
            return
        if name == "PIPELINING":
            self.see(f"{verb} with something behind it")
        elif name in ("NEED_LOGIN", "NEED_TLS_FIRST"):
            self.see(f"{verb} without a login")
        elif code in ("501", "504"):
            self.see(f"{verb} with arguments that do not fit")
        if self.state in row["states"] and taken:
            self.see(f"{verb} taken in state {self.state}")
        elif self.state not in row["states"] and not taken and self.state:
            self.see(f"{verb} refused in state {self.state}")
        if taken:
            self.state = self.next_state(verb, command.endswith(" LAST"))
        elif verb in ("DATA", "BDAT") and self.state in row["states"] and code != "501":
            self.state = None

    def see(self, case):
        self.coverage.seen.add(case)

    def next_state(self, verb, is_last):
        if verb == "RSET" and self.state != "START" or verb == "BDAT" and is_last:
            return "READY"
        return LEADS_TO.get(verb, self.state)
