# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How Ansible behaves where a change must be undone, pitfall by pitfall, and which test proves that it does not harm a guarded one.

A row is what ansible-core does by itself (2.16 to 2.21); its tests are `file::function`, in this folder. DO_NOT_APPLY says why a pitfall is not in the table.
"""

from __future__ import annotations

import ast
import typing as t
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


class Row(t.NamedTuple):
    number: str
    pitfall: str
    tests: str
    """Names of tests, separated by blanks and line breaks."""


TABLE = [
    Row(
        "P1",
        "a host that is lost in a block gets neither rescue nor always",
        """
        test_guarded_ssh::test_the_ordinary_plugin_does_not_rescue_it
        test_guarded_change::test_a_host_that_is_lost_in_the_change_is_rolled_back
        test_pitfalls_play::test_when_all_are_lost_all_are_rolled_back_and_what_follows_does_not_begin
        """,
    ),
    Row(
        "P2",
        "a task of ours that becomes unreachable is no failure",
        "test_guarded_change_among_others::test_the_host_that_reaches_the_hypervisor_is_lost",
    ),
    Row(
        "P2b",
        "ignore_unreachable around the change goes on with it on a lost host",
        "test_pitfalls_play::test_when_all_are_lost_all_are_rolled_back_and_what_follows_does_not_begin",
    ),
    Row(
        "P3",
        "a connection plugin can make a lost host an ordinary failure",
        """
        test_guarded_ssh::test_a_host_lost_in_a_task_is_rescued_with_its_cause
        test_guarded_ssh::test_a_host_lost_before_a_copy_is_rescued
        test_guarded_ssh::test_fetch_does_not_take_a_lost_host_for_a_missing_file
        test_guarded_ssh_session::test_reboot_works
        test_guarded_ssh_session::test_retries_of_ssh_come_first
        """,
    ),
    Row(
        "P3b",
        "its keyword does not reach handlers, and host variables beat it",
        """
        test_guarded_ssh::test_nested_includes_are_guarded
        test_guarded_ssh::test_local_tasks_are_left_alone
        test_guarded_change::test_a_host_that_is_lost_in_a_handler_is_rolled_back
        test_guarded_change::test_a_connection_by_extra_variable_is_refused
        test_guarded_change_among_others::test_later_plays_reach_the_host_as_before
        """,
    ),
    Row(
        "P4",
        "wait_for_connection that times out and a task's timeout are failures",
        """
        test_guarded_change::test_a_host_that_lets_nobody_in_anew_is_rolled_back
        test_guarded_ssh_session::test_wait_for_connection_that_times_out_is_rescued
        test_guarded_ssh::test_an_async_task_on_a_lost_host_is_rescued
        test_pitfalls_fates::test_each_guest_meets_its_own_fate_and_all_are_told
        """,
    ),
    Row(
        "P5b",
        "clear_host_errors in the change lets failed hosts go on and the run pass: refused",
        "test_pitfalls_play::test_what_would_end_the_change_without_an_end_is_refused",
    ),
    Row(
        "P5c",
        "when all hosts are lost, later plays never start",
        "test_pitfalls_play::test_when_all_are_lost_all_are_rolled_back_and_what_follows_does_not_begin",
    ),
    Row(
        "P5d",
        "--limit leaves out what would rescue from another play",
        """
        test_pitfalls_play::test_when_all_are_lost_all_are_rolled_back_and_what_follows_does_not_begin
        test_guarded_change_among_others::test_it_works_with_serial_and_limit
        """,
    ),
    Row(
        "P6",
        "a lost delegate marks the VM's own host as unreachable",
        """
        test_guarded_ssh::test_a_lost_delegate_is_rescued
        test_guarded_change_among_others::test_the_host_that_reaches_the_hypervisor_is_lost
        test_pitfalls_ended::test_the_host_that_reaches_the_hypervisor_is_lost_before_the_rollback
        """,
    ),
    Row(
        "P7",
        "any_errors_fatal strands the other hosts (2.16) or rescues them too (2.17 to 2.21)",
        """
        test_pitfalls_play::test_one_that_is_lost_stops_the_rollout_and_not_the_change_of_another
        test_pitfalls_play::test_one_without_a_checkpoint_does_not_strand_the_others
        test_pitfalls_play::test_what_would_end_the_change_without_an_end_is_refused
        """,
    ),
    Row(
        "P7b",
        "the same when the one is lost",
        "test_pitfalls_play::test_one_that_is_lost_stops_the_rollout_and_not_the_change_of_another",
    ),
    Row(
        "P8",
        "with serial, any_errors_fatal does not stop the batch after a lost one",
        "test_pitfalls_play::test_one_that_is_lost_stops_the_rollout_and_not_the_change_of_another",
    ),
    Row(
        "P9",
        "max_fail_percentage does not count lost hosts, and ends the change of the others in the middle",
        "test_pitfalls_play::test_one_that_is_lost_stops_the_rollout_and_not_the_change_of_another",
    ),
    Row(
        "P10",
        "a rescued host does not count, and the run exits 0",
        """
        test_pitfalls_play::test_one_that_is_lost_stops_the_rollout_and_not_the_change_of_another
        test_guarded_change::test_a_task_that_fails_is_rolled_back
        """,
    ),
    Row(
        "P11",
        "handlers run after the checks, outside of the guard",
        """
        test_guarded_change::test_handlers_run_before_the_checks_and_not_after_a_rollback
        test_pitfalls_fates::test_each_guest_meets_its_own_fate_and_all_are_told
        """,
    ),
    Row(
        "P11b",
        "a handler that fails is not named before 2.19, and the run may exit 0",
        """
        test_guarded_change::test_a_handler_that_fails_is_rolled_back
        test_pitfalls_fates::test_each_guest_meets_its_own_fate_and_all_are_told
        """,
    ),
    Row(
        "P11c",
        "handlers that the failed change has notified run after the rollback",
        """
        test_guarded_change::test_handlers_run_before_the_checks_and_not_after_a_rollback
        test_pitfalls_fates::test_each_guest_meets_its_own_fate_and_all_are_told
        """,
    ),
    Row(
        "P11d",
        "with force_handlers they do in any case: refused",
        """
        test_guarded_change::test_a_play_that_cannot_be_guarded_is_refused
        test_change_info::test_it_sees_handlers_and_force_handlers
        """,
    ),
    Row(
        "P12",
        "a run_once that fails makes the other hosts vanish: refused in a change; a call for all is made without it",
        """
        test_pitfalls_play::test_what_would_end_the_change_without_an_end_is_refused
        test_guarded_change_among_others::test_of_two_hosts_only_the_one_that_failed_is_reverted
        """,
    ),
    Row(
        "P13",
        "with another strategy than linear hosts do not wait for each other: refused",
        """
        test_guarded_change::test_a_play_that_cannot_be_guarded_is_refused
        test_change_info::test_another_strategy_is_refused
        """,
    ),
    Row(
        "P14",
        "end_host and end_play skip rescue, always and commit, and the run is green: refused where it is seen, else left as guarding",
        """
        test_pitfalls_play::test_what_would_end_the_change_without_an_end_is_refused
        test_pitfalls_ended::test_a_host_that_a_change_ends_where_nobody_saw_it_says_guarding
        """,
    ),
    Row(
        "P15",
        "an unknown module or a YAML error in an included file ends the run without rescue",
        """
        test_change_info::test_the_unknown_module_would_end_the_run_without_rescue
        test_change_info::test_an_unknown_module_is_found_wherever_it_is
        test_guarded_change::test_what_is_wrong_is_found_before_any_snapshot
        test_pitfalls_play::test_what_would_end_the_change_without_an_end_is_refused
        """,
    ),
    Row(
        "P16",
        "a later rescue overwrites which task failed; a loop says only that an item did",
        """
        test_guarded_change::test_checks_that_fail_after_the_rollback_too_are_told
        test_guarded_change::test_evidence_that_cannot_be_kept_does_not_keep_it_from_the_rollback
        test_guarded_change::test_the_loop_that_fails_tells_the_cause_of_its_item
        test_guarded_change::test_of_a_no_log_task_nothing_is_told
        test_pitfalls_fates::test_each_guest_meets_its_own_fate_and_all_are_told
        """,
    ),
    Row(
        "P17",
        "a rescue that becomes unreachable skips all that comes after",
        "test_pitfalls_ended::test_the_host_that_reaches_the_hypervisor_is_lost_before_the_rollback",
    ),
    Row(
        "P18",
        "SIGINT and SIGTERM end the run without rescue",
        "test_pitfalls_ended::test_a_run_that_is_told_to_end_says_guarding_and_another_ends_it",
    ),
    Row(
        "P19",
        "gathering facts loses a host that is down, before the first task",
        "test_pitfalls_play::test_what_is_down_before_is_left_alone_and_names_that_are_lost_in_a_pattern_too",
    ),
    Row(
        "P20",
        "a multiplexed session from before the revert leads nowhere",
        """
        test_pitfalls_ended::test_sessions_from_before_the_revert_are_not_used_after_it
        test_guarded_ssh_session::test_reset_connection_ends_the_guards_own_master
        test_guarded_ssh_session::test_it_does_not_use_the_master_of_the_ordinary_plugin
        """,
    ),
    Row(
        "P21",
        "facts that were gathered can be dropped after a revert; those that were set, and registers, survive it",
        "test_pitfalls_fates::test_each_guest_meets_its_own_fate_and_all_are_told",
    ),
    Row(
        "P23",
        "an action plugin is skipped in check mode, and module_defaults pass it by",
        """
        test_change_info::test_it_runs_in_check_mode
        test_guarded_change::test_the_tasks_of_the_change_do_not_inherit_the_connection_to_the_hypervisor
        """,
    ),
    Row(
        "P24",
        "become of the play reaches the tasks on the controller",
        "test_guarded_change::test_become_of_the_play_reaches_the_change_and_not_the_controller",
    ),
    Row(
        "P28",
        "throttle bounds a task in one run only, and linear waits for the slowest: one call serves all hosts",
        """
        test_pitfalls_play::test_one_that_is_lost_stops_the_rollout_and_not_the_change_of_another
        test_guarded_change_among_others::test_of_two_hosts_only_the_one_that_failed_is_reverted
        """,
    ),
    Row(
        "P29",
        "a pattern that mixes , and : loses hosts without a word: they are left alone",
        "test_pitfalls_play::test_what_is_down_before_is_left_alone_and_names_that_are_lost_in_a_pattern_too",
    ),
    Row(
        "P30",
        "a host that falls silent is waited for without end",
        """
        test_guarded_ssh_session::test_a_mute_host_is_rescued_in_bounded_time
        test_guarded_ssh_session::test_the_users_own_keepalive_is_kept
        """,
    ),
    Row(
        "P31",
        "a relative name in an include finds the role's own file first",
        """
        test_guarded_change::test_what_is_wrong_is_found_before_any_snapshot
        test_guarded_change::test_a_role_that_includes_this_one_has_its_own_files_found
        """,
    ),
]

DO_NOT_APPLY = {
    "P5": "A second play that brings lost hosts back is not needed, since no host is lost to the play (P3).",
    "P22": "The clock of a guest that went back with its memory: it takes a real guest, and is in tests/e2e/test_guarded_change.py.",
    "P25": "Job slices split a group of hosts that go together; each host is a change of its own here.",
    "P26": "set_stats is not used: the truth is the label on the snapshot.",
    "P27": "No callback plugin is needed for a guarded change.",
}


def test_every_pitfall_has_its_place() -> None:
    numbers = {row.number.rstrip("bcd") for row in TABLE} | set(DO_NOT_APPLY)
    assert numbers >= {f"P{number}" for number in range(1, 32)}
    assert len({row.number for row in TABLE} & set(DO_NOT_APPLY)) == 0


@pytest.mark.parametrize("row", TABLE, ids=[row.number for row in TABLE])
def test_the_tests_of_a_pitfall_exist(row: Row) -> None:
    assert row.tests.split()
    for name in row.tests.split():
        file, _, function = name.partition("::")
        tree = ast.parse((HERE / f"{file}.py").read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
