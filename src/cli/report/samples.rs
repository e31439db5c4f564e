//! A sample of every document, with every key that it can have.

use super::backup::{BackupDomain, MadePart, PlanPart, PlannedDiskPart, PlannedDomain};
use super::backup::{PrunePart, PrunePlanPart};
use super::boot_proof::BootedDomain;
use super::collect::{AmountPart, CollectDocument, CollectionPart, PruneDocument};
use super::compare::ComparedDomain;
use super::copy::{ChoicePart, CopiedDomain, CopiedPart};
use super::document::Document;
use super::integrity::{
    CheckDocument, CondemnedPart, CostPart, DamagedIndexPart, DamagedObjectPart, RebuildDocument,
    SessionPart, UnusablePart,
};
use super::list::{ListDocument, ListDomain, ListedPart, MissedPart, OriginPart, VerifiedPart};
use super::pack::{KeysDocument, PackDocument, SlotPart};
use super::parts::{BootProofPart, DiskPart, Domains, ErrorPart, FailedDomain, FindingPart};
use super::parts::{GuestFileSystemPart, GuestPart, LeftDiskPart, LeftOutPart, PointPart, Text};
use super::pin::{FailedPin, PinDocument, PinPart};
use super::prune::{AppliedPart, DecisionPart, PrunedDomain, RetentionPart};
use super::restore::FailedRestore;
use super::scrub::{BitmapPart, NextPart, ScrubbedDomain};
use super::status_document::{self as status, Size, StatusDocument, StatusPart};
use super::verify::VerifiedDomain;
use crate::model::restore_point::Consistency;

mod recovery;
mod verification;

fn text() -> Text<'static> {
    Text::from("text")
}

fn finding() -> FindingPart<'static> {
    FindingPart {
        code: text(),
        disk: Some(text()),
        message: text(),
    }
}

fn error() -> ErrorPart {
    ErrorPart {
        message: text(),
        disk: Some(text()),
        hint: Some(text()),
    }
}

fn failed_domain() -> FailedDomain<'static> {
    FailedDomain {
        domain: text(),
        outcome: "failed",
        error: error(),
        findings: vec![finding()],
    }
}

fn left_disk() -> LeftDiskPart<'static> {
    LeftDiskPart {
        disk: text(),
        kind: text(),
        reason: text(),
    }
}

fn left_out() -> LeftOutPart<'static> {
    LeftOutPart {
        partial: true,
        left_out: vec![left_disk()],
    }
}

fn boot_proof() -> BootProofPart<'static> {
    BootProofPart {
        time: text(),
        reached: text(),
        wanted: text(),
        proven: true,
        shortfall: Some(text()),
        seconds: 1,
    }
}

fn point() -> PointPart<'static> {
    PointPart {
        id: text(),
        time: text(),
        period: text(),
        level: "full",
        parent: Some(text()),
        checkpoint: Some(text()),
        whole: Some(true),
        size: 1,
        consistency: Consistency::Crash,
        disks: vec![DiskPart {
            disk: text(),
            level: "full",
            reason: text(),
            parent: Some(text()),
            virtual_size: 1,
            data_bytes: 1,
            zero_bytes: 1,
            compression: Some(Text::from("zstd")),
            image: text(),
            decrypted: Some(true),
        }],
        faults: vec![text()],
        copy: true,
        guest: Some(GuestPart {
            hostname: Some(text()),
            system: Some(text()),
            file_systems: vec![GuestFileSystemPart {
                place: text(),
                kind: text(),
                disks: vec![text()],
            }],
        }),
    }
}

fn domains<D>(domains: Vec<D>) -> Domains<'static, D> {
    Domains {
        schema: 1,
        dry_run: Some(true),
        domains,
        unmatched: vec![text()],
        exit_code: 1,
    }
}

fn retention() -> RetentionPart<'static> {
    RetentionPart {
        restore_points: vec![DecisionPart {
            id: text(),
            time: text(),
            level: "full",
            size: 1,
            decision: "keep",
            reasons: vec![text()],
            needed_by: Some(text()),
            merged_into: Some(text()),
        }],
        removed: vec![text()],
        freed_bytes: 1,
        merge_bytes: 1,
        merge_freed_bytes: 0,
        held_back: Some(text()),
    }
}

fn pin() -> PinPart<'static> {
    PinPart {
        since: Some(text()),
        note: text(),
    }
}

fn pruned() -> PrunedDomain<'static> {
    PrunedDomain {
        domain: text(),
        outcome: "ok",
        retention: retention(),
        writer: Some(text()),
        error: Some(error()),
        findings: vec![finding()],
    }
}

