# SPDX-License-Identifier: ISC
"""Between a gateway and its database: loses the answer to a chosen question, which the database has done."""
import pathlib
import socket
import threading

from environment import free_port, temporary_folder


class AnswerCutter:
    """A unix socket that passes everything on; in the place of a cluster in a gateway's configuration."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.folder = temporary_folder()
        self.port = free_port()
        self.wanted = None  # octets of the question
        self.cut = threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.path = pathlib.Path(f"{self.folder}/.s.PGSQL.{self.port}")
        self.listener.bind(str(self.path))
        self.path.chmod(0o777)
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def conninfo(self):
        return f"host={self.folder} port={self.port} dbname={self.cluster.database}"

    @property
    def environment(self):
        return self.cluster.environment

    def lose_answer(self, question):
        """To the next question with these octets in it."""
        self.cut.clear()
        self.wanted = question

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{self.cluster.folder}/.s.PGSQL.{self.cluster.port}")
            lost = threading.Event()
            threading.Thread(target=self.pump, args=(client, server, lost, True), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, lost, False), daemon=True).start()

    def pump(self, source, target, lost, asks):
        try:
            while octets := source.recv(65536):
                if asks and self.wanted and self.wanted in octets:
                    self.wanted = None
                    lost.set()
                elif not asks and lost.is_set():
                    break
                target.sendall(octets)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        if lost.is_set():
            self.cut.set()

    def close(self):
        self.listener.close()
        self.path.unlink()
        self.folder.rmdir()
