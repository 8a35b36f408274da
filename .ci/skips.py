"""A plugin of pytest's for CI: which tests were skipped, and that no skip hides that nothing ran.

PYTHONPATH=.ci python -m pytest -p skips --skipped-to FILE    write what was skipped, one a line
PYTHONPATH=.ci python -m pytest -p skips --no-skips           fail where a test is skipped
"""

from __future__ import annotations

from pathlib import Path

import pytest

ALLOWED = ("needs a GPU",)  # what a machine of CI's cannot have
# What calls of their own run
LATER = ("runs with pytest -m cluster", "runs with pytest -m long")


class Skips:
    def __init__(self, config: pytest.Config) -> None:
        self.reasons: dict[str, str] = {}
        self.file: str | None = config.getoption("--skipped-to")
        self.refuses: bool = config.getoption("--no-skips")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if reason not in ALLOWED + LATER:
                self.reasons[report.nodeid] = reason

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.file:
            Path(self.file).write_text("".join(f"{test}\n" for test in sorted(self.reasons)))
        if self.refuses and self.reasons and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.refuses:
            for test, reason in sorted(self.reasons.items()):
                terminalreporter.write_line(f"SKIPPED, and nothing may be: {test}: {reason}")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("skips")
    group.addoption("--skipped-to", metavar="FILE", help="write the skipped tests to FILE")
    group.addoption("--no-skips", action="store_true", help="fail where a test is skipped")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # with xdist, only where all reports arrive
        config.pluginmanager.register(Skips(config), "skips-of-ci")