fn collection() -> CollectionPart<'static> {
    let amount = || AmountPart { packs: 1, bytes: 1 };
    CollectionPart {
        all: amount(),
        needed: amount(),
        deleted: amount(),
        condemned: amount(),
        stored_again: amount(),
        waiting: amount(),
        adopted: amount(),
        unreadable: vec![text()],
        not_before: Some(text()),
        sessions: vec![text()],
        collector: Some(text()),
    }
}

fn check() -> CheckDocument<'static> {
    let amount = || AmountPart { packs: 1, bytes: 1 };
    CheckDocument {
        schema: 1,
        location: text(),
        outcome: "ok",
        deep: true,
        domains: 1,
        restore_points: 1,
        index_objects: 1,
        packs: amount(),
        unlisted: amount(),
        condemned: CondemnedPart {
            packs: 1,
            bytes: 1,
            records: 1,
            oldest: Some(text()),
        },
        sessions: vec![SessionPart {
            host: text(),
            kind: "write",
            began: Some(text()),
            renewed: text(),
        }],
        damage: vec![DamagedObjectPart {
            code: text(),
            message: text(),
            object: Some(text()),
            restore_points: vec![CostPart {
                domain: text(),
                id: text(),
                disks: vec![text()],
                files: vec![text()],
            }],
        }],
        findings: vec![finding()],
    }
}

fn rebuild() -> RebuildDocument<'static> {
    let amount = || AmountPart { packs: 1, bytes: 1 };
    RebuildDocument {
        schema: 1,
        location: text(),
        dry_run: Some(true),
        all: amount(),
        listed: amount(),
        unusable: vec![UnusablePart {
            object: text(),
            why: text(),
        }],
        damaged: vec![DamagedIndexPart {
            object: text(),
            why: text(),
            deleted: true,
        }],
        held_back: true,
    }
}

fn copied() -> CopiedDomain<'static> {
    CopiedDomain {
        domain: text(),
        outcome: "ok",
        restore_points: vec![ChoicePart {
            id: text(),
            time: text(),
            level: "full",
            size: 1,
            decision: "copy",
            reason: text(),
        }],
        copied: vec![CopiedPart {
            id: text(),
            path: text(),
            data_bytes: 1,
            size: 1,
        }],
        retention: Some(retention()),
        error: Some(error()),
        findings: vec![finding()],
    }
}

fn backup() -> BackupDomain<'static> {
    BackupDomain {
        domain: text(),
        outcome: "ok",
        seconds: 1.0,
        restore_point: Some(MadePart {
            point: point(),
            left_out: left_out(),
        }),
        path: Some(text()),
        prune: Some(PrunePart {
            deleted: Some(text()),
            kept: Some(text()),
            error: Some(text()),
        }),
        retention: Some(AppliedPart {
            retention: retention(),
            error: Some(text()),
        }),
        error: Some(error()),
        findings: vec![finding()],
    }
}

fn plan(prune: PrunePlanPart<'static>) -> PlannedDomain<'static> {
    PlannedDomain::Planned(Box::new(PlanPart {
        domain: text(),
        level: Some("full"),
        copy: true,
        reason: text(),
        period: text(),
        checkpoint: true,
        disks: vec![PlannedDiskPart {
            disk: text(),
            level: Some("full"),
            reason: text(),
        }],
        repairs: vec![text()],
        retired: vec![text()],
        prune,
        retention: Some(retention()),
        obstacle: Some(text()),
        writer: Some(text()),
        findings: vec![finding()],
        partial: true,
        left_out: vec![left_disk()],
    }))
}

fn listed() -> ListedPart<'static> {
    ListedPart {
        point: point(),
        verified: Some(VerifiedPart {
            time: text(),
            deep: true,
            deep_time: Some(text()),
            damage: vec![text()],
        }),
        boot_proof: Some(boot_proof()),
        doubt: Some(text()),
        missed_writes: vec![MissedPart {
            disk: text(),
            found: text(),
            stands: true,
        }],
        pin: Some(pin()),
        copied_from: Some(OriginPart {
            repository: Some(text()),
            location: text(),
            time: text(),
        }),
        findings: vec![finding()],
        left_out: left_out(),
    }
}

fn scrubbed() -> ScrubbedDomain<'static> {
    let bitmap = || BitmapPart {
        disk: text(),
        name: text(),
    };
    ScrubbedDomain {
        domain: text(),
        outcome: "ok",
        checkpoints: vec![text()],
        bitmaps: vec![bitmap()],
        tried: vec![text()],
        left: vec![bitmap()],
        next_backup: Some(NextPart {
            level: Some("full"),
            refused: true,
            reason: text(),
        }),
        error: Some(error()),
        findings: vec![finding()],
    }
}

