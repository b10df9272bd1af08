//! The decoders of this crate as fuzz targets see them: each reads bytes and panics when what it read breaks a promise.
//! Compiled for the fuzz targets only; opens no file.

use std::path::Path;

use crate::migration::Plan;
use crate::service::config::{Config, EXAMPLE};
use crate::service::jobs::Report;
use crate::service::peers;

pub use crate::service::identity::Fingerprint;

/// Reads `bytes` as a VM's name, up to the first newline, and the plan with which it is offered to us.
pub fn plan(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let Ok(vm) = std::str::from_utf8(&bytes[..end]) else { return };
    let Ok(plan) = Plan::decode(vm, &bytes[end + 1..]) else { return };
    assert_eq!(plan.definition.name.as_str(), vm);
    assert_eq!(plan.disks.len(), plan.definition.disks.len());
    assert!(plan.disks.len() <= migrate_driver::definition::MAX_DISKS);
    for disk in &plan.disks {
        assert!(
            plan.definition.disk(&disk.name).is_some() && disk.size <= longhaul_proto::wire::MAX_IMAGE_BYTES
        );
    }
    let text = plan.encode().expect("a plan can be written");
    assert_eq!(Plan::decode(vm, &text).expect("what is written can be read"), plan);
}

/// Reads `bytes` as a configuration file.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = Config::parse(text, Path::new("longhaul.toml")) else { return };
    assert!(config.name.len() <= longhaul_proto::wire::MAX_NAME_BYTES);
    assert!((1 << 20..=1 << 30).contains(&config.window_bytes));
    assert!((-7..=19).contains(&config.compression_level) && (-7..=19).contains(&config.store_level));
    assert!((1..=600).contains(&config.idle_timeout_s));
}

/// Reads `bytes` as the list of peers.
pub fn peers(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = |text: &str| peers::read_entries(text, Path::new("peers.toml"));
    let (peers, _) = read(text);
    let text = toml::to_string(&peers).expect("a list of peers can be written");
    assert_eq!(read(&text), (peers, Default::default()));
}

/// Reads `bytes` as the report of a job that has ended.
pub fn report(bytes: &[u8]) {
    let Ok(report) = serde_json::from_slice::<Report>(bytes) else { return };
    let text = serde_json::to_vec(&report).expect("a report can be written");
    let again: Report = serde_json::from_slice(&text).expect("what is written can be read");
    // Times are floating point numbers, and read back within their last digit only.
    assert_eq!((again.job, again.kind, again.state), (report.job, report.kind, report.state));
    assert_eq!((again.error, again.notes), (report.error, report.notes));
    assert_eq!(again.phases.len(), report.phases.len());
}

/// A name and a plan.
pub fn plans() -> Vec<Vec<u8>> {
    let plan = concat!(
        "web\n",
        r#"{"definition": {"name": "web", "memory_mib": 256, "disks": [{"name": "root", "path": "/r.raw"}],"#,
        r#""qemu": {"kernel": "/vmlinuz", "append": "quiet", "args": ["-nodefaults"]}},"#,
        r#""disks": [{"name": "root", "size": 4294967296, "data_bytes": 1000}],"#,
        r#""boot_files": [{"path": "/vmlinuz", "blake3": "00"}]}"#,
    );
    let (name, text) = plan.split_once('\n').expect("a name and a plan");
    let parsed: Plan = Plan::decode(name, text.as_bytes()).expect("a plan");
    let written = serde_json::to_vec(&parsed).expect("a plan can be written");
    let size = |bytes: u64| plan.replace("4294967296", &bytes.to_string()).into_bytes();
    let most = longhaul_proto::wire::MAX_IMAGE_BYTES;
    // The last one is refused.
    vec![plan.into(), [b"web\n", &written[..]].concat(), size(most), size(most + 1)]
}

/// The example, and one with its keys in use.
pub fn configs() -> Vec<Vec<u8>> {
    let used = "name = \"a\"\nlisten = \"[::]:1\"\ncompression_level = 3\ncongestion = \"bbr\"\n\
                window_bytes = 1048576\nidle_timeout_s = 9\nqemu_binaries = [\"q\"]\nqemu_arguments = [\"*\"]\n";
    let key = format!("spi = 256\nkey = \"{}\"\nproof = \"hmac-sha1-96\"\n", "a1".repeat(16));
    let node = format!("home_address = \"2001:db8::1\"\nname = \"n\"\n{key}");
    let nodes = format!(
        "[home_agent]\naddress = \"::1\"\nprefixes = []\n[[home_agent.nodes]]\n{node}\
         [mobile_node]\nhome_agent = \"::1\"\nlink = \"eth0\"\n{node}"
    );
    vec![EXAMPLE.into(), used.into(), nodes.into()]
}

/// Two peers.
pub fn peer_lists() -> Vec<Vec<u8>> {
    let peer = |name: &str, digit: &str| {
        format!("[{name}]\naddress = \"10.0.0.1:4433\"\nfingerprint = \"{}\"\n", digit.repeat(64))
    };
    vec![peer("a", "0").into(), (peer("a", "1") + &peer("\"b.c\"", "F")).into()]
}

/// A report.
pub fn reports() -> Vec<Vec<u8>> {
    let report = concat!(
        r#"{"job": "00112233445566778899aabbccddeeff", "kind": "migrate_out", "subject": "web", "peer": "b","#,
        r#""state": "done", "error": null, "summary": "s", "started_unix_ms": 1, "total_ms": 2.5,"#,
        r#""phases": [{"name": "bulk", "ms": 1.0, "wire_bytes": 2}], "image_bytes": 1, "scanned_bytes": 1,"#,
        r#""data_bytes": 1, "wire_bytes_disk": 1, "wire_bytes_memory": 1, "rounds": 1, "dedup_saved_bytes": 1,"#,
        r#""compression_saved_bytes": 1, "downtime_ms": 0.5, "disk_switchover_ms": null, "notes": ["n"]}"#,
    );
    vec![report.into()]
}
