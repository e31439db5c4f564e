//! Names that are difficult for a shell, a path or XML.

use vmsnap::model::restore_point::Level;
use vmsnap::repo::Repository;

use crate::embed::{Kind, Shape, TestDomain};
use crate::verbs::story::{Story, levels};

#[test]
fn domains_with_awkward_names_are_backed_up_and_given_back() {
    // libvirt cuts the name of a running domain's folder after 20 characters. In the C locale the
    // cut may be within a character.
    let names = [
        " two  blanks ",
        "it's \"q\" ",
        "\u{fc}\u{1f600}\u{4e2d} ",
        "$(id);`id`|",
        "-rf --x=",
        "&<>&amp;",
        "..%2f*?[a]",
        ".hidden~\\n",
    ];
    for (number, name) in names.iter().enumerate() {
        let domain = TestDomain::shaped(
            name,
            &Shape {
                disks: &[(Kind::Qcow2, (1 << 20) + 512)],
                ..Shape::default()
            },
        );
        let mut story = Story::of(domain);
        let given = story.domain.name.clone();
        assert!(given.starts_with(name));
        // Alternately running and shut off, because both create their own folders and sockets.
        if number % 2 == 0 {
            story.domain.start();
        }
        story.write("vda", 0, 100_000, 0x61);
        story.back_up();
        story.write("vda", 65536, 512, 0x62);
        let outcome = story.back_up();
        assert_eq!(levels(&outcome), [("vda", Level::Incremental)]);
        assert_eq!(outcome.point.domain, given);
        assert_eq!(story.repo.domains().expect("they are listed"), [given]);
        let beneath = std::fs::read_dir(story.repo.root()).expect("it is readable");
        let folders = beneath.flatten().filter(|entry| entry.path().is_dir());
        assert_eq!(folders.count(), 1, "one folder for one domain");
        assert!(std::path::Path::new(&outcome.location).starts_with(story.repo.root()));
        story.prove();
    }
}

#[test]
fn a_long_name_is_no_obstacle() {
    let domain = TestDomain::shaped(
        &"long ".repeat(40),
        &Shape {
            disks: &[(Kind::Qcow2, 1 << 20)],
            ..Shape::default()
        },
    );
    let mut story = Story::of(domain);
    story.domain.start();
    story.write("vda", 0, 512, 0x61);
    story.back_up();
    story.write("vda", 65536, 512, 0x62);
    story.back_up();
    story.prove();
}
