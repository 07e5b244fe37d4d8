# SPDX-License-Identifier: Apache-2.0
"""Adds up JUnit files: what was skipped, what failed, then one line `N passed, N failed, N skipped`."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter


def outcome(case: ET.Element) -> tuple[str, str]:
    """What became of a test, and why."""
    for kind in ("failure", "error"):
        if case.find(kind) is not None or case.get("status") == "fail":
            return "failed", ""
    skipped = case.find("skipped")
    if skipped is not None or case.get("status") in {"notrun", "disabled"}:
        return "skipped", (skipped.get("message") if skipped is not None else "") or ""
    return "passed", ""


def main(paths: list[str]) -> int:
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    failed = []
    for path in paths:
        for case in ET.parse(path).getroot().iter("testcase"):
            kind, why = outcome(case)
            counts[kind] += 1
            if kind == "skipped":
                skipped[why or case.get("name", "")] += 1
            elif kind == "failed":
                failed.append(f"{case.get('classname')}: {case.get('name')}")
    print()
    for why, count in skipped.most_common():
        print(f"skipped {count}: {why}")
    for name in failed:
        print(f"failed: {name}")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if counts["failed"] or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
