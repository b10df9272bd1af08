//! What xl and another host's xl say, as a fuzz target sees it: however it arrives, it ends at the same byte, and no
//! configuration gets through that names what another host may not decide. Compiled for the fuzz targets only.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::configuration::{Rules, found};
use super::handshake::{Due, GO, READY, RECEIVER_READY, REPORT};
use super::stream::{self, Follower, StreamError, XL_HEADER_BYTES};
use crate::definition::VmName;

const DISK: &str = "/srv/u1.raw";
const SCRIPT: &str = "/srv/vif-bridge";

fn rules() -> Rules {
    let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    Rules {
        name: "u1".into(),
        kernel: None,
        ramdisk: None,
        disks: [("xvda".to_owned(), PathBuf::from(DISK))].into(),
        bridges: [pair("xenbr0", "br-vms")].into(),
        script: SCRIPT.into(),
    }
}

/// Reads `bytes` as what a source sends. The first byte is how many bytes arrive at a time, less one.
pub fn stream(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let mut whole = Follower::new();
    let at_once = whole.follow(bytes);
    let mut pieces = Follower::new();
    let in_pieces = bytes
        .chunks(usize::from(*step) + 1)
        .try_fold(0, |taken, piece| pieces.follow(piece).map(|more| taken + more));
    assert_eq!(at_once, in_pieces);
    assert_eq!(whole.is_at_end(), pieces.is_at_end());
    if let Ok(taken) = at_once {
        assert!(taken == bytes.len() || whole.is_at_end());
    }
    words(bytes, usize::from(*step) + 1);
    header(bytes);
}

fn words(bytes: &[u8], step: usize) {
    for text in [RECEIVER_READY, READY, GO, REPORT] {
        let mut due = Due::new(text);
        let said = bytes.chunks(step).try_for_each(|piece| due.take(piece).map(drop));
        let common = bytes.iter().zip(text).take_while(|(a, b)| a == b).count();
        assert_eq!(due.is_complete(), common == text.len());
        assert_eq!(said.is_err(), common < text.len() && common < bytes.len());
    }
}

fn header(bytes: &[u8]) {
    let Some((header, rest)) = bytes.split_at_checked(XL_HEADER_BYTES) else { return };
    let Ok(length) = stream::optional_bytes(header) else { return };
    let Some(optional) = rest.get(..length as usize) else { return };
    let rules = rules();
    let mut kept = None;
    let adapted = stream::with_configuration(header, optional, |text| {
        let _ = found(&VmName::new("u1").map_err(|error| error.to_string())?, text);
        let text = rules.adapt(text)?;
        kept = Some(text.clone());
        Ok(text)
    });
    match adapted {
        Ok(bytes) => {
            let length = stream::optional_bytes(&bytes).expect("what we write can be read");
            assert_eq!(bytes.len(), XL_HEADER_BYTES + length as usize);
            judge(&serde_json::from_str(&kept.expect("it was adapted")).expect("what is adapted is JSON"));
        }
        Err(StreamError::Configuration(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

/// What has got through names nothing of this host but what the rules give.
fn judge(configuration: &Value) {
    for disk in configuration["disks"].as_array().into_iter().flatten() {
        assert_eq!((&disk["pdev_path"], &disk["format"]), (&json!(DISK), &json!("raw")));
    }
    for name in ["pcidevs", "usbdevs", "vtpms", "p9s"] {
        assert!(configuration[name].as_array().is_none_or(Vec::is_empty));
    }
    for name in ["device_model", "bootloader", "acpi_firmware"] {
        assert!(configuration["b_info"][name].as_str().is_none_or(str::is_empty));
    }
    for nic in configuration["nics"].as_array().into_iter().flatten() {
        assert_ne!(nic["bridge"], "xenbr0");
        assert_eq!(nic["script"], SCRIPT);
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let disk = json!({"vdev": "xvda", "pdev_path": "/a", "format": "qcow2", "backend": "qdisk"});
    let nic = json!({"mac": "00:16:3e:00:00:50", "bridge": "xenbr0", "script": "vif-bridge"});
    let configurations = [
        json!({"c_info": {"type": "pvh", "name": "u1"}, "disks": [disk], "nics": [nic]}),
        json!({"c_info": {"type": "hvm"}, "b_info": {"device_model": "/bin/sh"}, "disks": [disk]}),
        json!({"disks": [disk], "pcidevs": [{"dev": 1}]}),
    ];
    let mut seeds: Vec<Vec<u8>> = configurations
        .iter()
        .map(|configuration| [vec![6], stream::sample::stream(&configuration.to_string(), 100)].concat())
        .collect();
    seeds.extend([RECEIVER_READY, READY, GO, REPORT].map(|text| [&[2][..], text].concat()));
    seeds
}
