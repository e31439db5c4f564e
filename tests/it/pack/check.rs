//! The check of a repository as a whole, and the rebuild of its index, in repositories with restore
//! points and on the command line.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use vmsnap::model::stop::Stop;
use vmsnap::ops::collect::{Collection, collect};
use vmsnap::ops::integrity::{Rebuild, RepositoryCheck, check, rebuild_index};
use vmsnap::repo::{ObjectErrorKind, Repository};
use vmsnap::testkit::ObjectTrouble;

use super::commands::{Stage, document, refused, stderr, stdout};
use super::world::{DOMAIN, World};
use crate::repositories::kinds::{Folder, Kind};

fn checked(repo: &dyn Repository, deep: bool) -> RepositoryCheck {
    let checked = check(repo, deep, &Stop::default()).expect("it checks");
    checked.expect("a pack repository")
}

fn rebuilt(repo: &dyn Repository, delete_damaged: bool) -> vmsnap::ops::integrity::RebuildReport {
    let how = Rebuild {
        dry_run: false,
        delete_damaged,
    };
    let report = rebuild_index(repo, &how, &Stop::default()).expect("it rebuilds");
    report.expect("a pack repository")
}

/// The restore points and disks that cannot be read.
fn unreadable(world: &World) -> BTreeSet<(String, String)> {
    let mut lost = BTreeSet::new();
    for (id, disks) in &world.moments {
        for (disk, bytes) in disks {
            match world.lab.restored(DOMAIN, id, disk) {
                Ok(restored) => assert!(restored == *bytes, "{disk} of {id}"),
                Err(_) => {
                    lost.insert((id.clone(), (*disk).to_owned()));
                }
            }
        }
    }
    lost
}

fn costs(check: &RepositoryCheck) -> BTreeSet<(String, String)> {
    let costs = check.damage.iter().flat_map(|damage| &damage.costs);
    let disks = costs.flat_map(|cost| cost.disks.iter().map(move |disk| (cost.id.clone(), disk.clone())));
    disks.collect()
}

#[test]
fn each_kind_of_object_is_named_with_what_it_costs() {
    let mut world = World::new();
    for _ in 0..3 {
        world.backup();
    }
    world.reopen();
    let whole = checked(world.lab.repo.as_ref(), true);
    assert_eq!((&whole.damage, &whole.notes), (&vec![], &vec![]));
    assert_eq!((whole.domains, whole.points), (1, 3));
    let (mut costly, mut kinds) = (0, BTreeSet::new());
    for name in world.objects.names() {
        if name == "vmsnap.json" {
            continue;
        }
        let content = world.objects.content(&name).expect("there");
        let kind = name.split('/').next().unwrap_or_default().to_owned();
        let mut flipped = content.clone();
        flipped[content.len() / 2] ^= 1;
        let cut = content[..content.len() / 2].to_vec();
        for changed in [None, Some(flipped), Some(cut)] {
            let is_deleted = changed.is_none();
            let is_cut = changed.as_ref().is_some_and(|bytes| bytes.len() < content.len());
            match changed {
                Some(bytes) => world.objects.insert(&name, &bytes),
                None => world.objects.remove(&name),
            }
            world.reopen();
            let check = checked(world.lab.repo.as_ref(), true);
            let what = format!("{name}, deleted: {is_deleted}: {check:?}");
            let is_named = check
                .damage
                .iter()
                .any(|damage| damage.finding.message.contains(&name));
            match (kind.as_str(), is_deleted) {
                ("index", true) => assert!(check.unlisted.packs > 0, "{what}"),
                // The last restore point has no successor that knows it.
                ("points", true) if check.damage.is_empty() => assert_eq!(check.points, 2, "{what}"),
                _ => assert!(is_named, "{what}"),
            }
            if kind == "packs" {
                // Blocks near the end of a pack that was cut count as lost, as in a verification.
                match is_cut {
                    true => assert!(unreadable(&world).is_subset(&costs(&check)), "{what}"),
                    false => assert_eq!(costs(&check), unreadable(&world), "{what}"),
                }
                assert!(
                    check
                        .damage
                        .iter()
                        .flat_map(|damage| &damage.costs)
                        .all(|cost| cost.domain == DOMAIN)
                );
                costly += usize::from(!costs(&check).is_empty());
            }
            kinds.insert(kind.clone());
        }
        world.objects.insert(&name, &content);
    }
    let expected = ["index", "packs", "points"].map(str::to_owned);
    assert_eq!(kinds, BTreeSet::from(expected));
    assert!(costly > 5, "{costly}");
}

