# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summarise the results of test.sh: summary.py FOLDER

The folder holds steps.tsv (name, status, seconds) and the JUnit files of the pytest steps. A pytest step counts with its tests,
every other step as one. Exits with 1 if anything failed, and in CI also if a test was skipped: an incomplete run
must not look complete. A test marked xfail ran and failed as expected (xfail_strict): it is listed, and counts neither as passed nor as
skipped.
"""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def count(report: Path) -> tuple[int, int, list[str], list[str]]:
    """Return the number of passed and failed tests, and a line for each skipped test and for each that failed as expected."""
    passed = failed = 0
    skipped: list[str] = []
    expected: list[str] = []
    for case in ET.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif (skip := case.find("skipped")) is not None:
            lines = expected if skip.get("type") == "pytest.xfail" else skipped
            lines.append(f"{case.get('classname')}::{case.get('name')}: {skip.get('message')}")
        else:
            passed += 1
    return passed, failed, skipped, expected


def main() -> int:
    folder = Path(sys.argv[1])
    steps = [line.split("\t") for line in (folder / "steps.tsv").read_text().splitlines()]
    passed = failed = 0
    all_skipped: list[str] = []
    all_expected: list[str] = []
    print("\n=== summary")
    for name, status, seconds in steps:
        report = folder / f"{name}.xml"
        detail = ""
        if report.exists():
            step_passed, step_failed, step_skipped, step_expected = count(report)
            # pytest can fail without a failing test: nothing collected, an internal error, the time limit.
            if status != "ok" and not step_failed:
                step_failed = 1
            passed, failed = passed + step_passed, failed + step_failed
            all_skipped += step_skipped
            all_expected += step_expected
            detail = f"   {step_passed} passed, {step_failed} failed, {len(step_skipped)} skipped"
        elif status == "ok":
            passed += 1
        else:
            failed += 1
        print(f"{int(seconds):6d} s  {name:<20} {status}{detail}")
    for line in all_expected:
        print(f"failed as expected: {line}")
    for line in all_skipped:
        print(f"skipped: {line}")
    not_complete = bool(all_skipped) and os.environ.get("CI") == "true"
    if not_complete:
        print("CI=true: a skipped test is a failed run")
    print(f"{passed} passed, {failed} failed" + (f", {len(all_skipped)} skipped" if all_skipped else ""))
    return 1 if failed or not_complete else 0


if __name__ == "__main__":
    sys.exit(main())
