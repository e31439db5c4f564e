//! Domains that were redefined, replaced or renamed.

use virt::domain::Domain as Handle;
use virt_sys as sys;
use vmsnap::model::restore_point::Level;

use super::{assert_next, begun, bring, off};
use crate::embed::Lab;
use crate::verbs::rng::Rng;
use crate::verbs::story::Story;

/// Undefines a shut-off domain as `virsh undefine --checkpoints-metadata` does, and returns its
/// XML. The bitmaps stay in the images.
fn undefine(story: &Story) -> String {
    let xml = story.domain.seen().inactive_xml;
    let flags = sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
    story
        .domain
        .handle()
        .undefine_flags(flags)
        .expect("it is undefined");
    xml
}

fn define(xml: &str) {
    Handle::define_xml(&Lab::get().connection, xml).expect("it is defined");
}

#[test]
fn a_domain_defined_again_goes_on_from_the_bitmaps_that_it_left() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("defined again ", &mut rng);
        let xml = undefine(&story);
        define(&xml);
        assert_eq!(crate::host::names(&story.domain), [""; 0]);
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
        story.prove();
    }
}

#[test]
fn other_domain_with_same_name_and_images_starts_a_new_chain() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("other uuid ", &mut rng);
        let old = story.domain.seen().uuid;
        let xml = undefine(&story);
        define(&xml.replace(&old, &uuid::Uuid::new_v4().to_string()));
        story.domain.look_again();
        assert_ne!(story.domain.seen().uuid, old);
        bring(&story, active);
        assert_next(&mut story, &mut rng, [None, None]);
        story.prove();
    }
}

/// libvirt keeps the checkpoints of a renamed domain. Manifests in the old folder name them, but
/// none in the new folder.
#[test]
fn renamed_domain_starts_a_new_folder_and_can_return() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("renamed ", &mut rng);
        let old = story.domain.name.clone();
        rename(&mut story, &format!("{old} anew"));
        bring(&story, active);
        let ids: Vec<String> = story.ids().into_iter().map(str::to_owned).collect();
        for _ in 0..2 {
            story.scribble(&mut rng, 5);
            story.try_back_up().expect("a backup under the new name");
        }
        let points = story.list().points;
        let whole = points.iter().filter(|point| point.is_whole());
        assert_eq!(whole.count(), 2);
        assert_eq!(points[0].point.level, Level::Full);
        assert_eq!(points[1].point.parent.as_ref(), Some(&points[0].point.id));

        off(&story);
        rename(&mut story, &old);
        bring(&story, active);
        assert_eq!(story.ids(), ids);
        assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
        story.prove();
    }
}

/// Renames a shut-off domain.
fn rename(story: &mut Story, to: &str) {
    story.domain.handle().rename(to, 0).expect("it is renamed");
    story.domain.name = to.to_owned();
    story.domain.look_again();
}
