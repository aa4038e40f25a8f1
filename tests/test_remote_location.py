from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.errors import UsageError
from syncer.remote import Location, open_remote, parse
from syncer.remote.local import LocalRemote


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("host:path", Location("path", "host")),
        ("host:path/", Location("path", "host")),
        ("host:/path", Location("/path", "host")),
        ("host:/", Location("/", "host")),
        ("host:", Location("", "host")),
        ("host:~", Location("", "host")),
        ("host:~/", Location("", "host")),
        ("host:~/blobs/", Location("blobs", "host")),
        ("host:~user/x", Location("~user/x", "host")),
        ("host:~/~x", Location("./~x", "host")),
        ("host:a:b", Location("a:b", "host")),
        ("host:a%20b c", Location("a%20b c", "host")),
        ("user@host:path", Location("path", "host", "user")),
        ("[::1]:path", Location("path", "::1")),
        ("user@[fe80::1%eth0]:/path", Location("/path", "fe80::1%eth0", "user")),
        ("sftp://host", Location("", "host")),
        ("sftp://host/", Location("/", "host")),
        ("sftp://host/path", Location("/path", "host")),
        ("SFTP://user@host:2222/a%20b", Location("/a b", "host", "user", 2222)),
        ("sftp://host/~/x", Location("x", "host")),
        ("sftp://host/~", Location("", "host")),
        ("sftp://host/~other/x", Location("~other/x", "host")),
        ("sftp://[::1]:22/x?y#z", Location("/x?y#z", "::1", None, 22)),
        ("file:///a%2520b/", Location("/a%20b")),
        ("file://localhost/path", Location("/path")),
        ("/path", Location("/path")),
        ("/a:b", Location("/a:b")),
        ("/a/../b/", Location("/b")),
    ],
)
def test_each_form_is_understood_and_printed_back(text: str, location: Location) -> None:
    assert parse(text) == location
    assert parse(str(location)) == location


def test_local_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse("x").path == str(tmp_path / "x")
    assert parse("./a:b").path == str(tmp_path / "a:b")
    assert parse("x/a:b").path == str(tmp_path / "x/a:b")
    assert parse("~/x").path == "/home/someone/x"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":path",
        "host:a\nb",
        "-oProxyCommand=x:path",
        "user@-host:path",
        "-user@host:path",
        "ho st:path",
        "[::1:path:x",
        "[not-an-address]:path",
        "@host:path",
        "s3://bucket/path",
        "http://host/path",
        "sftp://",
        "sftp://host:port/path",
        "sftp://host:0/path",
        "sftp://host:99999/path",
        "sftp://host/%zz",
        "sftp://host/%00",
        "file://elsewhere/path",
        "file://",
    ],
)
def test_what_makes_no_sense_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["sftp://me:secret@host/x", "me:secret@host:x"])
def test_a_password_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="key") as caught:
        parse(text)
    assert "secret" not in str(caught.value)


def test_other_kinds_are_named_as_not_supported() -> None:
    with pytest.raises(UsageError, match="s3:// remotes are not supported"):
        parse("s3://bucket/path")


@given(
    path=st.text(st.characters(exclude_characters="\0\n\r"), max_size=20),
    user=st.none() | st.from_regex(r"[a-z_.+=][a-z0-9_.+=-]{0,8}", fullmatch=True),
    port=st.none() | st.integers(1, 65535),
)
def test_whatever_is_parsed_prints_as_what_parses_to_the_same(
    path: str, user: str | None, port: int | None
) -> None:
    text = f"host:{path}" if user is None else f"{user}@host:{path}"
    try:
        location = parse(text)
    except UsageError:
        return
    location = Location(location.path, location.host, location.user, port)
    if not location.is_local:
        assert parse(str(location)) == location


def test_opening_a_local_one_needs_no_server(tmp_path: Path) -> None:
    assert isinstance(open_remote(str(tmp_path)), LocalRemote)
    assert open_remote(str(tmp_path)).name == os.fspath(tmp_path)
