# SPDX-License-Identifier: ISC
"""Signatures judged by others: python3-dkim (with python3-nacl for Ed25519), libmail-dkim-perl, OpenDKIM."""
import re
import subprocess

import dkim


def records(zone_text):
    """DNS name -> value, from what `postern dkim create` prints."""
    found = {}
    for name, rest in re.findall(r"^(\S+)\. IN TXT \((.*)\)$", zone_text, re.M):
        found[name] = "".join(re.findall(r'"([^"]*)"', rest))
    return found


def python_dkim(octets, zone):
    """(algorithm, verdict) of every signature."""
    def look_up(name, timeout=5):
        return zone.get(name.decode().rstrip("."), "").encode() or None

    verdicts = []
    count = len(re.findall(rb"^DKIM-Signature:", octets, re.M | re.I))
    for index in range(count):
        verifier = dkim.DKIM(octets, minkey=1024)
        try:
            good = verifier.verify(idx=index, dnsfunc=look_up)
        except dkim.DKIMException as error:
            good = f"error: {error}"
        algorithm = (verifier.signature_fields or {}).get(b"a", b"?").decode()
        verdicts.append((algorithm, good))
    return verdicts


def perl_dkim(octets, zone):
    """Mail::DKIM's result of every signature."""
    script = r"""
use strict; use Mail::DKIM::Verifier; use Mail::DKIM::PublicKey;
my %zone = map { split /\t/, $_, 2 } split /\n/, $ENV{ZONE};
{ no warnings 'redefine';
  *Mail::DKIM::PublicKey::fetch = sub { my ($class, %p) = @_;
    my $text = $zone{"$p{Selector}._domainkey.$p{Domain}"} or return;
    my $key = $class->parse($text); $key->{Selector} = $p{Selector}; $key->{Domain} = $p{Domain}; return $key; };
  *Mail::DKIM::PublicKey::fetch_async = sub { my ($class, %p) = @_;
    return sub { $p{Callbacks}{Success}->($class->fetch(%p)) }; };
}
my $v = Mail::DKIM::Verifier->new; binmode STDIN; local $/; my $m = <STDIN>;
$v->PRINT($m); $v->CLOSE;
print $_->algorithm, " ", $_->result, "\n" for $v->signatures;
"""
    text = "\n".join(f"{name}\t{value}" for name, value in zone.items())
    done = subprocess.run(["perl", "-e", script], input=octets, capture_output=True, env={"ZONE": text},
                          timeout=120, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode("utf-8", "replace"))
    return [tuple(line.split(" ", 1)) for line in done.stdout.decode().splitlines()]


def opendkim(octets, zone, folder):
    """What `opendkim -t` says; keys come from a file in place of the DNS."""
    keys = folder / "opendkim.keys"
    keys.write_text("".join(f"{name} {value}\n" for name, value in zone.items()))
    conf = folder / "opendkim.conf"
    conf.write_text(f"Mode v\nTestPublicKeys {keys}\nSyslog no\n")
    message = folder / "opendkim.eml"
    message.write_bytes(octets)
    done = subprocess.run(["opendkim", "-x", conf, "-t", message], capture_output=True, timeout=120, check=False,
                          text=True)
    return done.stdout + done.stderr
