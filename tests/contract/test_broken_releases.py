"""The faults that scenarios put into a release still fit the application."""

import pytest

from tests.support import REPOSITORY, load_plugin


def test_each_fault_finds_its_place_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLECULE_PROJECT_DIRECTORY", str(REPOSITORY))
    faults = load_plugin("molecule/shared/releases.py").FAULTS
    assert faults
    for name, (file, before, _) in faults.items():
        assert (REPOSITORY / "app" / file).read_text().count(before) == 1, name
