//! Samples of the documents of restores, and of commands that use restore points without one.

use super::super::boot::{BootDocument, BootedDocument, OverlayPart};
use super::super::files::{
    CopiesDocument, CopyPart, DevicePart, FilePart, FileSystemPart, FileSystemsDocument, FilesDocument,
    HeadPart, SystemPart,
};
use super::super::in_place::{InPlaceDocument, InPlacePart};
use super::super::restore::{DefinedPart, RestoreDocument, RestoredPart};
use super::super::serve::{ExportPart, ReadPart, ServeDocument, ServedDocument};
use super::{finding, text};

pub(super) fn restore() -> RestoreDocument<'static> {
    RestoreDocument {
        schema: 1,
        domain: text(),
        restore_point: text(),
        time: text(),
        pool: Some(text()),
        disks: vec![RestoredPart {
            disk: text(),
            path: text(),
            volume: Some(text()),
            format: "raw",
            virtual_size: 1,
            data_bytes: 1,
        }],
        defined: Some(DefinedPart {
            name: text(),
            new_uuid: Some(text()),
        }),
        findings: vec![finding()],
    }
}

pub(super) fn in_place() -> InPlaceDocument<'static> {
    InPlaceDocument {
        schema: 1,
        domain: text(),
        restore_point: text(),
        time: text(),
        of: Some(text()),
        saved: Some(text()),
        disks: vec![InPlacePart {
            disk: text(),
            from: Some(text()),
            path: text(),
            virtual_size: 1,
            since: Some(text()),
            compared: text(),
            compared_bytes: 1,
            data_bytes: 1,
            zero_bytes: 1,
        }],
        findings: vec![finding()],
    }
}

pub(super) fn boot() -> BootDocument<'static> {
    BootDocument {
        schema: 1,
        event: "ready",
        domain: text(),
        restore_point: text(),
        time: text(),
        name: text(),
        uuid: text(),
        disks: vec![OverlayPart {
            disk: text(),
            virtual_size: 1,
            path: text(),
        }],
        left_out_devices: vec![text()],
        findings: vec![finding()],
    }
}

pub(super) fn booted() -> BootedDocument<'static> {
    BootedDocument {
        schema: 1,
        event: "ended",
        domain: text(),
        restore_point: text(),
        name: text(),
        ending: "kept",
        bytes_read: 1,
        damaged_reads: 1,
        failed_reads: 1,
        findings: vec![finding()],
    }
}

pub(super) fn serve() -> ServeDocument<'static> {
    ServeDocument {
        schema: 1,
        event: "ready",
        domain: text(),
        restore_point: text(),
        time: text(),
        exports: vec![ExportPart {
            disk: text(),
            uri: text(),
            virtual_size: 1,
        }],
        findings: vec![finding()],
    }
}

pub(super) fn files_head() -> HeadPart<'static> {
    HeadPart {
        schema: 1,
        domain: text(),
        restore_point: text(),
        time: text(),
    }
}

pub(super) fn file_systems() -> FileSystemsDocument<'static> {
    FileSystemsDocument {
        head: files_head(),
        disks: vec![DevicePart {
            disk: text(),
            device: text(),
            virtual_size: 1,
        }],
        file_systems: vec![FileSystemPart {
            device: text(),
            kind: text(),
            label: Some(text()),
            size: Some(1),
            mount_points: vec![text()],
        }],
        operating_systems: vec![SystemPart {
            root: text(),
            name: Some(text()),
        }],
        findings: vec![finding()],
    }
}

pub(super) fn files() -> FilesDocument<'static> {
    FilesDocument {
        head: files_head(),
        path: text(),
        files: vec![FilePart {
            name: text(),
            raw_name: Some(text()),
            kind: "file",
            mode: text(),
            user: 1,
            group: 1,
            size: 1,
            modified: Some(text()),
            link: Some(text()),
        }],
        findings: vec![finding()],
    }
}

pub(super) fn copies() -> CopiesDocument<'static> {
    CopiesDocument {
        head: files_head(),
        copies: vec![CopyPart {
            path: text(),
            to: text(),
            entries: 1,
            bytes: 1,
            left_out: 1,
        }],
        findings: vec![finding()],
    }
}

pub(super) fn served() -> ServedDocument<'static> {
    ServedDocument {
        schema: 1,
        event: "ended",
        domain: text(),
        restore_point: text(),
        connections: 1,
        refused_connections: 1,
        exports: vec![ReadPart {
            disk: text(),
            bytes_read: 1,
            damaged_reads: 1,
            failed_reads: 1,
        }],
        findings: vec![finding()],
    }
}
