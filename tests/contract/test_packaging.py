"""What is shipped, and that the project's own tooling stays honest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built without network from what is tracked or would be."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=_ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_carries_the_sql(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "cloudsync/cli/__init__.py" in names
    expected = {
        f"cloudsync/sql/{path.relative_to(_ROOT / 'sql').as_posix()}"
        for path in (_ROOT / "sql").rglob("*.sql")
    }
    assert expected
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests", "stacks", "cloudsync/sql/cloudsync"))]


def test_the_wheel_works_where_there_is_no_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    question = "from cloudsync.capture import migrations as m; print(m.sql_folder(), len(m.load()))"
    done = subprocess.run(
        [sys.executable, "-c", question],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    folder, count = done.stdout.split()
    assert Path(folder) == tmp_path / "installed" / "cloudsync" / "sql"
    assert int(count) == len(list((_ROOT / "sql" / "migrations").glob("*.sql")))


@pytest.mark.parametrize("name", ["build", "runtime", "dev", "deploy"])
def test_the_locks_pin_everything_and_name_no_index(name: str) -> None:
    lines = (_ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9._-]+==[^\s;]+( ; .+)?", line), line


def test_the_locks_hold_what_the_project_asks_for() -> None:
    with (_ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]

    def name_of(requirement: str) -> str:
        return re.split(r"[\[<>=!~ ;]", requirement)[0].lower()

    def locked(name: str) -> set[str]:
        return {name_of(line) for line in (_ROOT / "requirements" / name).read_text().splitlines()}

    assert {name_of(each) for each in project["dependencies"]} <= locked("runtime.lock")
    assert {name_of(each) for each in project["optional-dependencies"]["dev"]} <= locked("dev.lock")
    assert {name_of(each) for each in project["optional-dependencies"]["deploy"]} <= locked("deploy.lock")
    assert locked("runtime.lock") <= locked("dev.lock")


def test_the_locks_agree() -> None:
    def versions(name: str) -> dict[str, str]:
        lines = (_ROOT / "requirements" / name).read_text().splitlines()
        return {line.split("==")[0]: line for line in lines}

    dev, deploy = versions("dev.lock"), versions("deploy.lock")
    assert {name: deploy[name] for name in dev.keys() & deploy} == {
        name: dev[name] for name in dev.keys() & deploy
    }


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_which_python_it_needs(tmp_path: Path) -> None:
    def make(python: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "setup", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    shutil.copy(_ROOT / "Makefile", tmp_path)
    shutil.copy(_ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(_ROOT / "requirements", tmp_path / "requirements")
    assert "there is no python-of-nowhere; install Python 3.11 or newer" in make("python-of-nowhere").stderr

    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    done = make(str(old))
    assert done.returncode != 0
    assert f"{old} is Python 3.9.2; CloudSync needs 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_asks_for_the_environment_before_it_installs(tmp_path: Path) -> None:
    shutil.copy(_ROOT / "Makefile", tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "ENV"}
    done = subprocess.run(
        ["make", "synth"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("make: say which environment: make synth ENV=prod\n")
    assert not (tmp_path / ".venv").exists()
