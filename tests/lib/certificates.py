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

    def issue(self, name, *alternatives, dates=None, usage="serverAuth", common=None):
        """Certificate and key for names like "DNS:localhost"; valid for long, or between two dates (YYYYMMDDHHMMSSZ).

        `name` is that of its files, and its common name unless there is another.
        """
        stem = self.folder / name
        certificate, key = stem.with_suffix(".crt"), stem.with_suffix(".key")
        extensions = stem.with_suffix(".ext")
        names = f"subjectAltName={','.join(alternatives)}\n" if alternatives else ""
        extensions.write_text(f"{names}extendedKeyUsage={usage}\n")
        run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
            "-out", stem.with_suffix(".csr"), "-subj", f"/CN={common or name}")
        if dates:
            self.sign_between(stem, dates)
            return certificate, key
        run("openssl", "x509", "-req", "-in", stem.with_suffix(".csr"), "-CA", self.certificate,
            "-CAkey", self.folder / "ca.key", "-CAcreateserial", "-days", "365", "-extfile", extensions,
            "-out", certificate)
        return certificate, key

    def sign_between(self, stem, dates):
        """Only `openssl ca` takes dates, and only with files of its own."""
        conf, index = stem.with_suffix(".conf"), stem.with_suffix(".index")
        index.write_text("")
        conf.write_text(f"[ca]\ndefault_ca=own\n[own]\ndatabase={index}\nnew_certs_dir={self.folder}\npolicy=any\n"
                        "default_md=sha256\nrand_serial=yes\n[any]\ncommonName=supplied\n")
        run("openssl", "ca", "-batch", "-notext", "-config", conf, "-in", stem.with_suffix(".csr"), "-cert", self.certificate,
            "-keyfile", self.folder / "ca.key", "-startdate", dates[0], "-enddate", dates[1],
            "-extfile", stem.with_suffix(".ext"), "-out", stem.with_suffix(".crt"))