fn slot() -> SlotPart<'static> {
    SlotPart {
        id: text(),
        kind: Some("passphrase"),
        label: text(),
        recipient: Some(text()),
        created: Some(text()),
        state: "complete",
    }
}

fn pack() -> PackDocument<'static> {
    PackDocument {
        schema: 1,
        location: text(),
        id: text(),
        created: text(),
        program: text(),
        cipher: "none",
        block_bytes: 1,
        pack_bytes: 1,
        conditional_puts: "honoured",
        slots: vec![slot()],
    }
}

pub(super) fn status() -> StatusPart<'static> {
    StatusPart {
        checkpoints: vec![text()],
        disks: vec![status::DiskPart {
            disk: text(),
            virtual_size: Size::Bytes(1),
            actual_size: Size::Pretty(text()),
            bitmaps: vec![text()],
            bitmaps_known: true,
            changed_bytes: Some(1),
        }],
        overall_status: 1,
        backup_dir_stats: Some(status::FolderPart {
            path: text(),
            total_files: 1,
            checkpoints: 1,
            total_size: Size::Bytes(1),
        }),
        state: text(),
        newest_checkpoint: Some(text()),
        newest_checkpoint_time: Some(text()),
        changed_bytes: Some(1),
        last_restore_point: Some(text()),
        last_restore_point_time: Some(text()),
        next_backup: Some(status::NextPart {
            level: Some(text()),
            reason: text(),
            period: text(),
        }),
        inconsistencies: vec![text()],
        findings: vec![finding()],
        repairs: vec![text()],
        last_verified_time: Some(text()),
        last_verified_damage: vec![text()],
        boot_proof: Some(boot_proof()),
        doubt: Some(text()),
        writer: Some(text()),
        missed_writes: vec![status::MissedPart {
            disk: text(),
            found: text(),
        }],
        left_out: vec![left_disk()],
        last_restore_point_lacks: vec![text()],
    }
}

/// A sample of every document, each with every key that it can have.
pub(super) fn samples() -> Vec<Document<'static>> {
    let plans = vec![
        plan(PrunePlanPart::Delete(text())),
        plan(PrunePlanPart::Keep(Some(text()))),
        PlannedDomain::Failed(failed_domain()),
    ];
    vec![
        Document::Backup(domains(vec![backup()])),
        Document::DryRun(domains(plans)),
        Document::List(ListDocument {
            schema: 1,
            domains: vec![ListDomain {
                domain: text(),
                restore_points: vec![listed()],
                findings: vec![finding()],
            }],
        }),
        Document::Verify(domains(vec![
            VerifiedDomain::Verified(verification::verified()),
            VerifiedDomain::Failed(failed_domain()),
        ])),
        Document::Compare(domains(vec![
            ComparedDomain::Compared(verification::compared()),
            ComparedDomain::Failed(failed_domain()),
        ])),
        Document::BootProof(domains(vec![
            BootedDomain::Booted(verification::booted()),
            BootedDomain::Failed(failed_domain()),
        ])),
        Document::Restore(recovery::restore()),
        Document::InPlace(recovery::in_place()),
        Document::FailedRestore(FailedRestore {
            schema: 1,
            failed: failed_domain(),
        }),
        Document::Boot(recovery::boot()),
        Document::Booted(recovery::booted()),
        Document::Serve(recovery::serve()),
        Document::Served(recovery::served()),
        Document::FileSystems(recovery::file_systems()),
        Document::Files(recovery::files()),
        Document::Copies(recovery::copies()),
        Document::Prune(PruneDocument {
            domains: domains(vec![pruned()]),
            collection: Some(collection()),
            collection_error: Some(error()),
        }),
        Document::Copy(domains(vec![copied()])),
        Document::Pin(PinDocument {
            schema: 1,
            domain: text(),
            restore_point: text(),
            was_pinned: true,
            pin: Some(pin()),
        }),
        Document::FailedPin(FailedPin {
            schema: 1,
            failed: failed_domain(),
        }),
        Document::Init(pack()),
        Document::Info(pack()),
        Document::Collect(CollectDocument {
            schema: 1,
            location: text(),
            dry_run: Some(true),
            collection: collection(),
        }),
        Document::Check(check()),
        Document::Rebuild(rebuild()),
        Document::Keys(KeysDocument {
            schema: 1,
            location: text(),
            slots: vec![slot()],
        }),
        Document::Scrub(domains(vec![scrubbed()])),
        Document::Status(StatusDocument(vec![("DOMAIN", status())])),
    ]
}
