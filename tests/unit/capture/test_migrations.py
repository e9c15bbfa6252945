"""The SQL files: where they are found, and what their names must say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cloudsync.capture import migrations
from cloudsync.errors import MigrationRefused


def _folder(root: Path, *names: str) -> Path:
    (root / "migrations").mkdir(parents=True)
    for name in names:
        (root / "migrations" / name).write_text(f"-- {name}")
    return root


def test_a_checkout_has_them_at_its_root() -> None:
    folder = migrations.sql_folder()
    assert (folder / "schema.sql").is_file()
    assert migrations.load()[0].name == "0001_pre_schema"


def test_an_installed_package_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "cloudsync"
    monkeypatch.setattr(migrations, "__file__", str(package / "capture" / "migrations.py"))
    with pytest.raises(MigrationRefused, match="SQL files are missing"):
        migrations.sql_folder()
    _folder(package / "sql", "0001_pre_x.sql")
    assert migrations.sql_folder() == package / "sql"


def test_order_phase_and_digest(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "sql", "0010_post_b.sql", "0002_pre_a.sql")
    assert [(m.name, m.phase) for m in migrations.load(folder)] == [
        ("0002_pre_a", "pre"),
        ("0010_post_b", "post"),
    ]
    assert migrations.load(folder)[0].digest == hashlib.sha256(b"-- 0002_pre_a.sql").hexdigest()


@pytest.mark.parametrize(
    "name", ["schema.sql", "1_pre_x.sql", "0001_sometime_x.sql", "0001_pre_.sql", "0001_pre_X.sql"]
)
def test_names_without_order_or_phase_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MigrationRefused, match="no valid name"):
        migrations.load(_folder(tmp_path / "sql", name))


def test_a_number_belongs_to_one_file(tmp_path: Path) -> None:
    with pytest.raises(MigrationRefused, match="same number"):
        migrations.load(_folder(tmp_path / "sql", "0001_pre_x.sql", "0001_post_y.sql"))
