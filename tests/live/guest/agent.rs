//! A guest that is asked and damaged through its agent.

use std::time::Duration;

use serde_json::{Value, json};

use super::disks::DATA_PARTITION;
use super::{BOOT_DEADLINE, Guest, SerialLog};
use crate::process::wait_until;

/// The time limit of a program in the guest, even without KVM.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(60);

impl Guest {
    /// Waits until the guest agent answers; panics at the deadline.
    pub fn wait_for_agent(&self, deadline: Duration) {
        assert!(
            wait_until(deadline, || self.agent_answers()),
            "the agent did not answer in {deadline:?}:\n{}",
            self.files.serial.text()
        );
    }

    /// Whether the guest agent answers now.
    pub fn agent_answers(&self) -> bool {
        let ping = r#"{"execute":"guest-ping"}"#;
        self.domain.try_virsh(&["qemu-agent-command", "--cmd", ping]).ok()
    }

    /// Whether libvirt sees a connected agent, even one that never answers.
    pub fn agent_is_connected(&self) -> bool {
        self.domain.virsh(&["dumpxml"]).contains("state='connected'")
    }

    /// The agent's answer to a command of QEMU's "guest agent protocol reference". Panics if the
    /// agent reports an error.
    pub fn ask_agent(&self, command: &str, arguments: &Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        let said = self.domain.virsh(&["qemu-agent-command", "--cmd", &request]);
        let mut answer: Value = serde_json::from_str(&said).expect("an answer is JSON");
        answer["return"].take()
    }

    /// Runs a program of the guest's busybox to its end and returns its standard output. If it
    /// fails, panics with all its output.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let words: Vec<&str> = [&[program], args].concat();
        let request = json!({"path": "/bin/busybox", "arg": words, "capture-output": true});
        let started = self.ask_agent("guest-exec", &request);
        let id = json!({"pid": started["pid"]});
        let mut status = Value::Null;
        let ended = wait_until(PROGRAM_DEADLINE, || {
            status = self.ask_agent("guest-exec-status", &id);
            status["exited"] == true
        });
        assert!(
            ended,
            "{words:?} was not done in the guest after {PROGRAM_DEADLINE:?}"
        );
        let output = decoded(&status["out-data"]);
        assert_eq!(
            status["exitcode"],
            0,
            "{words:?} failed in the guest: {output}{}",
            decoded(&status["err-data"])
        );
        output
    }

    /// Overwrites the boot sector of a guest started by [`Guest::start_from_disk`]. The running
    /// guest does not notice, but its firmware finds no boot loader the next time.
    pub fn destroy_boot_sector(&self) {
        self.overwrite("/dev/vda", "512");
    }

    /// Stops the writer of a guest started by [`Guest::start_from_disk`] and overwrites the start
    /// of its file system, with the superblock. The agent still answers and reports the file
    /// system, which cannot be mounted any more.
    pub fn destroy_file_system(&self) {
        // ext4 writes its superblock now and then, but not while it is mounted read-only.
        self.run("touch", &["/run/stop-writing"]);
        self.files
            .serial
            .wait_for_text("stopped after round", BOOT_DEADLINE);
        self.overwrite(DATA_PARTITION, "1M");
    }

    /// Ends the guest as a power cut does, and starts it again. Returns the console of the new
    /// start only.
    pub fn power_cycle(&self) -> SerialLog {
        self.domain.destroy();
        let console = self.files.serial.later_output();
        self.domain.start();
        console
    }

    /// Overwrites the start of a device with zeros, which are on the disk afterwards.
    fn overwrite(&self, device: &str, size: &str) {
        let (to, size) = (format!("of={device}"), format!("bs={size}"));
        self.run(
            "dd",
            &["if=/dev/zero", &to, &size, "count=1", "conv=notrunc,fsync"],
        );
    }
}

/// The text of a program's output, which the agent encodes in Base64 (RFC 4648) and omits if it is
/// empty.
fn decoded(data: &Value) -> String {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for letter in data.as_str().unwrap_or("").trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => panic!("{data} is not Base64"),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn output_of_guest_programs_is_decoded() {
    assert_eq!(decoded(&Value::Null), "");
    assert_eq!(decoded(&json!("TA==")), "L");
    assert_eq!(decoded(&json!("TGk=")), "Li");
    assert_eq!(decoded(&json!("TGludXggfj8+Cg==")), "Linux ~?>\n");
}
