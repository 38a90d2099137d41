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
