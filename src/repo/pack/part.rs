//! One domain's part of a pack repository: what its readers and its writer share.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::content::Content;
use super::error::PackError;
use super::history::{self, Reader};
use super::names::DomainNames;
use super::objects::small;
use super::records::{self, Kind, RecordName, WrittenRemoval, WrittenRemovals};
use super::shared::Shared;
use super::state::DomainState;
use crate::model::stop::Stop;
use crate::repo::{History, RepoError, Result};

/// The number of records of removals that may exist before they are put into one.
const MOST_REMOVAL_RECORDS: usize = 32;

/// The number of removed restore points that stay on record, besides the predecessors of kept ones.
const MOST_REMOVALS: usize = 1000;

/// One domain's part of the repository.
#[derive(Clone)]
pub(super) struct DomainPart {
    pub(super) shared: Arc<Shared>,
    pub(super) name: String,
    pub(super) names: DomainNames,
    pub(super) state: DomainState,
}

impl DomainPart {
    pub(super) fn new(shared: Arc<Shared>, name: &str) -> DomainPart {
        let names = shared.names(name);
        let host = &shared.place.host;
        let id = &shared.place.description.id;
        DomainPart {
            state: DomainState::new(&host.folders, Arc::clone(&host.store), id, names.hash()),
            name: name.to_owned(),
            names,
            shared,
        }
    }

    pub(super) fn content(&self) -> Result<Content> {
        self.shared.content(&self.names)
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader {
            names: &self.names,
            location: &self.shared.place.location,
        }
    }

    /// The location of its restore points.
    pub(super) fn points_location(&self) -> String {
        let points = self.names.points();
        format!("{}/{}", self.shared.place.location, points.trim_end_matches('/'))
    }

    /// The location of a period, for messages; the objects of its restore points are not grouped by
    /// period.
    pub(super) fn period_location(&self, period: &str) -> String {
        format!("{} ({period})", self.points_location())
    }

    /// Reads the domain's objects, and makes the history from them.
    pub(super) fn read(&self) -> Result<(Content, History)> {
        // A run commits before it removes its journal entry, so this order misses none.
        let content = self.content()?;
        let leftovers = history::leftovers(&self.state, &content)?;
        let mut history = self.reader().history(&content, leftovers);
        history.findings.extend(self.shared.damaged_index());
        Ok((content, history))
    }

    /// Writes a record that replaces others, and deletes those as far as the store allows it.
    pub(super) fn keep_record(
        &self,
        name: &RecordName,
        content: &impl Serialize,
        replaces: &[String],
    ) -> Result<()> {
        let text = records::to_text(content, replaces).map_err(|source| RepoError::Manifest {
            id: name.segment.clone(),
            source,
        })?;
        let object = self.names.record(&name.segment);
        let object = object.ok_or_else(|| self.shared.no_name(&name.segment))?;
        let sealed = self.shared.sealer.seal_record(&object, &text)?;
        // A run that was stopped still records what it found.
        let limit = small(&Stop::default());
        // Its name is random, so an object that exists is its own.
        let put = self.shared.place.objects.put_if_absent(&object, &sealed, &limit);
        put.map_err(PackError::from)?;
        for old in replaces {
            // Best effort: this user may not have the right to delete, and readers know from the
            // new record that the old one is replaced.
            let _ = self.delete_record(old);
        }
        Ok(())
    }

    /// Deletes a record.
    pub(super) fn delete_record(&self, segment: &str) -> Result<()> {
        let Some(object) = self.names.record(segment) else {
            return Ok(());
        };
        let deleted = self
            .shared
            .place
            .objects
            .delete(&object, &small(&Stop::default()));
        Ok(deleted.map_err(PackError::from)?)
    }

    /// Combines the records of removals into one, if there are many.
    pub(super) fn collect_removals(&self, content: &Content) -> Result<()> {
        let names = content.records.names(&[Kind::Removed]);
        let is_readable = |name: &&RecordName| content.records.is_readable(name);
        let old: Vec<String> = names
            .into_iter()
            .filter(is_readable)
            .map(|name| name.segment.clone())
            .collect();
        if old.len() <= MOST_REMOVAL_RECORDS {
            return Ok(());
        }
        let previous = content
            .points
            .iter()
            .filter_map(|stored| stored.record.previous.as_ref());
        let needed: BTreeSet<&str> = previous.map(|previous| previous.name.as_str()).collect();
        let removals = content.records.removals();
        let surplus = removals.len().saturating_sub(MOST_REMOVALS);
        let stays = |(place, removal): (usize, &WrittenRemoval)| {
            (place >= surplus || needed.contains(removal.name.as_str())).then(|| removal.clone())
        };
        let removals = removals.into_iter().enumerate().filter_map(stays).collect();
        let name = RecordName::new(Kind::Removed, &self.names, "");
        self.keep_record(&name, &WrittenRemovals { removals }, &old)
    }
}
