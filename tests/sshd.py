"""A private OpenSSH server on loopback, for tests: its own keys, its own client config.

    with Sshd() as server:
        remote = open_remote(f"{HOST}:{folder}", ssh_config=server.config)

Nothing of the person's own is read or changed, and nothing is left behind. The server runs in a
process group of its own with all its connections, so that it can be stopped or frozen as a whole,
as a machine that loses power or hangs.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

HOST = "syncer-test"
"""The server's name in `Sshd.config`."""
START_SECONDS = 10.0


def find_sshd() -> str | None:
    """The path of the server program, or None where it is not installed."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Sshd:
    """The server. Usable by root and by ordinary users; `port` stays the same over restarts."""

    def __init__(self, *options: str, sftp: str = "internal-sftp") -> None:
        """`options` are further lines for its sshd_config; `sftp` is the SFTP server's command."""
        self._options = (f"Subsystem sftp {sftp}", *options) if sftp else options
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen: list[int] = []

    def __enter__(self) -> Sshd:
        self.folder = Path(tempfile.mkdtemp(prefix="syncer-sshd-"))
        try:
            self.config = self.folder / "ssh_config"
            self.known_hosts = self.folder / "known_hosts"
            self.authorized_keys = self.folder / "authorized_keys"
            self.user_key = self.folder / "user_key"
            self.host_key = self.folder / "host_key"
            self.port = _free_port()
            make_key(self.user_key)
            self.authorize(self.user_key)
            self.change_host_key()
            self.know(self.host_key)
            self._write_configs()
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _write_configs(self) -> None:
        server = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {self.authorized_keys}",
            f"PidFile {self.folder}/pid",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            *self._options,
        ]
        (self.folder / "sshd_config").write_text("\n".join(server) + "\n")
        client = [
            f"Host {HOST}",
            "  HostName 127.0.0.1",
            f"  Port {self.port}",
            f"  User {getpass.getuser()}",
            f"  IdentityFile {self.user_key}",
            "  IdentitiesOnly yes",
            f"  UserKnownHostsFile {self.known_hosts}",
            "  GlobalKnownHostsFile /dev/null",
            "  StrictHostKeyChecking yes",
        ]
        self.config.write_text("\n".join(client) + "\n")

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        program = find_sshd()
        assert program is not None, "OpenSSH's server is not installed"
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks itself in
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [program, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.settimeout(START_SECONDS)
                    if connection.recv(4) == b"SSH-":
                        break
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                log_text = (self.folder / "log").read_text()
                self.stop()
                raise RuntimeError(f"sshd does not start: {log_text}")
            time.sleep(0.02)
        # The look at it counts as a connection that isn't logged in, until it has noticed its end.
        while self.connections() and time.monotonic() < deadline:
            time.sleep(0.01)

    def is_running(self) -> bool:
        """Whether it was started and not stopped; a frozen one runs."""
        return self._process is not None

    def stop(self) -> None:
        """End it and all its connections, at once. Does nothing if it isn't running."""
        if self._process is None:
            return
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._frozen = []

    def freeze(self) -> None:
        """Make it hang, with its connections: the kernel still accepts, nobody answers."""
        self._freeze(self._processes())

    def freeze_connections(self) -> None:
        """Make those that there are hang; it serves new ones."""
        self._freeze(self._processes()[1:])

    def _freeze(self, pids: list[int]) -> None:
        self._frozen = pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []

    def _processes(self) -> list[int]:
        """The server and its connections' processes, which have left its process group."""
        assert self._process is not None
        found = [self._process.pid]
        for pid in found:
            # Each may be gone by now.
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    children = Path(f"/proc/{pid}/task/{task}/children").read_text()
                    found.extend(int(child) for child in children.split())
        return found

    def connections(self) -> int:
        """How many connections it serves at present."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return len(children.read_text().split())

    def authorize(self, *keys: Path) -> None:
        """Accept logins with these keys, and no others."""
        texts = [key.with_suffix(".pub").read_text() for key in keys]
        self.authorized_keys.write_text("".join(texts))

    def change_host_key(self) -> None:
        """Give it a new host key; takes effect when it is started the next time."""
        make_key(self.host_key)

    def know(self, *host_keys: Path) -> None:
        """Make these host keys, and no others, the ones that clients know it by."""
        lines = []
        for key in host_keys:
            kind, text, *_ = key.with_suffix(".pub").read_text().split()
            lines.append(f"[127.0.0.1]:{self.port} {kind} {text}\n")
        self.known_hosts.write_text("".join(lines))


def make_key(path: Path) -> None:
    """Make a key pair at `path` and ``path.pub``, in place of what is there."""
    path.unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "syncer-test", "-f", str(path)],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
