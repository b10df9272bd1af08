use super::*;

const FULL: &str = r#"
name = "web-1"
memory_mib = 96
vcpus = 2
[[disks]]
name = "root"
path = "/img/root.raw"
[[disks]]
name = "data"
path = "/dev/vg/data"
[qemu]
binary = "/usr/bin/qemu-system-x86_64"
machine = "q35"
accel = "kvm"
cpu = "host"
kernel = "/k"
initrd = "/i"
append = "console=ttyS0"
cache = "none"
args = ["-netdev", "user,id=n0"]
"#;

fn parse(toml: &str) -> Result<VmDefinition, String> {
    VmDefinition::parse(toml, Path::new("/etc/vm.toml")).map_err(|error| error.to_string())
}

#[test]
fn a_full_definition_survives_the_round_trip() {
    let def = parse(FULL).unwrap();
    assert_eq!(def.vcpus, 2);
    assert_eq!(def.qemu.cache, CacheMode::None);
    assert_eq!(def.disk("data").unwrap().path, Path::new("/dev/vg/data"));
    assert_eq!(parse(&def.to_toml().unwrap()).unwrap(), def);
    let json = serde_json::to_string(&def).unwrap();
    assert_eq!(serde_json::from_str::<VmDefinition>(&json).unwrap(), def);
}

#[test]
fn defaults_fill_what_is_left_out() {
    let def = parse("name = 'a'\nmemory_mib = 16\n").unwrap();
    assert_eq!(def.vcpus, 1);
    assert_eq!(def.qemu, QemuDefinition::default());
    assert!(def.disks.is_empty());
}

#[test]
fn errors_name_the_file_and_the_field() {
    let cases = [
        ("memory_mib = 16", "missing field `name`"),
        ("name = 'a'", "missing field `memory_mib`"),
        ("name = 'A'\nmemory_mib = 16", "the VM name \"A\" is not allowed"),
        ("name = '-a'\nmemory_mib = 16", "the VM name"),
        ("name = '../x'\nmemory_mib = 16", "the VM name"),
        ("name = 'a'\nmemory_mib = 0", "memory_mib = 0"),
        ("name = 'a'\nmemory_mib = 16\nvcpus = 0", "vcpus = 0"),
        ("name = 'a'\nmemory_mib = 16\ncolour = 1", "unknown field `colour`"),
        ("name = 'a'\nmemory_mib = 16\n[qemu]\nbios = 'x'", "unknown field `bios`"),
        ("name = 'a'\nmemory_mib = 16\n[qemu]\ninitrd = 'x'", "qemu.initrd needs qemu.kernel"),
        ("name = 'a'\nmemory_mib = 16\n[qemu]\ncpu = ''", "qemu.cpu is empty"),
        ("name = 'a'\nmemory_mib = 16\n[qemu]\ncache = 'unsafe'", "unknown variant"),
        ("name = 'a'\nmemory_mib = 16\n[qemu]\nargs = ['--incoming', 'x']", "qemu.args"),
        ("name = 'a'\nmemory_mib = 16\n[[disks]]\nname = '0'\npath = 'x'", "the disk name \"0\""),
        ("name = 'a'\nmemory_mib = 16\n[[disks]]\nname = 'longhaul-x'\npath = 'x'", "the disk name"),
        ("name = 'a'\nmemory_mib = 16\n[[disks]]\nname = 'd,x=y'\npath = 'x'", "the disk name"),
        ("name = 'a'\nmemory_mib = 16\n[[disks]]\nname = 'd'\npath = ''", "empty path"),
        (
            "name = 'a'\nmemory_mib = 16\n[[disks]]\nname = 'd'\npath = 'x'\n[[disks]]\nname = 'd'\npath = 'y'",
            "used twice",
        ),
        (
            "name = 'a'\nmemory_mib = 16\n[[disks]]\nname = 'd'\npath = 'x'\n[[disks]]\nname = 'e'\npath = 'x'",
            "used twice",
        ),
    ];
    for (toml, expected) in cases {
        let message = parse(toml).unwrap_err();
        assert!(message.contains(expected), "{toml:?} gave {message:?}");
        assert!(message.contains("/etc/vm.toml"), "{message}");
    }
}