#[test]
fn files_that_a_lost_pack_holds_are_among_its_costs() {
    let mut world = World::new();
    world.backup();
    world.reopen();
    let packs = world.objects.names().into_iter();
    let mut files = BTreeSet::new();
    for name in packs.filter(|name| name.starts_with("packs/")) {
        let content = world.objects.content(&name).expect("there");
        world.objects.remove(&name);
        for damage in checked(world.lab.repo.as_ref(), false).damage {
            assert_eq!(damage.object.as_deref(), Some(name.as_str()));
            files.extend(damage.costs.into_iter().flat_map(|cost| cost.files));
        }
        world.objects.insert(&name, &content);
    }
    assert!(files.contains("domain.xml"), "{files:?}");
}

#[test]
fn rebuilt_index_lets_collections_work_again() {
    let mut world = World::new();
    for _ in 0..3 {
        world.backup();
    }
    let names = world.objects.names();
    let index: Vec<&String> = names.iter().filter(|name| name.starts_with("index/")).collect();
    let mut content = world.objects.content(index[0]).expect("there");
    content[40] ^= 1;
    world.objects.insert(index[0], &content);
    world.objects.remove(index[1]);
    world.reopen();
    let how = Collection {
        grace: Collection::GRACE,
        dry_run: false,
    };
    let error = collect(world.lab.repo.as_ref(), &how, &Stop::default()).expect_err("it refuses");
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("rebuild-index LOCATION --delete-damaged"), "{hint}");
    let listed = rebuilt(world.lab.repo.as_ref(), false);
    assert!(
        listed.listed.packs > 1 && !listed.damaged[0].is_deleted,
        "{listed:?}"
    );
    collect(world.lab.repo.as_ref(), &how, &Stop::default()).expect_err("it still refuses");
    let deleted = rebuilt(world.lab.repo.as_ref(), true);
    assert!(
        deleted.damaged[0].is_deleted && deleted.listed.packs == 0,
        "{deleted:?}"
    );
    let collected = collect(world.lab.repo.as_ref(), &how, &Stop::default());
    collected.expect("it collects").expect("a pack repository");
    let check = checked(world.lab.repo.as_ref(), true);
    assert_eq!(
        (check.damage, check.unlisted.packs, check.sessions),
        (vec![], 0, vec![])
    );
    world.assert_kept();
    world.assert_next_backup_heals();
}

#[test]
fn stores_that_fail_are_no_damage() {
    let mut world = World::new();
    world.backup();
    for call in ["list", "get", "get_range", "head"] {
        for number in 0..3 {
            world.reopen();
            let refused = ObjectTrouble::Fails(ObjectErrorKind::Refused);
            world.objects.trouble(call, number, refused);
            let checked = check(world.lab.repo.as_ref(), true, &Stop::default());
            world.objects.calm();
            if let Ok(checked) = checked {
                assert_eq!(checked.expect("a pack repository").damage, [], "{call} {number}");
                assert_ne!(call, "list", "a list that fails is an error");
            }
        }
    }
}

#[test]
fn folders_of_images_are_no_pack_repositories() {
    let kind = Folder::default();
    let repo = kind.repository();
    assert_eq!(
        check(repo.as_ref(), false, &Stop::default()).expect("no error"),
        None
    );
    let rebuilt = rebuild_index(repo.as_ref(), &Rebuild::default(), &Stop::default());
    assert_eq!(rebuilt.expect("no error"), None);
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("created");
    let images = stage.path("images").display().to_string();
    for command in ["check", "rebuild-index"] {
        let output = stage.run(&["repository", command, &images]);
        refused(&output, 64, &["is not a pack repository"]);
    }
}

