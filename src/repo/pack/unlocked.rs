//! A pack repository whose master key is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::description::Description;
use super::integrity;
use super::keys::MasterKey;
use super::names::{DomainNames, POINTS, is_hash, is_point, segment};
use super::objects::{ListedObject, ObjectStore};
use super::part::DomainPart;
use super::point::{self, PointRecord};
use super::shared::{Place, Shared, UNREADABLE, UnlockedHost};
use super::state::DomainState;
use crate::model::stop::Stop;
use crate::repo::{
    CollectReport, Collection, DomainRepository, Identity, Rebuild, RebuildReport, RepoError, Repository,
    RepositoryCheck, Result,
};

/// A pack repository whose master key is known, so that restore points can be written and read.
#[derive(Clone)]
pub struct UnlockedPack(Arc<Shared>);

impl UnlockedPack {
    pub(super) fn new(
        location: String,
        objects: Arc<dyn ObjectStore>,
        description: Description,
        key: MasterKey,
        host: UnlockedHost,
        stop: &Stop,
    ) -> Result<UnlockedPack> {
        let place = Place {
            location,
            objects,
            description,
            key: Arc::new(key),
            host,
            stop: stop.clone(),
        };
        Ok(UnlockedPack(Arc::new(Shared::open(place)?)))
    }

    /// The name of the domain whose restore points these are, from the first that can be read.
    fn domain_name(&self, hash: &str, points: Vec<ListedObject>) -> Result<String> {
        let shared = &self.0;
        let names = DomainNames::of_hash(&shared.place.key, hash);
        for object in points {
            let read = shared
                .sealed
                .read(vec![object], point::LARGEST, &shared.place.stop);
            for (_, text) in read.map_err(RepoError::from)? {
                let record = text.map(|text| PointRecord::parse(&text, &shared.place.key, &names));
                if let Ok(Ok(record)) = record {
                    return Ok(record.manifest.point.domain);
                }
            }
        }
        Ok(format!("{UNREADABLE}{hash}"))
    }
}

impl Repository for UnlockedPack {
    fn location(&self) -> String {
        self.0.place.location.clone()
    }

    fn exists(&self) -> bool {
        true
    }

    fn identity(&self) -> Identity {
        Identity::Known(self.0.place.description.id.clone())
    }

    fn ensure_identity(&self) -> Result<Identity> {
        Ok(self.identity())
    }

    fn domains(&self) -> Result<Vec<String>> {
        let listed = self.0.sealed.list(POINTS, &self.0.place.stop)?;
        let mut domains: BTreeMap<String, Vec<ListedObject>> = BTreeMap::new();
        for object in listed {
            let hash = object.name.as_str().split('/').nth(1).unwrap_or_default();
            if is_hash(hash) && is_point(segment(&object.name)) {
                domains.entry(hash.to_owned()).or_default().push(object);
            }
        }
        let named = domains
            .into_iter()
            .map(|(hash, points)| self.domain_name(&hash, points));
        let mut names = named.collect::<Result<Vec<String>>>()?;
        names.sort();
        Ok(names)
    }

    fn collect(&self, how: &Collection, stop: &Stop) -> Result<Option<CollectReport>> {
        self.0.collect(how, stop).map(Some)
    }

    fn check(&self, deep: bool, stop: &Stop) -> Result<Option<RepositoryCheck>> {
        integrity::check(&self.0, &self.domains()?, deep, stop).map(Some)
    }

    fn rebuild_index(&self, how: &Rebuild, stop: &Stop) -> Result<Option<RebuildReport>> {
        integrity::rebuild_index(&self.0, how, stop).map(Some)
    }

    fn restore_marks(&self) -> Result<Vec<Vec<u8>>> {
        let place = &self.0.place;
        DomainState::restore_marks(&place.host.folders, &place.description.id)
    }

    fn domain(&self, name: &str) -> Result<Box<dyn DomainRepository>> {
        Ok(Box::new(DomainPart::new(Arc::clone(&self.0), name)))
    }
}
