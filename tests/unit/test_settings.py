"""Settings: wrong ones are answered with sentences that name the variable and never show a secret."""

from __future__ import annotations

import pytest
import redis

from cloudsync.errors import ConfigurationError
from cloudsync.settings import Settings, load


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"CLOUDSYNC_GATEWAY_PORT": "99999"}, ["CLOUDSYNC_GATEWAY_PORT"]),
        ({"CLOUDSYNC_GATEWAY_PORT": "http"}, ["CLOUDSYNC_GATEWAY_PORT"]),
        ({"CLOUDSYNC_MODE": "production"}, ["CLOUDSYNC_MODE"]),
        ({"CLOUDSYNC_SLOT_NAME": "my slot"}, ["CLOUDSYNC_SLOT_NAME"]),
        ({"CLOUDSYNC_SLOT_NAME": "a'; DROP TABLE x; --"}, ["CLOUDSYNC_SLOT_NAME"]),
        ({"CLOUDSYNC_REDIS_EVENTS_URL": "http://x"}, ["CLOUDSYNC_REDIS_EVENTS_URL"]),
        ({"CLOUDSYNC_CELL": "3", "CLOUDSYNC_CELLS": "2"}, ["CLOUDSYNC_CELL", "CLOUDSYNC_CELLS"]),
        ({"CLOUDSYNC_WINDOW_FRAMES": "0", "CLOUDSYNC_LOG_LEVEL": "loud"},
         ["CLOUDSYNC_WINDOW_FRAMES", "CLOUDSYNC_LOG_LEVEL"]),
        ({"CLOUDSYNC_CELL_BUCKETS": "everything"}, ["CLOUDSYNC_CELL_BUCKETS"]),
        ({"CLOUDSYNC_CELL_BUCKETS": "511:1"}, ["CLOUDSYNC_CELL_BUCKETS", "1023"]),
        ({"CLOUDSYNC_CELL_BUCKETS": "1023:2"}, ["CLOUDSYNC_CELL_BUCKETS", "CLOUDSYNC_CELLS"]),
        ({"CLOUDSYNC_CELL_BUCKETS": "511:1 511:1 1023:1"}, ["CLOUDSYNC_CELL_BUCKETS"]),
        ({"CLOUDSYNC_REDIS_EVENTS_URL": "rediss://:a@x", "CLOUDSYNC_REDIS_EVENTS_PASSWORD": "b"},
         ["CLOUDSYNC_REDIS_EVENTS_PASSWORD"]),
        ({"CLOUDSYNC_MODE": "deployment", "CLOUDSYNC_JWT_SECRET": "x" * 32}, ["CLOUDSYNC_JWT_SECRET"]),
    ],
)  # fmt: skip
def test_problems_are_sentences_that_name_the_variable(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], names: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load()
    message = str(caught.value)
    assert all(name in message for name in names)
    assert message.endswith(".")
    assert "\n" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLOUDSYNC_REDIS_EVENTS_URL", "http://:hunter2@x"),
        ("CLOUDSYNC_REDIS_BROKER_URL", "memcached://:hunter2@x"),
    ],
)
def test_a_refused_value_with_a_password_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert "hunter2" not in str(caught.value)


def test_passwords_that_come_by_themselves_are_put_into_the_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSYNC_REDIS_EVENTS_URL", "rediss://events.example:6379/0")
    monkeypatch.setenv("CLOUDSYNC_REDIS_EVENTS_PASSWORD", "p@ss/w:rd")
    monkeypatch.setenv("CLOUDSYNC_REDIS_BROKER_URL", "rediss://broker.example:6379/0")
    monkeypatch.setenv("CLOUDSYNC_REDIS_BROKER_PASSWORD", "other")
    settings = load()
    assert settings.redis_events_url == "rediss://:p%40ss%2Fw%3Ard@events.example:6379/0"
    assert settings.broker_url == "rediss://:other@broker.example:6379/0"
    assert redis.Redis.from_url(settings.redis_events_url).connection_pool.connection_kwargs["password"] == (
        "p@ss/w:rd"
    )


def test_buckets_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSYNC_CELLS", "4")
    monkeypatch.setenv("CLOUDSYNC_CELL_BUCKETS", "255:1 1023:4")
    assert load().bucket_map == ((255, 1), (1023, 4))


def test_secrets_do_not_show_in_the_repr() -> None:
    settings = Settings(
        mode="development",
        postgres_url="postgresql://u:hunter2@h/d",
        redis_events_url="redis://:hunter2@h",
        redis_broker_url="redis://:hunter2@h/1",
        jwt_secret="hunter2" * 5,
    )
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


def test_require_names_every_missing_variable() -> None:
    with pytest.raises(ConfigurationError, match="POSTGRES_URL, CLOUDSYNC_KEYRING_FILE must be set"):
        Settings().require("postgres_url", "keyring_file", "slot_name")


def test_the_broker_falls_back_to_the_events_url() -> None:
    assert Settings(redis_events_url="redis://a").broker_url == "redis://a"
    assert Settings(redis_events_url="redis://a", redis_broker_url="redis://b").broker_url == "redis://b"
