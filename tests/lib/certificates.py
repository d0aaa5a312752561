# SPDX-License-Identifier: ISC
"""A private authority and certificates from it."""
from environment import run


class Authority:
    def __init__(self, folder, name="Postern test authority"):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate = folder / "ca.crt"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", folder / "ca.key", "-out", self.certificate, "-days", "3650", "-subj", f"/CN={name}",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")

    def issue(self, name, *alternatives):
        """Certificate and key for names like "DNS:localhost" and "IP:127.0.0.1"."""
        stem = self.folder / name
        certificate, key = stem.with_suffix(".crt"), stem.with_suffix(".key")
        extensions = stem.with_suffix(".ext")
        extensions.write_text(f"subjectAltName={','.join(alternatives)}\nextendedKeyUsage=serverAuth\n")
        run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
            "-out", stem.with_suffix(".csr"), "-subj", f"/CN={name}")
        run("openssl", "x509", "-req", "-in", stem.with_suffix(".csr"), "-CA", self.certificate,
            "-CAkey", self.folder / "ca.key", "-CAcreateserial", "-days", "365", "-extfile", extensions,
            "-out", certificate)
        return certificate, key