#[test]
fn a_huge_text_is_refused_before_it_is_parsed() {
    let huge = "#".repeat(MAX_DEFINITION_BYTES + 1);
    assert!(parse(&huge).unwrap_err().contains("at most"));
}

#[test]
fn a_definition_from_the_wire_is_checked_too() {
    let mut json = serde_json::to_value(parse(FULL).unwrap()).unwrap();
    json["disks"][0]["name"] = "longhaul-root".into();
    assert!(serde_json::from_value::<VmDefinition>(json).is_err());
}

#[test]
fn a_network_is_checked_before_it_gets_near_a_command_line() {
    let with = |interface: &str, mac: &str, prefix: &str| {
        let toml = format!(
            "name = 'web'\nmemory_mib = 64\n[network]\ninterface = '{interface}'\nmac = '{mac}'\nprefix = '{prefix}'\n"
        );
        VmDefinition::parse(&toml, Path::new("web.toml"))
    };
    let good = with("tap-web", "52:54:00:12:34:56", "2001:db8:f:1::/64").unwrap();
    let network = good.network.as_ref().unwrap();
    assert_eq!(network.prefix(), Some(("2001:db8:f:1::".parse().unwrap(), 64)));
    assert_eq!(VmDefinition::parse(&good.to_toml().unwrap(), Path::new("web.toml")).unwrap(), good);
    let bad = [
        ("tap,script=x", "52:54:00:12:34:56", "2001:db8::/64"),
        ("", "52:54:00:12:34:56", "2001:db8::/64"),
        ("a-name-of-16-byt", "52:54:00:12:34:56", "2001:db8::/64"),
        ("tap0", "52:54:00:12:34", "2001:db8::/64"),
        ("tap0", "53:54:00:12:34:56", "2001:db8::/64"),
        ("tap0", "5:254:00:12:34:56", "2001:db8::/64"),
        ("tap0", "52:54:00:12:34:56", "2001:db8::1/64"),
        ("tap0", "52:54:00:12:34:56", "2001:db8::/129"),
        ("tap0", "52:54:00:12:34:56", "10.0.0.0/64"),
        ("tap0", "52:54:00:12:34:56", "2001::/16"),
    ];
    for (interface, mac, prefix) in bad {
        let message = with(interface, mac, prefix).unwrap_err().to_string();
        assert!(message.contains("network."), "{message}");
    }
}

#[test]
fn an_ipv4_address_is_that_of_one_host() {
    let with = |ipv4: &str| {
        let network = "interface = 'tap0'\nmac = '52:54:00:12:34:56'\nprefix = '2001:db8:f:1::/64'";
        let toml = format!("name = 'web'\nmemory_mib = 64\n[network]\n{network}\nipv4 = '{ipv4}'\n");
        VmDefinition::parse(&toml, Path::new("web.toml"))
    };
    for (text, address, len) in
        [("198.51.100.10/24", [198, 51, 100, 10], 24), ("10.0.0.255/8", [10, 0, 0, 255], 8)]
    {
        let good = with(text).unwrap();
        assert_eq!(good.network.as_ref().unwrap().ipv4(), Some((address.into(), len)));
        assert_eq!(VmDefinition::parse(&good.to_toml().unwrap(), Path::new("web.toml")).unwrap(), good);
    }
    assert!(with("198.51.100.0/32").is_ok() && with("198.51.100.1/31").is_ok());
    for bad in [
        "",
        "198.51.100.10",
        "198.51.100.10/33",
        "198.51.100.10/7",
        "198.51.100.0/24",
        "198.51.100.255/24",
        "127.0.0.1/8",
        "224.0.0.5/24",
        "0.0.0.1/8",
        "240.0.0.1/8",
        "255.255.255.255/32",
        "2001:db8::1/24",
    ] {
        let message = with(bad).unwrap_err().to_string();
        assert!(message.contains("network.ipv4"), "{message}");
    }
}
