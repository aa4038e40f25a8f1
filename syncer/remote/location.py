"""Where a remote is: the forms that a person may write, and one to print.

host:path   user@host:path   [::1]:path    as scp takes them: from the login folder on
host:~/path   host:~other/path   host:     likewise
sftp://user@host:port/path                 absolute; sftp://host/~/path is not
file:///path   /path   ./path   ~/path     on this machine
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from ..errors import UsageError

PLAIN_USER_OR_HOST = re.compile(r"[^\s\x00-\x1f\x7f/@:\[\]-][^\s\x00-\x1f\x7f/@:\[\]]*")
ADDRESS_IN_BRACKETS = re.compile(r"[0-9A-Fa-f:.]+(%[0-9A-Za-z._-]+)?")


@dataclass(frozen=True, slots=True)
class Location:
    """A place; `str` gives the canonical form, which `parse` takes back and holds no secret."""

    path: str
    """On this machine: absolute. On a server: absolute, or from the login folder on ("" is that
    folder itself), or from another user's home if it begins with ``~``."""
    host: str = ""
    """Empty for this machine. An IPv6 address stands without brackets."""
    user: str | None = None
    port: int | None = None
    """None means what ssh's config says."""

    @property
    def is_local(self) -> bool:
        return not self.host

    def __str__(self) -> str:
        if self.is_local:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port is None:
            return f"{_with_user(self.user, host)}:{self.path}"
        user = None if self.user is None else _encoded(self.user, "")
        path = self.path if self.path.startswith("/") else f"/{_below_home(self.path)}"
        path = _encoded(path, "/~")
        return f"sftp://{_with_user(user, host)}:{self.port}{path}"


def parse(text: str) -> Location:
    """Understand what a person wrote.

    Raises:
        UsageError: it can't be understood, names a kind of remote that does not exist (yet), or
            holds a password. The text never quotes a password.
    """
    if not text or any(character in text for character in "\0\n\r"):
        raise UsageError("the remote is empty or has a line break; try host:path")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError("the remote holds a character that no file name can have") from error
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme:
        return _parse_url(scheme[1].lower(), text[scheme.end() :])
    server = re.match(r"(?:([^/:\[]*)@)?(\[[^]/]*\]|[^/:@\[]+):(.*)", text)
    if server:
        user, host, path = server.groups()
        if re.match(r"[^/]*@[^/]*:", path):
            raise _password()
        return _on_server(user, host, None, path)
    if re.match(r"[^/]*:", text):
        raise UsageError(f"no host name before the colon of {text!r}; a local path needs ./")
    return _local(os.path.expanduser(text))


def _parse_url(scheme: str, rest: str) -> Location:
    authority, slash, path = rest.partition("/")
    path = _decoded(slash + path)
    if scheme == "file":
        if authority not in ("", "localhost") or not path:
            raise UsageError("a file URL needs an absolute path: file:///path")
        return _local(path)
    if scheme != "sftp":
        raise UsageError(
            f"{scheme}:// remotes are not supported; use host:path, sftp:// or a local folder"
        )
    login, at, address = authority.rpartition("@")
    if ":" in login:
        raise _password()
    user = _decoded(login) if at else None
    parts = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::(\d{1,5}))?", address)
    if not parts or (parts[2] and not 0 < int(parts[2]) < 65536):
        raise UsageError(f"not a host and port: {address!r}")
    port = int(parts[2]) if parts[2] else None
    if path == "/~" or re.match(r"/~[^/]*(/|$)", path):
        path = path[1:]
    return _on_server(user, parts[1], port, path)


def _on_server(user: str | None, host: str, port: int | None, path: str) -> Location:
    if host.startswith("["):
        host = host[1:-1]
        valid = ADDRESS_IN_BRACKETS.fullmatch(host)
    else:
        valid = PLAIN_USER_OR_HOST.fullmatch(host)
    if not valid:
        raise UsageError(f"not a host name: {host!r}")
    if user is not None and not PLAIN_USER_OR_HOST.fullmatch(user):
        raise UsageError(f"not a user name: {user!r}")
    if path == "~" or path.startswith("~/"):
        # The login folder, in so many words. What follows may look like another's home.
        path = path[2:].lstrip("/")
        if path.startswith("~"):
            path = f"./{path}"
    return Location(_without_end_slash(path), host, user, port)


def _local(path: str) -> Location:
    return Location(os.path.abspath(path))


def _without_end_slash(path: str) -> str:
    return path.rstrip("/") or path[:1]


def _below_home(path: str) -> str:
    return path if path.startswith("~") else f"~/{path}"


def _with_user(user: str | None, host: str) -> str:
    return host if user is None else f"{user}@{host}"


def _encoded(text: str, safe: str) -> str:
    return quote(text, safe=safe, errors="surrogateescape")


def _decoded(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise UsageError("a % in a URL must be written as %25")
    decoded = unquote(text, errors="surrogateescape")
    if any(character in decoded for character in "\0\n\r"):
        raise UsageError("a remote's path can't hold a NUL or a line break")
    return decoded


def _password() -> UsageError:
    return UsageError(
        "a password can't be part of the remote's address: use a key (see ssh-copy-id)"
    )
