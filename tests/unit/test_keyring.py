"""Sealing: what was moved, altered or sealed under another key does not open, and no nonce comes twice."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync import keyring as module
from cloudsync.errors import ConfigurationError, SealBroken
from cloudsync.feeds.keys import Keys
from cloudsync.keyring import Keyring

KEYRING = Keyring.generate()
KEYS = Keys("7f3a", "e91c")


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_what_was_sealed_opens(content: bytes, associated: bytes) -> None:
    sealed = KEYRING.sealer().seal(content, associated)
    assert KEYRING.open(sealed, associated) == content
    assert len(content) < 4 or content not in sealed


@pytest.mark.parametrize(
    "elsewhere",
    [
        KEYS.entry_context(6, "10-1"),
        KEYS.entry_context(5, "10-2"),
        Keys("7f3b", "e91c").entry_context(5, "10-1"),
        Keys("7f3a", "e91d").entry_context(5, "10-1"),
        KEYS.delivery_context("gw", [(5, "10-1")]),
        b"",
    ],
)
def test_a_moved_entry_does_not_open(elsewhere: bytes) -> None:
    sealed = KEYRING.sealer().seal(b"row", KEYS.entry_context(5, "10-1"))
    assert KEYRING.open(sealed, KEYS.entry_context(5, "10-1")) == b"row"
    with pytest.raises(SealBroken):
        KEYRING.open(sealed, elsewhere)


def test_another_keyring_does_not_open() -> None:
    sealed = KEYRING.sealer().seal(b"row", b"here")
    with pytest.raises(SealBroken):
        Keyring.generate().open(sealed, b"here")
    same_id = Keyring(keys={sealed[1:5]: os.urandom(32)}, active=sealed[1:5], tag_secret=os.urandom(32))
    with pytest.raises(SealBroken):
        same_id.open(sealed, b"here")


def test_every_single_altered_byte_shows() -> None:
    sealed = KEYRING.sealer().seal(b"some row", b"here")
    for index in range(len(sealed)):
        altered = bytearray(sealed)
        altered[index] ^= 1
        with pytest.raises(SealBroken):
            KEYRING.open(bytes(altered), b"here")


@pytest.mark.parametrize("length", [0, 1, 4, 5, 20, 21, 32, 33, 40, 48])
def test_a_cut_off_value_does_not_open(length: int) -> None:
    sealed = KEYRING.sealer().seal(b"some row", b"here")
    with pytest.raises(SealBroken):
        KEYRING.open(sealed[:length], b"here")


def test_salt_and_nonce_never_repeat_across_sealers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROTATE_AFTER", 7)  # also across rotations
    sealers = [KEYRING.sealer(), KEYRING.sealer()]
    heads = [s.seal(b"same", b"here")[1:33] for _ in range(100) for s in sealers]
    assert len(set(heads)) == len(heads)
    assert len({h[:20] for h in heads}) == 2 * 15


def test_rotation_by_count_draws_a_new_salt_and_old_values_still_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ROTATE_AFTER", 2)
    sealer = KEYRING.sealer()
    sealed = [sealer.seal(b"%d" % n, b"x") for n in range(5)]
    assert [KEYRING.open(s, b"x") for s in sealed] == [b"0", b"1", b"2", b"3", b"4"]
    assert len({s[5:21] for s in sealed}) == 3


def test_old_keys_open_while_a_new_one_seals() -> None:
    old = Keyring(keys={b"old.": b"1" * 32}, active=b"old.", tag_secret=b"t" * 32)
    both = Keyring(keys={b"old.": b"1" * 32, b"new.": b"2" * 32}, active=b"new.", tag_secret=b"t" * 32)
    assert both.open(old.sealer().seal(b"row", b"x"), b"x") == b"row"
    assert both.sealer().seal(b"row", b"x")[1:5] == b"new."
    with pytest.raises(SealBroken):
        old.open(both.sealer().seal(b"row", b"x"), b"x")


def test_the_file_is_the_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        KEYRING.save(tmp_path / "keyring")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keyring").stat().st_mode) == 0o600
    loaded = Keyring.load(tmp_path / "keyring")
    assert loaded.open(KEYRING.sealer().seal(b"row", b"x"), b"x") == b"row"
    assert loaded.tag("topic", "a") == KEYRING.tag("topic", "a")


def test_a_missing_file_says_which_variable_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no keyring at .*/nowhere.*CLOUDSYNC_KEYRING_FILE"):
        Keyring.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "5",
        "{}",
        '{"keys": 5, "active": "00", "tag_secret": ""}',
        '{"keys": {"zz": "!"}, "active": "zz", "tag_secret": ""}',
        '{"keys": {}, "active": "00000000", "tag_secret": ""}',
        '{"keys": {"00000000": "c2hvcnQ="}, "active": "00000000", "tag_secret": "AAAA"}',
        "\x00\x01\x02",
    ],
)
def test_a_bad_file_gives_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keyring"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        Keyring.load(path).sealer().seal(b"row", b"x")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_binary_file_gives_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "keyring"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError):
        Keyring.load(path)


def test_tags_depend_on_purpose_parts_and_secret() -> None:
    other = Keyring.generate()
    tags = {
        KEYRING.tag("topic", "a", "b"),
        KEYRING.tag("topic", "ab"),
        KEYRING.tag("topic", "a"),
        KEYRING.tag("tenant", "a", "b"),
        other.tag("topic", "a", "b"),
    }
    assert len(tags) == 5
    assert json.dumps(KEYRING.tag("topic", "secret")).find("secret") == -1
