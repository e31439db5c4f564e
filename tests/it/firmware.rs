//! UEFI variables in forms other than a file of raw bytes.

use std::fs;

use vmsnap::io::DiskStore;
use vmsnap::model::firmware::Nvram;
use vmsnap::model::stop::Stop;
use vmsnap::ops::restore::{self, DefineOptions, Options, Outcome};

use crate::lab::{CLUSTER, InFolder, Lab, tree};

/// A lab with a domain whose definition has this `<nvram>`.
fn lab(nvram: &str, place: Nvram) -> Lab {
    let lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 2 * CLUSTER)]);
    lab.host.change("vm1", |domain| {
        domain.inactive_xml = domain
            .inactive_xml
            .replace("<nvram>/nvram/VARS.fd</nvram>", nvram);
        domain.nvram = Some(place);
    });
    lab.host.set_nvram("vm1", b"QFI\xfb variables");
    lab
}

fn restored(lab: &Lab, options: &Options) -> Outcome {
    let plan = restore::plan("vm1", lab.repo.as_ref(), Some(&lab.host), options).expect("a plan");
    let stop = Stop::default();
    let means = restore::Means {
        repo: lab.repo.as_ref(),
        store: &DiskStore,
        host: Some(&lab.host),
        monitor: &lab.recorder,
        stop: &stop,
    };
    restore::restore("vm1", plan, &means).expect("restored")
}

fn options(lab: &Lab) -> Options {
    Options {
        define: Some(DefineOptions {
            name: Some("copy".to_owned()),
        }),
        ..lab.restoring()
    }
}

#[test]
fn qcow2_variables_come_back_under_a_name_that_ends_so() {
    let place = Nvram::File {
        path: "/nvram/V.qcow2".into(),
        is_qcow2: true,
    };
    let mut lab = lab("<nvram format='qcow2'>/nvram/V.qcow2</nvram>", place);
    let outcome = lab.backup("vm1").expect("a backup");
    let saved = fs::read(outcome.dir().join("nvram.fd")).expect("it is saved");
    assert_eq!(saved, b"QFI\xfb variables");
    lab.assert_verified("vm1");
    let options = options(&lab);
    let define = restored(&lab, &options).plan.define.expect("it was defined");
    let path = options.to.join("copy_VARS.qcow2");
    assert_eq!(fs::read(&path).expect("restored"), saved);
    let expected = format!("<nvram format='qcow2'>{}</nvram>", path.display());
    assert!(define.xml.contains(&expected), "{}", define.xml);
}

#[test]
fn variables_that_are_no_file_are_a_finding_and_begin_afresh() {
    let device = "<nvram type='block'><source dev='/dev/vg/n'/></nvram>";
    let place = Nvram::Elsewhere("the block device /dev/vg/n".to_owned());
    let mut lab = lab(device, place);
    let outcome = lab.backup("vm1").expect("a backup");
    assert_eq!(outcome.findings.len(), 1, "{:?}", outcome.findings);
    assert_eq!(outcome.findings[0].code, "nvram-skipped");
    assert!(outcome.findings[0].message.contains("/dev/vg/n"));
    assert!(!outcome.dir().join("nvram.fd").exists());
    let options = options(&lab);
    let plan = restored(&lab, &options).plan;
    assert_eq!(plan.findings[0].code, "nvram-fresh");
    let xml = plan.define.expect("it was defined").xml;
    let file = options.to.join("copy_VARS.fd");
    let expected = format!("<nvram type='file'><source file='{}'/></nvram>", file.display());
    assert!(xml.contains(&expected), "{xml}");
    assert_eq!(tree(&options.to), ["vda.qcow2"]);
}

#[test]
fn variables_within_the_firmware_are_a_finding() {
    let loader = "<loader type='pflash' readonly='no'>/OVMF.fd</loader>";
    let mut lab = lab(loader, Nvram::Loader("/OVMF.fd".into()));
    let outcome = lab.backup("vm1").expect("a backup");
    assert_eq!(outcome.findings[0].code, "nvram-skipped");
    assert!(outcome.findings[0].message.contains("/OVMF.fd"));
    let plan = restored(&lab, &options(&lab)).plan;
    assert!(plan.findings.is_empty(), "{:?}", plan.findings);
    assert!(plan.define.expect("it was defined").xml.contains(loader));
}
