//! Checks the files of a restore point of a set.

use std::path::Path;

use super::folder::DataFile;
use super::layer::{ChainFile, Layer, checksum_name};
use crate::model::block::{BlockError, BlockErrorKind};
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::repo::error::is_no_verdict;
use crate::repo::{FileDamage, FileWatch, RepoError, Result};

/// A check of the files of one restore point.
pub(super) struct Check<'a> {
    /// The folder of the set.
    pub(super) dir: &'a Path,
    pub(super) watch: &'a mut dyn FileWatch,
    pub(super) stop: &'a Stop,
    /// Receives damage as soon as it is found, because a later step may be stopped.
    pub(super) damage: &'a mut Vec<FileDamage>,
}

impl Check<'_> {
    /// Reads a data file from end to end: its structure, its checksum, and the checksums of its
    /// compressed parts.
    ///
    /// # Errors
    /// A stop was requested, or the file cannot be read for a reason other than damage.
    pub(super) fn data_file(&mut self, file: &DataFile) -> Result<()> {
        let path = self.dir.join(&file.name);
        let found = |location: &Path, what: String| FileDamage {
            location: Some(location.display().to_string()),
            offset: None,
            disk: Some(file.target.clone()),
            what,
        };
        if let Err(what) = &file.checksum {
            self.damage
                .push(found(&self.dir.join(checksum_name(&file.name)), what.clone()));
        }
        let form = match (&file.facts, file.form()) {
            (Ok(_), Some(form)) => form,
            (Err(what), _) => {
                self.damage.push(found(&path, what.clone()));
                return Ok(());
            }
            (Ok(_), None) => return Ok(()),
        };
        let chain_file = ChainFile {
            path: path.clone(),
            form,
            expected: file.checksum.clone().unwrap_or_default(),
        };
        self.watch.begins(&file.name, file.size);
        let watch = &mut self.watch;
        let mut progress = |position: u64| watch.at(&file.name, position.min(file.size));
        let checked = Layer::open(&chain_file, self.stop).and_then(|mut layer| {
            layer.forget_cached();
            layer.verify(&mut progress).map_err(RepoError::from)
        });
        self.watch.ends(&file.name);
        match checked {
            Ok(()) => Ok(()),
            Err(RepoError::Blocks(error)) if is_stop(&error) => Err(error.into()),
            Err(error) if is_no_verdict(&error) => Err(error),
            Err(error) => {
                self.damage.push(found(&path, with_sources(&error)));
                Ok(())
            }
        }
    }
}

fn is_stop(error: &BlockError) -> bool {
    error.kind == BlockErrorKind::Stopped
}
