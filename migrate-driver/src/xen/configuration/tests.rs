use serde_json::json;

use super::*;

/// What xl 4.17 sends for the lab's guest, shortened.
fn sent() -> Value {
    json!({
        "c_info": {"type": "pvh", "name": "u1", "uuid": "2b5d", "run_hotplug_scripts": "True"},
        "b_info": {
            "max_vcpus": 1, "avail_vcpus": [0], "max_memkb": 98304, "target_memkb": 98304,
            "kernel": "/lab/vmlinux", "cmdline": "console=hvc0", "ramdisk": "/lab/initrd", "type.pvh": {}
        },
        "disks": [{"pdev_path": "/srv/u1.raw", "vdev": "xvda", "backend": "qdisk", "format": "raw", "readwrite": 1}],
        "nics": [{"devid": 0, "mac": "00:16:3e:00:00:50", "bridge": "xenbr0", "script": "vif-bridge"}]
    })
}

const SCRIPT: &str = "/var/lib/longhaul/scripts/vif-bridge";

fn rules() -> Rules {
    Rules {
        name: "u1".into(),
        kernel: Some("/boot/ours".into()),
        ramdisk: None,
        disks: BTreeMap::from([("xvda".into(), "/var/lib/longhaul/images/u1/xvda.raw".into())]),
        bridges: BTreeMap::from([("xenbr0".into(), "br-vms".into())]),
        script: SCRIPT.into(),
    }
}

fn adapted(change: impl FnOnce(&mut Value)) -> Result<Value, String> {
    let mut sent = sent();
    change(&mut sent);
    rules().adapt(&sent.to_string()).map(|text| serde_json::from_str(&text).unwrap())
}

#[test]
fn paths_and_bridges_become_those_of_the_host() {
    let adapted = adapted(|_| {}).unwrap();
    let mut expected = sent();
    expected["b_info"]["kernel"] = json!("/boot/ours");
    expected["b_info"].as_object_mut().unwrap().remove("ramdisk");
    expected["disks"][0]["pdev_path"] = json!("/var/lib/longhaul/images/u1/xvda.raw");
    expected["nics"][0]["bridge"] = json!("br-vms");
    expected["nics"][0]["script"] = json!(SCRIPT);
    assert_eq!(adapted, expected);
    // One that came to the other host in the same way.
    let again = |sent: &mut Value| sent["nics"][0]["script"] = json!("/srv/longhaul/scripts/vif-bridge");
    assert_eq!(self::adapted(again).unwrap(), expected);
}

#[test]
fn what_a_peer_must_not_decide_is_refused() {
    let refused = |change: fn(&mut Value)| adapted(change).unwrap_err();
    assert!(refused(|sent| sent["b_info"]["device_model"] = json!("/tmp/evil")).contains("device_model"));
    assert!(refused(|sent| sent["b_info"]["bootloader"] = json!("/tmp/evil")).contains("bootloader"));
    assert!(refused(|sent| sent["disks"][0]["script"] = json!("evil")).contains("script"));
    assert!(refused(|sent| sent["nics"][0]["script"] = json!("/tmp/evil")).contains("/tmp/evil"));
    assert!(refused(|sent| sent["nics"][0] = json!(7)).contains('7'));
    assert!(refused(|sent| sent["disks"][0]["vdev"] = json!("xvdb")).contains("xvdb"));
    assert!(refused(|sent| sent["disks"] = json!([])).contains("1 disks"));
    assert!(refused(|sent| sent["c_info"]["name"] = json!("other")).contains("another name"));
    assert!(rules().adapt("no JSON").is_err());
}

