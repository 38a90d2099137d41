"""What an application says of itself, and somebody else's file of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import load_plugin

application = load_plugin("plugins/filter/application.py")


def test_an_application_may_describe_itself(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/platform.yml").write_text("app_celery: shop.jobs\napp_has_metrics: true\n")
    assert application.described(str(tmp_path), "app_has_metrics", False) is True
    assert application.described(str(tmp_path), "app_asgi", "") == ""


@pytest.mark.parametrize(
    "content", ["- a list\n", "platform: linux\napp_has_metrics: true\n", "{{ a template }}: {\n", "\x00", "", "one\n"]
)
def test_a_file_of_the_applications_own_by_that_name_is_not_a_description(tmp_path: Path, content: str) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/platform.yml").write_text(content)
    assert application.described(str(tmp_path), "app_has_metrics", False) is False


URLS = {
    "CELERY_BROKER_URL": "rediss://worker:a%2Fb@[fd00::1]:6380/0?ssl_ca_certs=/ca.crt",
    "REDIS_URL": "rediss://worker:a%2Fb@[fd00::1]:6379?ssl_ca_certs=/ca.crt",
}


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        ("broker", URLS["CELERY_BROKER_URL"]),
        ("results", URLS["REDIS_URL"]),
        ("data", "rediss://worker:a%2Fb@[fd00::1]:6381?ssl_ca_certs=/ca.crt"),
        ("data.host", "fd00::1"),
        ("data.port", "6381"),
        ("data.user", "worker"),
        ("data.password", "a/b"),
        ("results.port", "6379"),
    ],
)
def test_an_application_gets_a_url_of_redis_or_its_pieces(wanted: str, value: str) -> None:
    assert application.redis_variables(URLS, {"CACHE": wanted}, 6381) == {"CACHE": value}


def test_urls_of_sentinels_stay_whole() -> None:
    urls = {"CELERY_BROKER_URL": "sentinel://w:p@a:1/0;sentinel://w:p@b:1/0", "REDIS_URL": ""}
    assert application.redis_variables(urls, {"QUEUE": "broker"}, 6381) == {"QUEUE": urls["CELERY_BROKER_URL"]}
