//! Which file a guest's disk is in, whatever its path says by now, and how large the guest sees it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use migrate_driver::{DiskFile, GuestDisk, TapKind};

use crate::common::guest::{self, DISK_BYTES, Pace, check_disk};
use crate::common::{DISK, Host, SECOND, soon};

async fn disks(host: &Host) -> Vec<GuestDisk> {
    host.driver.disks(&host.def).await.unwrap()
}

#[tokio::test]
async fn a_disk_is_found_when_its_path_leads_elsewhere() {
    let mut host = Host::with_two_disks().await;
    let [first, second] = [0, 1].map(|index| host.def.disks[index].path.clone());
    let found = disks(&host).await;
    assert_eq!(found.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), [DISK, SECOND]);
    for (disk, path) in found.iter().zip([&first, &second]) {
        assert_eq!((&disk.path, disk.size_bytes, disk.is_replaced), (path, DISK_BYTES, false));
        assert_eq!(disk.file, DiskFile::at(path).unwrap());
    }
    // A backup tool that restores by rename.
    fs::rename(&first, host.path().join("root.old")).unwrap();
    fs::copy(host.path().join("root.old"), &first).unwrap();
    fs::remove_file(&second).unwrap();
    for restarted in [false, true] {
        if restarted {
            host.restart_daemon();
        }
        let now = disks(&host).await;
        assert!(now.iter().all(|disk| disk.is_replaced), "{now:?}");
        assert_eq!(now[0].file, found[0].file);
        assert_ne!(now[0].file, DiskFile::at(&first).unwrap());
        assert_eq!(now[0].file, DiskFile::at(&host.path().join("root.old")).unwrap());
        // The very files, the one without a name as well.
        host.driver.pause(host.vm()).await.unwrap();
        for disk in &now {
            let mut image = vec![0; DISK_BYTES as usize];
            disk.open().unwrap().read_exact_at(&mut image, 0).unwrap();
            check_disk(&image, host.heard().last());
        }
        host.driver.resume(host.vm()).await.unwrap();
        host.wait_for_writes(5).await;
    }
    // Two paths that have changed places.
    let host = Host::with_two_disks().await;
    let [first, second] = [0, 1].map(|index| host.def.disks[index].path.clone());
    let aside = host.path().join("aside");
    fs::rename(&first, &aside).unwrap();
    fs::rename(&second, &first).unwrap();
    fs::rename(&aside, &second).unwrap();
    let now = disks(&host).await;
    assert!(now[0].is_replaced && now[1].is_replaced, "{now:?}");
    assert_eq!(now[0].file, DiskFile::at(&second).unwrap());
}

/// A loop device, detached when it is dropped.
struct Loop(String);

impl Loop {
    fn new(image: &std::path::Path) -> Loop {
        let shown = Command::new("losetup").args(["-f", "--show"]).arg(image).output().unwrap();
        assert!(shown.status.success(), "{shown:?}");
        Loop(String::from_utf8(shown.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[tokio::test]
async fn a_device_that_is_grown_under_its_guest_is_copied_as_the_guest_has_it() {
    let mut host = Host::new();
    host.add_monitor();
    let image = host.image_path();
    guest::create_disk(&image, Pace::Full);
    let device = Loop::new(&image);
    host.def.disks[0].path = device.0.clone().into();
    host.driver.start(&host.def).await.unwrap();
    host.wait_for_writes(3).await;
    fs::File::options().write(true).open(&image).unwrap().set_len(DISK_BYTES + (16 << 20)).unwrap();
    assert!(Command::new("losetup").args(["-c", &device.0]).status().unwrap().success());

    let found = disks(&host).await.remove(0);
    assert_eq!((found.size_bytes, found.is_replaced), (DISK_BYTES, false));
    let overlay = |name: &str| {
        let overlay = migrate_driver::nbd::Overlay::new(found.size_bytes, host.path()).unwrap();
        let overlay = std::sync::Arc::new(overlay);
        let socket = host.path().join(name);
        let server = migrate_driver::nbd::NbdServer::start(&socket, vec![("disk".into(), overlay.clone())]);
        (overlay, server.unwrap())
    };
    let (before, server) = overlay("a.sock");
    let kind = TapKind::CopyBefore { bitmap: Some("pass".into()) };
    host.driver.tap(host.vm(), DISK, server.socket(), "disk", kind).await.unwrap();
    host.wait_for_writes(50).await;
    let mut moment = vec![0; DISK_BYTES as usize];
    before.read_over(0, &mut moment, |offset, buf| found.open()?.read_exact_at(buf, offset)).unwrap();
    check_disk(&moment, 0);
    host.driver.untap(host.vm(), DISK).await.unwrap();
    let (dirty, server) = overlay("b.sock");
    let kind = TapKind::Dirty { bitmap: "pass".into() };
    host.driver.tap(host.vm(), DISK, server.socket(), "disk", kind).await.unwrap();
    soon("finish_dirty", host.driver.finish_dirty(host.vm(), DISK)).await.unwrap();
    assert!(!dirty.take_dirty().is_empty());
    let (mirror, server) = overlay("c.sock");
    host.driver.tap(host.vm(), DISK, server.socket(), "disk", TapKind::Mirror).await.unwrap();
    host.wait_for_writes(20).await;
    host.driver.pause(host.vm()).await.unwrap();
    soon("drain", host.driver.drain(host.vm(), DISK)).await.unwrap();
    assert!(!mirror.take_dirty().is_empty());
    host.assert_no_trace(&host.monitor().await).await;
}
