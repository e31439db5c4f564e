//! The suite that every kind of repository has to pass, written against the repository's interface.

mod complete;
pub mod kinds;
mod merges;
mod model;
pub mod pack;
mod points;
pub mod serve;
mod verbs;

use kinds::{Folder, Memory};
use pack::{PackFolder, PackObjects};

/// Makes a test of each of these functions for each of these kinds of repository.
macro_rules! for_kinds {
    ($($kind:ident: $type:ident),* => $tests:tt) => {
        $(for_kinds!(@ $kind $type $tests);)*
    };
    (@ $kind:ident $type:ident { $($module:ident::$name:ident),* $(,)? }) => {
        mod $kind {
            $(#[test]
            fn $name() {
                super::super::$module::$name(&super::super::$type::default());
            })*
        }
    };
}

/// What every kind has to do.
mod every {
    for_kinds! {
        folder: Folder, memory: Memory, pack_folder: PackFolder, pack_objects: PackObjects => {
            points::id_is_given_once,
            points::what_is_committed_reads_back,
            points::an_uncommitted_point_is_invisible,
            points::a_dropped_point_leaves_nothing,
            points::a_left_point_keeps_its_note,
            points::a_disk_can_be_begun_again,
            points::the_lock_excludes_and_names_its_holder,
            points::history_is_in_the_order_of_the_commits,
            points::two_points_of_one_second_have_two_ids,
            points::a_given_id_is_used_once,
            points::a_removed_period_is_gone_and_no_damage,
            points::a_removed_point_is_gone_and_no_damage,
            points::the_mark_of_a_restore_is_kept_and_removed,
            points::a_pin_is_kept_replaced_and_removed,
            points::two_domains_do_not_see_each_other,
            points::small_files_are_checked,
            points::proofs_and_missed_writes_are_remembered,
            points::the_newest_boot_proof_is_remembered,
            points::a_wish_to_stop_ends_every_read,
            model::sources_and_readers_agree_with_a_plain_disk,
            serve::every_point_is_served_exactly,
            serve::damage_is_an_error_for_clients_and_a_finding,
            serve::what_is_not_there_is_not_served,
            verbs::a_chain_is_saved_listed_verified_and_restored,
            verbs::a_comparison_finds_a_missed_write,
            verbs::a_disk_is_restored_in_place,
            verbs::a_dead_run_is_healed,
            verbs::a_period_is_pruned,
            verbs::a_policy_removes_what_nothing_needs,
        }
    }
}

/// What a kind has to do whose restore points depend on others.
mod of_chains {
    for_kinds! {
        folder: Folder, memory: Memory => {
            points::a_point_that_another_needs_is_not_removed,
            points::damage_is_reported_and_never_handed_out,
            points::a_missing_parent_is_told,
            merges::a_run_goes_into_the_point_that_depends_on_it,
            merges::a_merge_in_the_middle_keeps_the_parent,
            merges::a_merge_that_costs_another_point_is_refused,
            merges::a_stopped_merge_changes_nothing,
            merges::damage_is_not_merged,
            merges::missed_writes_are_remembered_after_a_merge,
            merges::a_reader_beside_a_merge_reads_the_old_state,
            merges::a_story_of_backups_and_merges_loses_nothing,
            verbs::damage_is_found_and_not_restored,
        }
    }
}

/// What a kind has to do whose restore points are complete by themselves.
mod of_complete_points {
    for_kinds! {
        pack_folder: PackFolder, pack_objects: PackObjects => {
            complete::any_point_can_be_removed,
            complete::a_missing_parent_does_not_matter,
            complete::nothing_is_merged,
            complete::damage_is_never_handed_out,
            complete::damage_of_one_point_is_found,
        }
    }
}
