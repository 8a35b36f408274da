"""A plugin of pytest's for CI: a skipped test is a failure, so that no skip hides something.

PYTHONPATH=.ci python -m pytest -p no_skips
"""

from __future__ import annotations

import pytest

ALLOWED = (
    "needs a GPU",  # what a machine of CI's cannot have
    "runs with pytest -m cluster",  # what calls of their own run
    "runs with pytest -m long",
)


class NoSkips:
    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if reason not in ALLOWED:
                self.reasons[report.nodeid] = reason

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.reasons and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for test, reason in sorted(self.reasons.items()):
            terminalreporter.write_line(f"SKIPPED, and nothing may be: {test}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # with xdist, only where all reports arrive
        config.pluginmanager.register(NoSkips(), "no-skips-of-ci")
