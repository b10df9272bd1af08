use super::apt::{install_arguments, parse_sources};
use super::cpio::Archive;
use super::initramfs::depends;

#[test]
fn an_archive_has_the_kernels_layout() {
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.character_device("dev/console", 5, 1);
    archive.program("init", b"abcde");
    archive.file("f", b"");
    let bytes = archive.finish();
    assert_eq!(bytes.len() % 4, 0);
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!(text.matches("070701").count(), 5);
    let init = text.find("init\0").unwrap();
    let header = &text[init - 110..init];
    assert_eq!(&header[14..22], "000081ed", "mode");
    assert_eq!(&header[54..62], "00000005", "size");
    assert_eq!(&header[94..102], "00000005", "name with its NUL");
    // Content starts at the next multiple of four, and so does the next header.
    let content = (init + 5).next_multiple_of(4);
    assert_eq!(&text[content..content + 5], "abcde");
    assert_eq!(&text[content + 8..content + 14], "070701");
    assert!(text.ends_with("TRAILER!!!\0\0\0\0") || text.contains("TRAILER!!!\0"));
}

#[test]
fn dependencies_come_out_of_modinfo() {
    let module = b"\x7fELF..\0license=GPL\0depends=virtio_ring,virtio,net-failover\0retpoline=Y\0";
    assert_eq!(depends(module), ["virtio_ring", "virtio", "net_failover"]);
    assert!(depends(b"\0depends=\0name=x\0").is_empty());
    assert!(depends(b"nothing").is_empty());
}

#[test]
fn a_newer_qemu_utils_is_brought_down_with_the_system_emulator() {
    let candidate = |_: &str| Some("1:7.2+u15".to_owned());
    let newer = |_: &str| Some("1:7.2+u18".to_owned());
    let same = |_: &str| Some("1:7.2+u15".to_owned());
    let none = |_: &str| None;
    let arguments = |missing: &[&str], installed: &dyn Fn(&str) -> Option<String>| {
        install_arguments(missing, installed, &candidate).join(" ")
    };
    assert!(arguments(&["qemu-system-x86"], &newer).ends_with("--allow-downgrades qemu-utils=1:7.2+u15"));
    assert!(!arguments(&["qemu-system-x86"], &same).contains("downgrade"));
    assert!(!arguments(&["qemu-system-x86"], &none).contains("downgrade"));
    assert!(!arguments(&["lz4"], &newer).contains("downgrade"));
}

#[test]
fn the_hosts_own_mirrors_are_used() {
    let targets = "http://m/debian/ bookworm main Debian\nhttp://m/debian/ bookworm-updates main Debian\n\
                   http://m/security/ bookworm-security main Debian\nhttps://x/ nodistro main Node\n";
    let (suite, lines) = parse_sources(targets).unwrap();
    assert_eq!(suite, "bookworm");
    assert_eq!(
        lines,
        ["deb http://m/debian/ bookworm main", "deb http://m/security/ bookworm-security main"]
    );
    assert_eq!(parse_sources("https://x/ nodistro main Node\n"), None);
}
