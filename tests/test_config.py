from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.config import SETTINGS, Config
from syncer.errors import AccessError, MissingError, UsageError
from syncer.values import format_size, parse_size

SMALL = Config(remote="someserver:~/blobs/", limit_bytes=1_000_000_000)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1000", 1_000_000_000),
        ("64", 64_000_000),
        ("0", 0),
        ("512M", 512_000_000),
        ("20G", 20_000_000_000),
        ("20 gb", 20_000_000_000),
        ("1.5T", 1_500_000_000_000),
        ("4Ki", 4096),
        ("1MiB", 1_048_576),
        ("300k", 300_000),
        ("17B", 17),
        (" 17b ", 17),
        ("9007199254740993B", 2**53 + 1),
    ],
)
def test_a_size_is_read_as_a_person_writes_it(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "-1", "1e3", "1,5G", "10P", "1 0", "0x10", "1Bi", "١"])
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@given(st.integers(0, 10**17))
def test_a_formatted_size_is_read_back_without_loss(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(20_000_000_000, "20G"), (1_500_000_000, "1500M"), (64 << 20, "64Mi"), (4097, "4097B")],
)
def test_a_size_is_formatted_in_its_largest_exact_unit(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


def test_a_file_with_two_lines_is_enough() -> None:
    assert Config.parse("[syncer]\nremote = someserver:~/blobs/\nmax_size = 1000\n") == SMALL


def test_every_default_is_a_value_that_a_person_may_write() -> None:
    for setting in SETTINGS:
        if setting.default_text:
            assert setting.parse(setting.default_text) == setting.default


@pytest.mark.parametrize(
    "remote",
    ["host:a = b", "host:%(x)s 100%", "/pfad/zu/é", "host:a;b #c", "/raw/\udcff", "[::1]:x", "a:"],
)
def test_any_remote_survives_the_file(tmp_path: Path, remote: str) -> None:
    path = tmp_path / "config"
    changed = SMALL.with_value("remote", remote)
    changed.save(path)
    assert Config.load(path) == changed


def test_every_setting_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config"
    changed = SMALL
    for key, text in {
        "max-size": "20G",
        "min_free": "2G",
        "upload_limit": "1.5M",
        "download_limit": "300K",
        "connections": "16",
        "upload_workers": "12",
        "transport": "paramiko",
        "timeout": "12.5",
        "epoch": "0.5",
        "fuse": "2",
        "writeback": "off",
        "subtype": "sshfs",
        "show_snapshots": "on",
        "read_ahead": "128Mi",
        "inline_limit": "0",
        "inline_total": "1G",
        "keep_within": "12h",
        "keep_hourly": "24",
        "keep_daily": "30",
        "keep_weekly": "12",
        "keep_monthly": "24",
        "keep_yearly": "10",
        "prune_every": "90min",
        "grace": "0",
    }.items():
        changed = changed.with_value(key, text)
    untouched = {
        field.name
        for field in dataclasses.fields(Config)
        if getattr(changed, field.name) == getattr(SMALL, field.name)
    }
    assert untouched == {"remote"}
    changed.save(path)
    assert Config.load(path) == changed


def test_what_equals_its_default_is_not_written() -> None:
    assert SMALL.format() == "[syncer]\nremote = someserver:~/blobs/\nmax_size = 1G\n"


def test_a_value_is_given_as_it_is_written() -> None:
    assert SMALL.value("max-size") == "1G"
    assert SMALL.value("writeback") == "on"
    assert SMALL.value("timeout") == "30"


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("max_size", "63", "max_size must be 64M to 1000T .* not '63'"),
        ("max_size", "lots", "max_size must be a size such as"),
        ("max_size", "0", "max_size must be"),
        ("min_free", "-1", "min_free must be"),
        ("upload_limit", "500000", "a number without a unit counts MB"),
        ("connections", "0", "connections must be a whole number, 1 to 64, not '0'"),
        ("connections", "8.5", "connections must be"),
        ("transport", "rsync", "transport must be auto, ssh or paramiko, not 'rsync'"),
        ("timeout", "nan", "timeout must be 1 to 3600 seconds"),
        ("timeout", "0.5", "timeout must be"),
        ("epoch", "5", "epoch must be 0.1 to 4 seconds"),
        ("writeback", "yes", "writeback must be on or off"),
        ("remote", "", "remote must be text"),
        ("remote", "host:a\nmax_size = 1T", "remote must be text"),
        ("colour", "blue", "there is no setting 'colour'; there are remote, max_size,"),
    ],
)
def test_a_bad_value_is_one_clear_line(key: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        SMALL.with_value(key, text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"one section, \[syncer\]"),
        (b"\xff\x00", "config: "),
        (b"remote = x\n", "no section headers"),
        (b"[syncer]\nremote = x\n", "max_size is missing"),
        (b"[syncer]\nmax_size = 100\n", "remote is missing"),
        (b"[syncer]\nremote\nmax_size = 100\n", "config: "),
        (b"[syncer]\nremote = x\nmax_size = 100\ncolour = blue\n", "no setting 'colour'"),
        (b"[syncer]\nremote = x\nremote = y\nmax_size = 100\n", "already exists"),
        (b"[syncer]\nremote = x\nmax_size = 1G\nmax-size = 2G\n", "max_size is there twice"),
        (b"[syncer]\nremote = x\nmax_size = 100\n[more]\n", "one section"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as raised:
        Config.load(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_no_file_means_no_data_directory(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="data directory"):
        Config.load(tmp_path / "config")
    (tmp_path / "file").touch()
    with pytest.raises(MissingError):
        Config.load(tmp_path / "file" / "config")


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config"
    SMALL.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failed_save_leaves_the_old_settings_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    SMALL.save(path)

    def disk_is_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("syncer.config.os.fsync", disk_is_full)
    with pytest.raises(AccessError, match="No space left on device"):
        SMALL.with_value("max_size", "2G").save(path)
    monkeypatch.undo()
    assert Config.load(path) == SMALL
    assert os.listdir(tmp_path) == ["config"]


def test_saving_into_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="can't be written"):
        SMALL.save(tmp_path / "gone" / "config")