/// Fields of libxl_types.idl, and some that no libxl has yet: whatever is not on the list of what may be taken.
#[test]
fn every_field_that_is_not_known_is_refused_by_its_name() {
    let fields: [(&str, &str); 41] = [
        ("/b_info", "extra"),
        ("/b_info", "extra_pv"),
        ("/b_info", "extra_hvm"),
        ("/b_info", "device_model"),
        ("/b_info", "device_model_user"),
        ("/b_info", "device_model_stubdomain"),
        ("/b_info", "stubdomain_kernel"),
        ("/b_info", "stubdomain_ramdisk"),
        ("/b_info", "stubdomain_cmdline"),
        ("/b_info", "ioports"),
        ("/b_info", "irqs"),
        ("/b_info", "iomem"),
        ("/b_info", "bootloader"),
        ("/b_info", "bootloader_args"),
        ("/b_info", "device_tree"),
        ("/b_info", "exec_ssid_label"),
        ("/b_info", "of_a_later_libxl"),
        ("/b_info/type.pvh", "pvshim_path"),
        ("/b_info/type.pvh", "pvshim_cmdline"),
        ("/b_info/type.hvm", "serial"),
        ("/b_info/type.hvm", "serial_list"),
        ("/b_info/type.hvm", "firmware"),
        ("/b_info/type.hvm", "system_firmware"),
        ("/b_info/type.hvm", "smbios_firmware"),
        ("/b_info/type.hvm", "acpi_firmware"),
        ("/b_info/type.hvm", "usbdevice"),
        ("/b_info/type.hvm", "usbdevice_list"),
        ("/b_info/type.hvm", "soundhw"),
        ("/b_info/type.hvm", "gfx_passthru"),
        ("/b_info/type.pv", "bootloader"),
        ("/b_info/type.pv", "kernel"),
        ("/c_info", "xsdata"),
        ("/c_info", "pool_name"),
        ("/c_info", "driver_domain"),
        ("", "pcidevs"),
        ("", "channels"),
        ("", "p9s"),
        ("/disks/0", "backend_domname"),
        ("/disks/0", "script"),
        ("/nics/0", "backend_domid"),
        ("/nics/0", "ifname"),
    ];
    for (place, field) in fields {
        for value in
            [json!("/tmp/evil"), json!(["file:/tmp/evil"]), json!([{"start": 1}]), json!("True"), json!(7)]
        {
            let result = adapted(|sent| {
                for kind in ["type.hvm", "type.pv"] {
                    sent["b_info"].as_object_mut().unwrap().entry(kind).or_insert(json!({}));
                }
                sent.pointer_mut(place).unwrap()[field] = value.clone();
            });
            let error = result.expect_err(field);
            assert!(error.contains(field), "{field}: {error}");
        }
        // What it would be if it were not there is no reason.
        for value in [json!(""), json!([]), json!(null), json!("False"), json!(0)] {
            let adapted = adapted(|sent| {
                for kind in ["type.hvm", "type.pv"] {
                    sent["b_info"].as_object_mut().unwrap().entry(kind).or_insert(json!({}));
                }
                sent.pointer_mut(place).unwrap()[field] = value.clone();
            });
            assert!(adapted.unwrap().pointer(&format!("{place}/{field}")).is_none(), "{field}");
        }
    }
    // A known name with something else in it than it has.
    assert!(adapted(|sent| sent["b_info"]["cmdline"] = json!({"a": "b"})).unwrap_err().contains("cmdline"));
    assert!(adapted(|sent| sent["b_info"]["cmdline"] = json!("a\nb")).unwrap_err().contains("cmdline"));
}

#[test]
fn a_running_domain_is_described_as_it_is() {
    let vm = VmName::new("u1").unwrap();
    let list = json!([{"domid": 3, "config": sent()}]).to_string();
    let Found { definition, obstacle } = found(&vm, &list).unwrap();
    assert_eq!(obstacle, None);
    assert_eq!((definition.memory_mib, definition.vcpus), (96, 1));
    let disk = |format, path: &str| DiskDefinition { name: "xvda".into(), path: path.into(), format };
    assert_eq!(definition.disks, [disk(DiskFormat::Raw, "/srv/u1.raw")]);
    let xen = definition.xen.clone().unwrap();
    assert_eq!(xen.nics, [NicDefinition { mac: "00:16:3e:00:00:50".into(), bridge: "xenbr0".into() }]);
    let text = for_create(&definition, &xen, &rules()).unwrap();
    assert!(
        text.contains("disk = [ \"format=raw,vdev=xvda,access=rw,backendtype=qdisk,target=/srv/u1.raw\" ]")
    );
    assert!(
        text.contains(&format!("vif = [ \"mac=00:16:3e:00:00:50,bridge=br-vms,script={SCRIPT}\" ]")),
        "{text}"
    );
    assert!(text.contains("extra = \"console=hvc0\""), "{text}");
    let mut sent = sent();
    sent["disks"][0]["format"] = json!("qcow2");
    let Found { definition, obstacle } = found(&vm, &json!([{"config": sent}]).to_string()).unwrap();
    assert_eq!((definition.disks, obstacle), (vec![disk(DiskFormat::Qcow2, "/srv/u1.raw")], None));
}

#[test]
fn what_cannot_move_says_why() {
    let obstacle = |change: fn(&mut Value)| {
        let mut sent = sent();
        change(&mut sent);
        found(&VmName::new("u1").unwrap(), &json!([{"config": sent}]).to_string()).unwrap().obstacle.unwrap()
    };
    assert!(obstacle(|sent| sent["disks"][0]["backend"] = json!("phy")).contains("backendtype=qdisk"));
    assert!(obstacle(|sent| sent["disks"][0]["format"] = json!("vhd")).contains("vhd"));
    let mut sent = sent();
    sent["c_info"]["type"] = json!("pv");
    let found = found(&VmName::new("u1").unwrap(), &json!([{"config": sent}]).to_string()).unwrap();
    assert!(found.is_pv() && found.obstacle.is_none());
}
