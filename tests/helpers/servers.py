"""Real servers for tests and benchmarks, on loopback, in temporary folders: PostgreSQL from Debian's packages."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "s3cret-@:/%"
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
MISSING = "" if BINARIES else "needs PostgreSQL's server: apt-get install postgresql"


class Postgres:
    """A server that begins empty; ``url`` names its database ``lrsearch``, of a user with a password that must be quoted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self.user:
            shutil.chown(folder, "postgres")
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        self.run("initdb", "-D", f"{folder}/data", "-U", "lrsearch", f"--pwfile={folder}/password", "--auth=scram-sha-256", "--no-sync")
        self.start()
        self.sql("CREATE DATABASE lrsearch", "postgres")

    @property
    def url(self) -> str:
        return f"postgresql://lrsearch:s3cret-%40%3A%2F%25@127.0.0.1:{self.port}/lrsearch"

    def run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [*self.user, BINARIES[-1] / program, *arguments], capture_output=True, text=True, cwd=self.folder,
            env={**os.environ, "PGPASSWORD": PASSWORD, "LC_ALL": "C.UTF-8"},
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self) -> None:
        where = f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        options = f"{where} -c max_connections=400 -c timezone=Asia/Tokyo"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-o", options, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-m", mode, "-w", "stop")

    def sql(self, statement: str, database: str = "lrsearch") -> str:
        return self.run("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "lrsearch", "-d", database, "-Atc", statement)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server while the context lasts."""
    with tempfile.TemporaryDirectory(prefix="lrsearch-pg-") as name:
        Path(name).chmod(0o755)
        server = Postgres(Path(name))
        try:
            yield server
        finally:
            server.stop("immediate")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
