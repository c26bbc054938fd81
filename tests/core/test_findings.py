"""What doctors say."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.findings import Finding, error, machine, ok, tell, warning


def test_findings_are_told_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    def looking():
        yield ok("all there")
        assert capsys.readouterr().out == "ok       all there\n"
        yield warning("few clips", "record more")

    assert tell(looking(), "; see page") == 0
    assert capsys.readouterr().out == ("warning  few clips\n         -> record more\n0 errors, 1 warnings; see page\n")
    assert tell([error("gone"), ok("here"), error("broken", "mend it")]) == 1
    assert capsys.readouterr().out.endswith("2 errors, 0 warnings\n")


def test_the_machine_is_looked_at_where_the_run_will_be(tmp_path: Path) -> None:
    found = machine(tmp_path / "not" / "yet")
    assert isinstance(found, Finding)
    assert found.level == "ok"
    assert f"GiB free for {tmp_path / 'not' / 'yet'}" in found.text
    assert machine(tmp_path, room_gib=1e9).advice.startswith("free some disk")
