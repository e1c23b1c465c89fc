# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Unknown variables of the roles, checked against meta/argument_specs.yml of each role."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible_collections.safepoint.vm.plugins.plugin_utils._role_variables import known_variables, unknown_variables

ROLES = Path(__file__).resolve().parents[2] / "roles"


def known(role: str) -> set[str]:
    return known_variables(yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text()))


@pytest.mark.parametrize(
    ("role", "misspelled", "meant"),
    [
        ("guarded_change", "guarded_change_tsks", "guarded_change_tasks?"),
        ("guarded_change", "guarded_change_chekcs", "guarded_change_checks?"),
        ("guarded_change", "guarded_change_reconcile_forec", "guarded_change_reconcile_force"),
        ("snapshot_retention", "snapshot_retention_aply", "snapshot_retention_apply?"),
        ("snapshot_retention", "snapshot_retention_polcy", "snapshot_retention_policy?"),
        ("snapshot_report", "snapshot_report_htlm", "snapshot_report_html?"),
    ],
)
def test_misspelled_variable_is_refused_with_a_suggestion(role: str, misspelled: str, meant: str) -> None:
    said = unknown_variables([*known(role), misspelled], role=f"safepoint.vm.{role}", known=known(role))
    assert said is not None
    assert said.startswith(f"unknown variable {misspelled}; did you mean {meant}")


@pytest.mark.parametrize("role", sorted(path.name for path in ROLES.iterdir()))
def test_variables_of_the_role_and_of_others_are_accepted(role: str) -> None:
    names = [*known(role), "ansible_host", f"__{role}_step", role, f"{role}_result", "another_role_tasks"]
    assert known(role)
    assert unknown_variables(names, role=f"safepoint.vm.{role}", known=known(role), also=[f"{role}_result"]) is None
    defaults = yaml.safe_load((ROLES / role / "defaults/main.yml").read_text())
    assert set(defaults) <= known(role)


def test_all_unknown_variables_are_named_also_without_a_suggestion() -> None:
    said = unknown_variables({"r_zzz": 1, "r_tsks": 2}, role="a.b.r", known=["r_tasks", "r_checks"], also=["r_zz"])
    assert said == (
        "unknown variable r_tsks; did you mean r_tasks? unknown variable r_zzz; the role has no variable with a similar name."
        " Nothing was done. The variables of the role: ansible-doc -t role a.b.r"
    )