#[test]
fn check_shows_damage_on_the_command_line() {
    let stage = Stage::new();
    let pack = stage.pack();
    document(&stage.run(&["init", &pack, "--no-encryption", "--json"]));
    let ids = super::collect::fill(&stage.path("host"), &stage.path("pack"));
    let check = ["repository", "check", &pack];
    let output = stage.run(&check);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stdout(&output).contains(": OK\n"), "{output:?}");
    let whole = document(&stage.run(&[&check[..], &["--deep", "--json"]].concat()));
    assert_eq!((&whole["outcome"], &whole["deep"]), (&"ok".into(), &true.into()));
    assert_eq!(whole["restorePoints"], ids.len());
    let mut costly = 0;
    for path in files(&stage.path("pack/packs")) {
        let content = fs::read(&path).expect("readable");
        fs::remove_file(&path).expect("removed");
        let name = path
            .strip_prefix(stage.path("pack"))
            .expect("below")
            .display()
            .to_string();
        let output = stage.run(&[&check[..], &["--json"]].concat());
        assert_eq!(output.status.code(), Some(11), "{output:?}");
        let found: Value = serde_json::from_slice(&output.stdout).expect("one document");
        assert_eq!(found["outcome"], "damaged");
        assert_eq!(found["damage"][0]["object"], Value::from(name.as_str()));
        assert_eq!(found["damage"][0]["code"], "pack-missing");
        for point in found["damage"][0]["restorePoints"].as_array().expect("a list") {
            let id = point["id"].as_str().expect("an id").to_owned();
            assert!(ids.contains(&id) && point["domain"] == DOMAIN, "{point}");
            costly += 1;
        }
        let text = stdout(&stage.run(&check));
        assert!(
            text.contains("DAMAGED in 1 place") && text.contains(&name),
            "{text}"
        );
        assert!(text.contains(&format!("makes unreadable: {DOMAIN} ")), "{text}");
        fs::write(&path, content).expect("written");
    }
    assert!(costly > 2, "{costly}");
}

#[test]
fn index_is_rebuilt_on_the_command_line() {
    let stage = Stage::new();
    let pack = stage.pack();
    document(&stage.run(&["init", &pack, "--no-encryption", "--json"]));
    super::collect::fill(&stage.path("host"), &stage.path("pack"));
    let index = files(&stage.path("pack/index"));
    fs::write(&index[0], b"damaged").expect("written");
    fs::remove_file(&index[1]).expect("removed");
    let before = files(&stage.path("pack"));
    let rebuild = ["repository", "rebuild-index", &pack];
    let dry = stage.run(&[&rebuild[..], &["--dry-run", "--delete-damaged", "--json"]].concat());
    let dry = document(&dry);
    assert_eq!(
        (&dry["dryRun"], &dry["damaged"][0]["deleted"]),
        (&true.into(), &true.into())
    );
    assert_eq!(files(&stage.path("pack")), before, "a dry run changes nothing");
    let first = stage.run(&rebuild);
    assert_eq!(first.status.code(), Some(11), "{}", stderr(&first));
    for part in ["added to the index: ", "not deleted", "use --delete-damaged"] {
        assert!(stdout(&first).contains(part), "{part}: {first:?}");
    }
    let second = stage.run(&[&rebuild[..], &["--delete-damaged"]].concat());
    assert_eq!(second.status.code(), Some(0), "{}", stderr(&second));
    assert!(!index[0].exists(), "{second:?}");
    let check = document(&stage.run(&["repository", "check", &pack, "--deep", "--json"]));
    assert_eq!(check["unlisted"]["packs"], 0);
    document(&stage.run(&["repository", "collect", &pack, "--json"]));
}

/// The files below a folder.
fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let tree = crate::lab::tree(folder).into_iter();
    let paths = tree.map(|name| folder.join(name)).filter(|path| path.is_file());
    paths.collect()
}

#[test]
fn damaged_key_slots_are_found() {
    let stage = Stage::new();
    let (pack, person) = (stage.pack(), super::Person::new());
    let identity = person.file.path().display().to_string();
    document(&stage.run(&["init", &pack, "--encrypt-to", &person.public, "--json"]));
    let passphrase = stage.file("passphrase", "correct horse battery\n");
    let add = ["key", "add", "-r", &pack, "--identity-file", &identity];
    let added = stage.run(&[&add[..], &["--new-passphrase-file", &passphrase]].concat());
    assert_eq!(added.status.code(), Some(0), "{added:?}");
    let check = [
        "repository",
        "check",
        &pack,
        "--identity-file",
        &identity,
        "--json",
    ];
    assert_eq!(document(&stage.run(&check))["outcome"], "ok");
    let slots = document(&stage.run(&["key", "list", "-r", &pack, "--json"]));
    let slots = slots["slots"].as_array().expect("a list").iter();
    let of_passphrase = slots.filter(|slot| slot["kind"] == "passphrase");
    let id = of_passphrase
        .map(|slot| slot["id"].as_str().expect("an id").to_owned())
        .next();
    let file = stage.path(&format!("pack/keys/{}.age", id.expect("one")));
    let content = fs::read(&file).expect("readable");
    let mut changed = content.clone();
    let place = content.len() / 2;
    changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
    fs::write(&file, changed).expect("written");
    let output = stage.run(&check);
    assert_eq!(output.status.code(), Some(11), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!(found["damage"][0]["code"], "key-slot-damaged");
    fs::remove_file(&file).expect("removed");
    let noted = document(&stage.run(&check));
    assert_eq!(noted["findings"][0]["code"], "key-slot-incomplete");
}
