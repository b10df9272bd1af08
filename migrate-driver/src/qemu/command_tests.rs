//! QEMU's command line, word for word.

use super::*;

fn definition(disk: &str) -> VmDefinition {
    let text = format!(
        "name = 'web'\nmemory_mib = 96\nvcpus = 2\n[[disks]]\nname = 'root'\npath = '{disk}'\n\
         [qemu]\nkernel = '/k'\nappend = 'console=ttyS0 quiet'\nargs = ['-device', 'virtio-net-pci,netdev=n0']\n"
    );
    VmDefinition::parse(&text, Path::new("t")).unwrap()
}

fn line(def: &VmDefinition, dir: &str, purpose: Purpose<'_>) -> Vec<String> {
    let paths = VmPaths::within(dir.into());
    let is_device = |path: &Path| path.starts_with("/dev");
    arguments(def, &paths, purpose, is_device).into_iter().map(|arg| arg.into_string().unwrap()).collect()
}

#[test]
fn the_whole_line() {
    let expected = "-name web -machine q35 -accel tcg,thread=multi -cpu qemu64 -smp 2 -m 98312k -nodefaults \
        -no-user-config -display none -chardev file,id=serial0,path=/run/web/serial.log -serial chardev:serial0 \
        -chardev socket,id=qmp0,path=/run/web/qmp.sock,server=on,wait=off -mon chardev=qmp0,mode=control \
        -blockdev driver=file,node-name=root-file,filename=/img/a.raw,cache.direct=off,cache.no-flush=off,discard=unmap \
        -blockdev driver=raw,node-name=root,file=root-file,cache.direct=off,cache.no-flush=off,discard=unmap \
        -device virtio-blk-pci,drive=root,id=root-dev,bootindex=1 -kernel /k -append";
    let got = line(&definition("/img/a.raw"), "/run/web", Purpose::Boot);
    let append = got.iter().position(|arg| arg == "-append").unwrap();
    assert_eq!(got[..=append].join(" "), expected);
    assert_eq!(got[append + 1], "console=ttyS0 quiet");
    assert_eq!(
        got[append + 2..].join(" "),
        "-device virtio-net-pci,netdev=n0 -d strace -D /run/web/qemu.log -msg timestamp=on -daemonize \
         -pidfile /run/web/pid"
    );
}

#[test]
fn both_ends_differ_in_paths_and_incoming_only() {
    let source = line(&definition("/img/a.raw"), "/run/a/web", Purpose::Boot);
    let target = line(&definition("/other/b.raw"), "/run/b/web", Purpose::Incoming);
    let target: Vec<String> = target
        .iter()
        .map(|arg| arg.replace("/run/b/", "/run/a/").replace("/other/b.raw", "/img/a.raw"))
        .collect();
    let without: Vec<&String> =
        target.iter().filter(|arg| !["-incoming", "defer", "-S"].contains(&arg.as_str())).collect();
    assert_eq!(without, source.iter().collect::<Vec<_>>());
    assert_eq!(target.len(), source.len() + 3);
}

#[test]
fn devices_and_commas_in_paths() {
    let got = line(&definition("/dev/vg/a"), "/run/web", Purpose::Boot).join(" ");
    assert!(got.contains("driver=host_device,node-name=root-file,filename=/dev/vg/a,"), "{got}");
    let got = line(&definition("/img/a,b=c.raw"), "/run,x/web", Purpose::Boot).join(" ");
    assert!(got.contains("filename=/img/a,,b=c.raw,cache"), "{got}");
    assert!(got.contains("path=/run,,x/web/qmp.sock,server"), "{got}");
    assert!(got.contains("-pidfile /run,x/web/pid"), "{got}");
}

#[test]
fn cache_none_is_direct() {
    let mut def = definition("/img/a.raw");
    def.qemu.cache = CacheMode::None;
    let got = line(&def, "/run/web", Purpose::Boot).join(" ");
    assert_eq!(got.matches("cache.direct=on").count(), 2);
    assert!(!got.contains("cache.direct=off"));
}

#[test]
fn the_network_that_moves_with_the_machine() {
    let mut definition = definition("/img/a.raw");
    definition.network = Some(NetworkDefinition {
        interface: "tap-web".into(),
        mac: "52:54:00:12:34:56".into(),
        prefix: "2001:db8:f:1::/64".into(),
        ipv4: None,
    });
    let got = line(&definition, "/run/web", Purpose::Incoming).join(" ");
    let expected = "-netdev tap,id=home,ifname=tap-web,script=no,downscript=no \
                    -device virtio-net-pci,netdev=home,mac=52:54:00:12:34:56";
    assert!(got.contains(expected), "{got}");
}

#[test]
fn a_probe_takes_nothing_that_is_in_use() {
    let mut def = definition("/dev/vg/a");
    def.qemu.args = [
        "-qmp",
        "unix:/run/other,server=on",
        "--vnc",
        ":1",
        "-chardev",
        "socket,id=c1,path=/run/c1,server=on",
        "-chardev",
        "socket,id=fs,path=/run/virtiofsd",
        "-mon",
        "chardev=c1,mode=control",
        "-mem-prealloc",
        "-object",
        "memory-backend-ram,id=m,size=96M,prealloc=on",
        "-drive",
        "file=/iso/x.iso,if=none,id=cd",
    ]
    .map(String::from)
    .into();
    let got = line(&def, "/run/.probe", Purpose::Probe(&[4096])).join(" ");
    for gone in [
        "/dev/vg/a",
        "/run/other",
        ":1 ",
        "/run/c1",
        "chardev=c1",
        "prealloc=on",
        "-mem-prealloc",
        "-daemonize",
    ] {
        assert!(!got.contains(gone), "{gone} in {got}");
    }
    for kept in [
        "null-co,node-name=root-file,size=4096",
        "-chardev null,id=c1",
        "path=/run/virtiofsd",
        "/iso/x.iso",
        "drive=root",
        "-incoming",
    ] {
        assert!(got.contains(kept), "{kept} is not in {got}");
    }
}
