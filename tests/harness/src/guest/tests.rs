use super::*;

fn guest() -> Guest {
    Guest {
        home: None,
        home_ipv4: None,
        name: "g1".into(),
        memory_mib: 96,
        disk_format: "raw",
        disk: "/tmp/a \"b\".raw".into(),
        workload: Workload { port: 9000, ..Workload::default() },
        kernel: "/k/vmlinux".into(),
        initrd: "/k/initrd".into(),
    }
}

#[test]
fn the_definition_is_toml_with_everything_in_it() {
    let table: Table = guest().definition().parse().unwrap();
    assert_eq!(table["name"].as_str(), Some("g1"));
    assert_eq!(table["disks"][0]["path"].as_str(), Some("/tmp/a \"b\".raw"));
    assert_eq!(table["qemu"]["kernel"].as_str(), Some("/k/vmlinux"));
    let append = table["qemu"]["append"].as_str().unwrap();
    assert_eq!(Workload::from_cmdline(append), Ok(guest().workload));
    assert_eq!(table["qemu"]["args"].as_array().unwrap().len(), 4);
}

#[test]
fn a_plain_qemu_never_uses_kvm() {
    let arguments = guest().qemu_arguments().join(" ");
    assert!(arguments.contains("-accel tcg"), "{arguments}");
    assert!(!arguments.contains("kvm"), "{arguments}");
}
