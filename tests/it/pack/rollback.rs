//! Somebody puts an old state of the whole repository in the place of the current one.

use vmsnap::model::restore_point::Level;

use super::world::{DOMAIN, World};

/// The repository alone cannot tell. The host can: its checkpoint belongs to no restore point.
#[test]
fn old_state_of_the_repository_is_noticed_by_its_host() {
    let mut world = World::new();
    for _ in 0..2 {
        world.backup();
    }
    let old = world.fork();
    world.backup();
    for name in world.objects.names() {
        world.objects.remove(&name);
    }
    for name in old.objects.names() {
        let content = old.objects.content(&name).expect("it is there");
        world.objects.insert(&name, &content);
    }
    world.reopen();
    let history = world.lab.history(DOMAIN);
    assert_eq!((history.kept.len(), history.findings.len()), (2, 0));
    let status = world.lab.status(DOMAIN);
    assert!(!status.inconsistencies.is_empty(), "{status:?}");
    world.moments.pop();
    let outcome = world.backup();
    // The checkpoint of the newest restore point that is left is still there.
    let last = world.moments[1].0.clone();
    assert_eq!(outcome.point.level, Level::Incremental);
    assert_eq!(outcome.point.parent, Some(last));
    world.assert_kept();
    world.lab.assert_verified(DOMAIN);
}
