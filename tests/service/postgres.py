"""A private cluster of Postgres in a temporary folder, as an unprivileged user, reached by a socket of the folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

DEBIAN = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
PLACES = (*DEBIAN, *os.environ["PATH"].split(":"), "/usr/sbin")
USERS = ("postgres", "nobody")


def _program(name: str) -> str:
    found = shutil.which(name, path=":".join(PLACES))
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install postgresql pgbouncer")
    return found


class Cluster:
    """A server of Postgres, which can be stopped, killed and started."""

    def __init__(self) -> None:
        self._control = _program("pg_ctl")
        self._user: str | None = None
        if os.geteuid() == 0:  # initdb refuses root
            known = {entry.pw_name for entry in pwd.getpwall()}
            self._user = next(user for user in USERS if user in known)
        # Its user may not reach pytest's folders, and the name of a socket is short.
        self.folder = Path(tempfile.mkdtemp(prefix="mochi-pg-"))
        self.data, self.log = self.folder / "data", self.folder / "log"
        self.folder.chmod(0o755)
        if self._user:
            shutil.chown(self.folder, self._user)
        options = ["-A", "trust", "-U", "mochi", "--encoding", "UTF8", "--locale", "C"]
        self._run(_program("initdb"), "-D", str(self.data), *options)
        self.start()
        self._made = 0

    def url(self, name: str = "postgres") -> str:
        return f"postgresql://mochi@/{name}?host={quote(str(self.folder), safe='')}"

    def database(self) -> str:
        """Make an empty database, and return its URL."""
        self._made += 1
        name = f"test{self._made}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    @contextmanager
    def pooled(self) -> Iterator[str]:
        """Put PgBouncer in transaction mode before a new database, and yield that URL."""
        program, url = _program("pgbouncer"), self.database()
        name = url.partition("@/")[2].partition("?")[0]
        settings = self.folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n{name} = user=mochi host={self.folder}\n"
            "[pgbouncer]\nauth_type = any\npool_mode = transaction\n"
            f"listen_addr =\nlisten_port = 6432\nunix_socket_dir = {self.folder}\ndefault_pool_size = 4\n"
        )
        process = subprocess.Popen([program, "-q", str(settings)], user=self._user, cwd="/", stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 30
            while not (self.folder / ".s.PGSQL.6432").exists():
                assert process.poll() is None, "PgBouncer ended"
                assert time.monotonic() < end, "PgBouncer did not start"
                time.sleep(0.05)
            yield f"{url}&port=6432"
        finally:
            process.terminate()
            process.wait()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, *command: str) -> None:
        subprocess.run(command, user=self._user, cwd="/", check=True, capture_output=True, timeout=60)

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c max_connections=60"
        subprocess.run(
            [self._control, "-D", str(self.data), "-w", "-o", options, "-l", str(self.log), "start"],
            user=self._user,
            cwd="/",
            check=True,
            timeout=60,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self, how: str = "immediate") -> None:
        self._run(self._control, "-D", str(self.data), "-m", how, "-w", "stop")
