//! What the newer versions of the Node program added, on real domains.

use crate::cli_lab::Machine;
use crate::cli_user::{User, says};
use crate::daemon::Daemon;

const MIB: usize = 1 << 20;

#[test]
fn the_checkpoint_name_star_is_every_checkpoint() {
    let daemon = Daemon::acquire();
    let machine = Machine::paused(&daemon, "star", &[MIB]);
    let user = User::new();
    let domains = format!("--domains={}", machine.name());
    for kind in ["checkpoint", "both", "*"] {
        for day in ["2026-11-02", "2026-11-03"] {
            let made = user.on(day, &[&domains, "--backup", "--output=OUT", "-q"]);
            assert_eq!(made.code, Some(0), "{made:#?}");
        }
        machine.domain.virsh(&["checkpoint-create-as", "mine"]);
        let scrub_type = format!("--scrubType={kind}");
        let scrub = [
            domains.as_str(),
            "--scrub",
            scrub_type.as_str(),
            "--checkpointName=*",
        ];
        let scrubbed = user.on("2026-11-05", &scrub);
        assert_eq!(scrubbed.code, Some(0), "{scrubbed:#?}");
        assert_eq!(scrubbed.stderr, "");
        assert!(scrubbed.stdout.contains("removed 2 checkpoints"), "{scrubbed:#?}");
        assert!(!scrubbed.stdout.contains("has no effect"), "{scrubbed:#?}");
        assert_eq!(machine.checkpoints(), ["mine"], "{kind}");
        machine.domain.virsh(&["checkpoint-delete", "mine"]);
    }
    let bitmaps = [&domains, "--scrub", "--scrubType=bitmap", "--checkpointName=*"];
    let nothing = user.on("2026-11-06", &bitmaps);
    assert_eq!(nothing.code, Some(0), "{nothing:#?}");
    says(
        &user.on("2026-11-06", &[&domains, "--scrub", "--scrubType=all"]),
        &[&machine],
        8,
        "",
        "vmsnap: Invalid scrub type: all\n",
    );
}
