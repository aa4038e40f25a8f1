"""What the line and OpenSSH themselves can do: the same bytes by scp, and by plain TCP."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from .measure import Book, Stopwatch, content, drop_page_cache
from .place import HOST, Place, receive_bytes, send_bytes
from .systems import WorkError, find_program


def scp(place: Place, book: Book) -> None:
    """One file to the server and back."""
    data = content("large", book.sizes.large_bytes)
    folder = place.folder / "scp"
    folder.mkdir()
    local, far, back = folder / "local", folder / "far", folder / "back"
    local.write_bytes(data)
    size = len(data) / 1e6
    drop_page_cache()
    # Both rows of uploads end with the same bytes on the server; scp's file lies here before.
    for keys, source, target, result in (
        (("upload", "upload-local"), str(local), f"{HOST}:{far}", far),
        (("cold-read",), f"{HOST}:{far}", str(back), back),
    ):
        watch = Stopwatch()
        words = ["scp", "-q", "-F", str(place.ssh_config), source, target]
        subprocess.run(words, check=True)
        seconds = watch.seconds()
        for key in keys:
            book.record(key, size / seconds)
        if result.read_bytes() != data:
            raise WorkError("scp: the file differs")
        drop_page_cache()
    for path in (local, far, back):
        path.unlink()
    folder.rmdir()


def raw_tcp(place: Place, book: Book) -> None:
    """The same number of bytes each way, over one connection."""
    size = book.sizes.large_bytes
    for key, request in (("upload", -size), ("cold-read", size), ("photos-whole", size)):
        watch = Stopwatch()
        with socket.create_connection(("127.0.0.1", place.raw_port)) as connection:
            connection.sendall(f"{request}\n".encode())
            if request < 0:
                send_bytes(connection, size)
                receive_bytes(connection, 1)
            else:
                receive_bytes(connection, size)
        book.record(key, size / 1e6 / watch.seconds())


def versions() -> list[str]:
    """Of the programs measured."""
    found = []
    for words in (
        ["ssh", "-V"],
        ["sshfs", "--version"],
        ["rclone", "version"],
        ["juicefs", "version"],
    ):
        text = version(words)
        if text:
            found.append(text)
    return found


def version(words: list[str]) -> str:
    program = find_program(words[0])
    if not program:
        return ""
    done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].partition(",")[0].partition("+")[0] if lines else Path(program).name
