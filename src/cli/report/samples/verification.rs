//! Samples of the documents of verifications, comparisons and boot proofs.

use super::super::boot_proof::{BootedPart, BootedPointPart};
use super::super::compare::{ComparedDiskPart, ComparedPart, UncomparedPart};
use super::super::verify::{DamagePart, ProvedPart, VerifiedPart};
use super::{boot_proof, error, finding, text};

fn damage() -> DamagePart<'static> {
    DamagePart {
        path: Some(text()),
        offset: Some(1),
        disk: Some(text()),
        stands_upon: Some(text()),
        what: text(),
    }
}

pub(super) fn verified() -> VerifiedPart<'static> {
    VerifiedPart {
        domain: text(),
        outcome: "sound",
        bytes_read: 1,
        milliseconds: 1,
        restore_points: vec![ProvedPart {
            id: text(),
            outcome: "sound",
            proved_before: Some(text()),
            damage: vec![damage()],
        }],
        damage: vec![damage()],
        findings: vec![finding()],
        error: Some(error()),
    }
}

pub(super) fn compared() -> ComparedPart<'static> {
    ComparedPart {
        domain: text(),
        outcome: "same",
        disks: vec![ComparedDiskPart {
            disk: text(),
            restore_point: text(),
            unchanged_clusters: 1,
            compared_clusters: 1,
            differing_clusters: 1,
            places: &[1],
        }],
        uncompared: vec![UncomparedPart {
            disk: text(),
            meaning: "not-comparable",
            why: text(),
        }],
        findings: vec![finding()],
    }
}

pub(super) fn booted() -> BootedPart<'static> {
    BootedPart {
        domain: text(),
        outcome: "proven",
        restore_points: vec![BootedPointPart {
            id: text(),
            skipped: true,
            boot_proof: boot_proof(),
            damaged: true,
            last_line: text(),
            picture: Some(text()),
            console: Some(text()),
        }],
        findings: vec![finding()],
        error: Some(error()),
    }
}
