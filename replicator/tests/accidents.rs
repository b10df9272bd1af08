//! Accidents of operators, on real daemons without guests: broken files, records that are old, owners that are gone, names
//! that two use, paths that hang, a log that cannot be written. Hand-offs that have happened are written as journals.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::fs;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use longhaul_proto::handoff::Record;
use longhaul_proto::{Epoch, JobId, journal};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// A platform with its daemon.
struct Site {
    dir: TempDir,
    port: u16,
    daemon: RefCell<Option<Child>>,
}

impl Site {
    /// Configured, not started.
    fn new(name: &str) -> Site {
        let dir = tempfile::Builder::new().prefix("lh-").tempdir_in("/tmp").unwrap();
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!("name = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\n");
        fs::write(dir.path().join("longhaul.toml"), config).unwrap();
        for below in ["journal", "vms", "identity"] {
            fs::create_dir(dir.path().join(below)).unwrap();
        }
        Site { dir, port, daemon: RefCell::new(None) }
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn start(&self) {
        let log = fs::File::options().create(true).append(true).open(self.at("log")).unwrap();
        self.start_with(log.into());
    }

    fn start_with(&self, log: Stdio) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
        self.run(command.arg("--root").arg(self.root()).arg("daemon"), log);
    }

    /// Starts the daemon with this command.
    fn run(&self, command: &mut Command, log: Stdio) {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let begun = Instant::now();
        while UnixStream::connect(self.at("run/longhaul.sock")).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the daemon does not come up");
            if let Some(status) = child.try_wait().unwrap() {
                panic!(
                    "the daemon ended with {status}: {}",
                    fs::read_to_string(self.at("log")).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        *self.daemon.borrow_mut() = Some(child);
    }

    /// As SIGTERM ends it.
    fn stop(&self) {
        let mut child = self.daemon.borrow_mut().take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "SIGTERM does not end the daemon");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn restart(&self) {
        self.stop();
        self.start();
    }

    fn cli(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
        command.arg("--root").arg(self.root()).args(line.split_whitespace()).output().unwrap()
    }

    /// What a command that succeeds says, as JSON.
    fn does(&self, line: &str) -> Value {
        let output = self.cli(&format!("--json {line}"));
        assert!(output.status.success(), "{line}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a command that is refused says.
    fn refuses(&self, line: &str) -> String {
        let output = self.cli(line);
        assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// What the control API answers: the status, and the body.
    fn asks(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut socket = UnixStream::connect(self.at("run/longhaul.sock")).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n"
        );
        // In one piece: an answer that does not depend on the body may come before all of it is written.
        let request = format!("{head}content-type: application/json\r\n\r\n{body}");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }

    /// The status and the kind of an error.
    fn kind(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let (status, answer) = self.asks(method, path, &body.to_string());
        (status, answer["kind"].as_str().unwrap_or_default().to_owned())
    }

    /// A VM's line in `vm list`.
    fn vm(&self, name: &str) -> Value {
        let listed = self.does("vm list");
        listed.as_array().unwrap().iter().find(|vm| vm["name"] == name).cloned().unwrap_or_default()
    }

    fn define(&self, name: &str) -> PathBuf {
        let file = self.at(&format!("{name}.definition"));
        fs::write(&file, self.definition(name)).unwrap();
        self.does(&format!("vm define {}", file.display()));
        file
    }

    fn definition(&self, name: &str) -> String {
        let disk = self.at("missing.raw");
        format!(
            "name = \"{name}\"\nmemory_mib = 64\n[[disks]]\nname = \"root\"\npath = \"{}\"\n",
            disk.display()
        )
    }

    /// A journal, as a daemon that has ended left it.
    fn journal(&self, job: u8, records: &[Record]) -> PathBuf {
        let mut bytes = journal::HEADER.to_vec();
        records.iter().for_each(|record| bytes.extend(journal::encode(record).unwrap()));
        let path = self.at(&format!("journal/{}.journal", JobId([job; 16])));
        fs::write(&path, bytes).unwrap();
        path
    }

    fn trust(&self, name: &str, other: &Site) {
        let identity = other.does("identity");
        let fingerprint = identity["fingerprint"].as_str().unwrap();
        self.does(&format!("peer add {name} 127.0.0.1:{} {fingerprint}", other.port));
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.borrow_mut().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Two platforms that run and trust each other, after what `before` leaves on them.
fn pair(before: impl FnOnce(&Site, &Site)) -> (Site, Site) {
    let (a, b) = (Site::new("a"), Site::new("b"));
    before(&a, &b);
    a.start();
    b.start();
    a.trust("b", &b);
    b.trust("a", &a);
    (a, b)
}

/// The records of a VM that has left for b, at this epoch.
fn left(vm: &str, epoch: u64) -> Vec<Record> {
    let started = Record::Started { vm: vm.into(), peer: "b".into(), epoch: Epoch(epoch) };
    vec![started, Record::Released { epoch: Epoch(epoch + 1) }, Record::Retired]
}

/// The records of a VM that has come from a.
fn arrived(vm: &str, epoch: u64) -> Vec<Record> {
    let accepted =
        Record::Accepted { vm: vm.into(), peer: "a".into(), epoch: Epoch(epoch), plan: Vec::new() };
    let owned = Record::Owned { epoch: Epoch(epoch + 1) };
    vec![accepted, Record::Ready, owned, Record::Resumed, Record::Rebound]
}

/// b owns the VM `web` since it left a.
fn moved_to_b(a: &Site, b: &Site) {
    a.journal(1, &left("web", 1));
    b.journal(1, &arrived("web", 1));
    for site in [a, b] {
        fs::write(site.at("vms/web.toml"), site.definition("web")).unwrap();
    }
}

fn has(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

#[test]
fn broken_files_are_left_out_and_told_and_everything_else_works() {
    let (a, b) = pair(|_, _| ());
    a.define("web");
    a.define("db");
    a.stop();
    fs::write(a.at("vms/db.toml"), "").unwrap();
    fs::write(a.at("vms/x.toml"), "").unwrap();
    fs::create_dir(a.at("vms/old.toml")).unwrap();
    fs::create_dir(a.at("vms/lost+found")).unwrap();
    fs::create_dir(a.at("journal/lost+found")).unwrap();
    fs::copy(a.at("vms/web.toml"), a.at("vms/web (copy).toml")).unwrap();
    fs::write(a.at("journal/00112233445566778899aabbccddeeff.journal"), [0; 4096]).unwrap();
    fs::write(a.at("journal/00112233445566778899aabbccddeefe.journal"), "").unwrap();
    fs::write(a.at("journal/00112233445566778899aabbccddeeff.json"), "").unwrap();
    fs::write(a.at("identity/peers.toml"), "[b]\naddress = 7\n").unwrap();
    a.start();
    assert_eq!(a.vm("web")["status"], "Stopped");
    assert_eq!(a.vm("web")["owner"], "here");
    for name in ["db", "x", "old", "web (copy)"] {
        let vm = a.vm(name);
        assert_eq!(vm["status"], "Damaged", "{name}");
        has(vm["error"].as_str().unwrap(), &[&format!("{name}.toml")]);
    }
    let log = fs::read_to_string(a.at("log")).unwrap();
    has(&log, &["db.toml", "old.toml", "peer 'b' is left out"]);
    let listed = &a.does("peer list")[0];
    assert_eq!(
        (&listed["name"], &listed["fingerprint"], &listed["address"]),
        (&json!("b"), &json!(null), &json!(null))
    );
    assert!(listed["error"].is_string(), "{listed}");
    has(&a.refuses("vm start db"), &["db.toml", "vm define"]);
    a.define("db");
    assert_eq!(a.vm("db")["status"], "Stopped");
    a.does("vm remove x");
    assert_eq!(a.vm("x"), Value::Null);
    a.trust("b", &b);
    assert!(a.does("peer ask b")["calls_itself"] == "b");
    a.restart();
    assert_eq!(a.does("peer list").as_array().unwrap().len(), 1);
}

#[test]
fn a_vm_is_not_started_where_it_was_restored_from_a_backup() {
    let (a, b) = pair(|a, b| {
        moved_to_b(a, b);
        fs::remove_file(a.at(&format!("journal/{}.journal", JobId([1; 16])))).unwrap();
    });
    assert_eq!((&a.vm("web")["owner"], &b.vm("web")["owner"]), (&json!("here"), &json!("here")));
    for line in ["vm start web", "replicate web --to b", "migrate web --to b"] {
        has(&a.refuses(line), &["'b' owns it at epoch 2", "longhaul resolve web --give-up"]);
    }
    has(&a.refuses("resolve web --keep"), &["'b' answers that it owns it", "longhaul migrate web"]);
    has(&b.refuses("resolve web --give-up"), &["no peer answers that it owns it"]);
    assert_eq!(a.does("resolve web --give-up")["owner"], "b");
    for start in 0..2 {
        assert_eq!((&a.vm("web")["owner"], &a.vm("web")["epoch"]), (&json!("b"), &json!(2)), "start {start}");
        has(&a.refuses("vm start web"), &["belongs to peer 'b'"]);
        a.restart();
    }
    // Its own VMs start, also when nobody answers; only the image is missing here.
    b.stop();
    a.define("db");
    let begun = Instant::now();
    has(&a.refuses("vm start db"), &["missing.raw"]);
    assert!(begun.elapsed() < PATIENCE);
    has(&fs::read_to_string(a.at("log")).unwrap(), &["VM 'db'", "do not answer"]);
}

#[test]
fn a_vm_whose_owner_is_gone_is_taken_back_and_a_returning_owner_loses() {
    let (a, b) = pair(moved_to_b);
    has(&a.refuses("vm start web"), &["belongs to peer 'b'", "longhaul resolve web --keep"]);
    has(&a.refuses("resolve web --keep"), &["'b' answers that it owns it"]);
    b.stop();
    assert_eq!(a.does("resolve web --keep")["epoch"], 4);
    has(&a.refuses("resolve web --keep"), &["nothing to resolve"]);
    a.define("web");
    has(&a.refuses("vm start web"), &["missing.raw"]);
    a.restart();
    assert_eq!((&a.vm("web")["owner"], &a.vm("web")["epoch"]), (&json!("here"), &json!(4)));
    b.start();
    has(&b.refuses("vm start web"), &["'a' owns it at epoch 4", "--give-up"]);
    assert_eq!(b.does("resolve web --give-up")["owner"], "a");
    // A peer that was removed is not asked.
    b.does("peer remove a");
    assert_eq!(b.does("resolve web --keep")["epoch"], 6);
}

#[test]
fn a_vm_released_to_a_platform_that_burned_down_at_that_moment_is_taken_back() {
    let (a, b) = pair(|_, _| ());
    b.stop();
    a.stop();
    fs::write(a.at("vms/web.toml"), a.definition("web")).unwrap();
    a.journal(1, &left("web", 1)[..2]);
    a.start();
    assert_eq!(a.cli("vm start web").status.code(), Some(4), "its job still tells b");
    assert_eq!(a.does("resolve web --keep")["epoch"], 4);
    a.define("web");
    has(&a.refuses("vm start web"), &["missing.raw"]);
    a.restart();
    assert_eq!((&a.vm("web")["owner"], &a.vm("web")["epoch"]), (&json!("here"), &json!(4)));
}

#[test]
fn a_removed_vm_frees_its_name_and_its_successor_is_newer() {
    let (a, b) = pair(moved_to_b);
    let file = a.at("web.definition");
    fs::write(&file, a.definition("web")).unwrap();
    let define = format!("vm define {}", file.display());
    has(&a.refuses(&define), &["belongs to peer 'b'"]);
    fs::create_dir_all(b.at("images/web")).unwrap();
    fs::write(b.at("images/web/root.raw"), [7; 4096]).unwrap();
    fs::write(b.at("elsewhere.raw"), [7; 4096]).unwrap();
    let (own, other) = (b.at("images/web/root.raw"), b.at("elsewhere.raw"));
    let disks = format!(
        "name = \"web\"\nmemory_mib = 64\n[[disks]]\nname = \"root\"\npath = \"{}\"\n[[disks]]\nname = \"data\"\npath = \"{}\"\n",
        own.display(),
        other.display()
    );
    fs::write(b.at("new.definition"), disks).unwrap();
    b.does(&format!("vm define {}", b.at("new.definition").display()));
    let removed = b.does("vm remove web --disks");
    assert_eq!((&removed["deleted"], &removed["kept"]), (&json!([own]), &json!([other])));
    assert!(!own.exists() && other.exists());
    assert_eq!(b.vm("web"), Value::Null);
    assert_eq!(b.kind("DELETE", "/v1/vms/web", &Value::Null), (404, "not_found".into()));
    a.does(&define);
    assert_eq!((&a.vm("web")["owner"], &a.vm("web")["epoch"]), (&json!("here"), &json!(3)));
    b.restart();
    has(&a.refuses("vm start web"), &["missing.raw"]);
    // Where it is not defined anew, an older offer stays refused: its epoch is remembered.
    assert_eq!(b.does("vm list"), json!([]));
    b.define("web");
    assert_eq!(b.vm("web")["epoch"], 3);
}

#[test]
fn a_vm_in_doubt_starts_when_every_peer_answers_or_a_person_decides() {
    let (a, b) = pair(|a, _| {
        fs::write(a.at("vms/web.toml"), a.definition("web")).unwrap();
        fs::write(a.at("vms/db.toml"), a.definition("db")).unwrap();
        fs::write(a.at("journal/00112233445566778899aabbccddeeff.journal"), "#!/bin/sh\n").unwrap();
    });
    has(a.vm("web")["owner"].as_str().unwrap(), &["in doubt", "00112233445566778899aabbccddeeff.journal"]);
    b.stop();
    let message = a.refuses("vm start web");
    has(
        &message,
        &["00112233445566778899aabbccddeeff.journal", "do not answer: b", "longhaul resolve web --keep"],
    );
    assert_eq!(a.does("resolve db --keep")["epoch"], 3);
    b.start();
    has(&a.refuses("vm start web"), &["missing.raw"]);
    a.restart();
    for vm in ["web", "db"] {
        assert_eq!((&a.vm(vm)["owner"], &a.vm(vm)["epoch"]), (&json!("here"), &json!(3)), "{vm}");
    }
}

#[test]
fn a_vm_defined_beside_a_damaged_journal_is_in_no_doubt_whatever_its_time() {
    let (a, _b) = pair(|a, _| {
        fs::write(a.at("vms/old.toml"), a.definition("old")).unwrap();
        fs::write(a.at("journal/00112233445566778899aabbccddeeff.journal"), "#!/bin/sh\n").unwrap();
    });
    let file = a.at("journal/00112233445566778899aabbccddeeff.journal");
    a.define("new");
    assert_eq!(a.does("resolve old --keep")["epoch"], 3);
    // A clock that stepped back, or a copy that was put in its place.
    let time = std::time::SystemTime::now() + Duration::from_secs(86_400);
    fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    a.restart();
    for (vm, epoch) in [("new", 1), ("old", 3)] {
        assert_eq!((&a.vm(vm)["owner"], &a.vm(vm)["epoch"]), (&json!("here"), &json!(epoch)), "{vm}");
    }
    // The other way out.
    a.stop();
    fs::write(a.at("vms/other.toml"), a.definition("other")).unwrap();
    a.start();
    let advice = format!("move {} out of journal/", file.display());
    assert_eq!(
        a.kind("POST", "/v1/vms/other/replicate", &json!({ "to": "nobody" })),
        (404, "not_found".into())
    );
    has(&a.refuses("vm remove other"), &[&advice, "longhaul resolve other --keep"]);
    fs::rename(&file, a.at("aside")).unwrap();
    a.does("vm remove other");
}

#[test]
fn a_definition_that_cannot_be_written_changes_no_owner() {
    let (a, b) = pair(moved_to_b);
    b.does("vm remove web");
    a.does("vm remove web");
    fs::write(a.at("web.definition"), a.definition("web")).unwrap();
    let define = format!("vm define {}", a.at("web.definition").display());
    fs::create_dir_all(a.at("vms/web.toml/in the way")).unwrap();
    has(&a.refuses(&define), &["web.toml"]);
    fs::remove_dir_all(a.at("vms/web.toml")).unwrap();
    b.stop();
    has(&a.refuses(&define), &["belongs to peer 'b'"]);
    b.start();
    // Nor is a definition left whose owner cannot be written.
    let claims = a.at("journal/claims");
    let kept = fs::read(&claims).unwrap();
    fs::remove_file(&claims).unwrap();
    fs::create_dir_all(claims.join("in the way")).unwrap();
    has(&a.refuses(&define), &["claims file", "nothing was changed"]);
    assert!(!a.at("vms/web.toml").exists());
    fs::remove_dir_all(&claims).unwrap();
    fs::write(&claims, kept).unwrap();
    a.does(&define);
    assert_eq!((&a.vm("web")["owner"], &a.vm("web")["epoch"]), (&json!("here"), &json!(3)));
}

#[test]
fn another_vm_of_that_name_at_a_peer_keeps_ours_from_no_start_once_a_person_says_so() {
    // b's came there from somewhere else.
    let (a, b) = pair(|a, b| {
        fs::write(a.at("vms/web.toml"), a.definition("web")).unwrap();
        fs::write(b.at("vms/web.toml"), b.definition("web")).unwrap();
        b.journal(1, &arrived("web", 4));
    });
    let command = "longhaul resolve web --keep --distinct-from b";
    has(&a.refuses("vm start web"), &["'b' owns it at epoch 5", command]);
    has(&a.refuses("resolve web --keep"), &[command]);
    has(&a.refuses("resolve web --keep --distinct-from ghost"), &["ghost"]);
    assert_eq!(a.does("resolve web --keep --distinct-from b")["epoch"], 1);
    for start in 0..2 {
        has(&a.refuses("vm start web"), &["missing.raw"]);
        has(&b.refuses("vm start web"), &["missing.raw"]);
        assert_eq!((&a.vm("web")["epoch"], &b.vm("web")["epoch"]), (&json!(1), &json!(5)), "start {start}");
        a.restart();
    }
    // At a higher epoch it may be ours.
    b.stop();
    b.journal(2, &arrived("web", 6));
    b.start();
    has(&a.refuses("vm start web"), &["'b' owns it at epoch 7", command]);
}

#[test]
fn a_push_replaces_no_base_of_another_maker() {
    let (a, b) = pair(|_, _| ());
    let noise = |seed: u8| -> Vec<u8> {
        let mut hash = blake3::Hasher::new();
        let mut bytes = vec![0; 3 << 20];
        hash.update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    let images = [1, 2, 3].map(|seed| {
        let path = a.at(&format!("{seed}.raw"));
        fs::write(&path, noise(seed)).unwrap();
        path.display().to_string()
    });
    let root = |site: &Site, name: &str| {
        let bases = site.does("base list");
        bases.as_array().unwrap().iter().find(|base| base["name"] == name).unwrap()["root"].clone()
    };
    b.does(&format!("base add gold {}", images[0]));
    a.does(&format!("base add gold {}", images[1]));
    let before = root(&b, "gold");
    let used = |site: &Site| site.does("store stats");
    let stats = used(&b);
    has(&a.refuses("base push gold b"), &["cannot replace base 'gold'", "longhaul base remove gold"]);
    assert_eq!((root(&b, "gold"), used(&b)), (before.clone(), stats), "nothing was sent");
    a.does(&format!("base add gold {}", images[0]));
    a.does("base push gold b");
    assert_eq!(root(&b, "gold"), before, "the same base is no other");
    // What a pushed itself it may replace, also after a restart; the same base under b's own hand is b's.
    a.does(&format!("base add silver {}", images[1]));
    a.does("base push silver b");
    b.restart();
    a.does(&format!("base add silver {}", images[2]));
    a.does("base push silver b");
    assert_eq!(root(&a, "silver"), root(&b, "silver"));
    b.does(&format!("base add silver {}", images[0]));
    has(&a.refuses("base push silver b"), &["cannot replace base 'silver'"]);
    b.does("base remove silver");
    a.does("base push silver b");
    assert_eq!(root(&a, "silver"), root(&b, "silver"));
}

#[test]
fn a_pipe_or_a_path_that_is_no_text_is_refused_and_harms_nobody() {
    let a = Site::new("a");
    a.start();
    let pipe = a.at("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let pipe = pipe.display();
    for line in [format!("base add x {pipe}"), format!("image send {pipe} b"), format!("store import {pipe}")]
    {
        has(&a.refuses(&line), &["named pipe"]);
    }
    let asked = json!({ "name": "x", "image": a.at("pipe") });
    assert_eq!(a.kind("POST", "/v1/bases", &asked), (400, "invalid".into()));
    let latin = a.at("x").with_file_name(std::ffi::OsStr::from_bytes(b"sauvegarde-\xe9t\xe9.raw"));
    fs::write(&latin, [1; 4096]).unwrap();
    let run = |before: &[&str], after: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
        command.arg("--root").arg(a.root()).args(before).arg(&latin).args(after).output().unwrap()
    };
    for (before, after) in [
        (&["base", "add", "x"][..], &[][..]),
        (&["image", "send"], &["b:x"]),
        (&["base", "restore", "x"], &[]),
        (&["replica", "restore", "x"], &[]),
        (&["store", "export"], &[]),
        (&["store", "import"], &[]),
        (&["vm", "define"], &[]),
    ] {
        let output = run(before, after);
        assert_eq!(output.status.code(), Some(2), "{before:?}: {output:?}");
        has(&String::from_utf8_lossy(&output.stderr), &["not UTF-8"]);
    }
}

#[test]
fn output_that_cannot_be_written_ends_nothing() {
    let a = Site::new("a");
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    a.start_with(full());
    a.define("web");
    fs::write(a.at("x.raw"), [1; 4096]).unwrap();
    a.does(&format!("base add x {}", a.at("x.raw").display()));
    has(&a.refuses("vm start web"), &["missing.raw"]);
    for line in ["vm list", "example-config", "--json job list", "--help", "vm start web"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
        command.arg("--root").arg(a.root()).args(line.split_whitespace()).stdout(full()).stderr(full());
        assert!(command.status().unwrap().code().unwrap() <= 1, "{line}");
    }
    a.stop();
    // Nobody reads the log.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filled = writer.try_clone().unwrap();
    rustix::io::ioctl_fionbio(&filled, true).unwrap();
    while filled.write(&[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&filled, false).unwrap();
    drop(filled);
    a.start_with(writer.into());
    a.does(&format!("base add y {}", a.at("x.raw").display()));
    assert_eq!(a.vm("web")["status"], "Stopped");
    a.stop();
    drop(reader);
}

#[test]
fn a_hypervisor_that_does_not_answer_hides_no_other_vm() {
    let a = Site::new("a");
    a.start();
    a.define("web");
    a.define("other");
    fs::create_dir_all(a.at("run/vm/web")).unwrap();
    // A monitor that never says a word.
    let _silent = UnixListener::bind(a.at("run/vm/web/qmp.sock")).unwrap();
    let begun = Instant::now();
    assert_eq!(a.vm("other")["status"], "Stopped");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(a.vm("web")["status"], "Unresponsive");
}

#[test]
fn two_hundred_vms_are_listed_at_once() {
    let a = Site::new("a");
    for number in 0..200 {
        let name = format!("vm{number}");
        fs::write(a.at(&format!("vms/{name}.toml")), a.definition(&name)).unwrap();
        a.journal(number as u8, &left(&name, 1));
    }
    a.start();
    let took = (0..10).map(|_| {
        let begun = Instant::now();
        let mut socket = UnixStream::connect(a.at("run/longhaul.sock")).unwrap();
        socket.write_all(b"GET /v1/vms HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.matches("\"status\":\"Stopped\"").count(), 200);
        begun.elapsed()
    });
    let fastest = took.min().unwrap();
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

/// What a daemon that has come up has used: descriptors, resident KiB, milliseconds on a CPU.
fn used(site: &Site) -> [u64; 3] {
    let pid = site.daemon.borrow().as_ref().unwrap().id();
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let status = read("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.split_whitespace().next().unwrap().parse().unwrap();
    // The name, in brackets, may hold blanks; user and system time are the 12th and 13th field after it, in 10 ms.
    let stat = read("stat");
    let times = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
    let ticks: u64 = times.map(|time| time.parse::<u64>().unwrap()).sum();
    [fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64, resident, 10 * ticks]
}

#[test]
fn five_thousand_ended_migrations_cost_a_start_nothing() {
    let (few, many) = (Site::new("few"), Site::new("many"));
    for number in 0..5000u32 {
        let mut job = [0; 16];
        job[..4].copy_from_slice(&number.to_le_bytes());
        let records = left(&format!("vm{}", number % 50), u64::from(number / 50) * 2 + 1);
        fs::rename(many.journal(1, &records), many.at(&format!("journal/{}.journal", JobId(job)))).unwrap();
    }
    fs::write(many.at("vms/vm7.toml"), many.definition("vm7")).unwrap();
    few.start();
    many.start();
    let [few, cost] = [used(&few), used(&many)];
    assert!(cost[0] < few[0] + 64, "descriptors: {few:?}, {cost:?}");
    assert!(cost[1] < few[1] + (16 << 10), "memory: {few:?}, {cost:?}");
    assert!(cost[2] < few[2] + 1000, "time: {few:?}, {cost:?}");
    for _ in 0..2 {
        assert_eq!((&many.vm("vm7")["owner"], &many.vm("vm7")["epoch"]), (&json!("b"), &json!(200)));
        let journals = fs::read_dir(many.at("journal")).unwrap().flatten();
        let journals = journals.filter(|file| file.path().extension().is_some_and(|ext| ext == "journal"));
        // The version of the state has that extension too.
        assert_eq!(journals.count(), 1);
        many.restart();
    }
}

#[test]
fn a_collection_beside_another_is_busy() {
    let (a, _b) = pair(|_, _| ());
    let mut noise = vec![0; 8 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(a.at("noise.raw"), noise).unwrap();
    a.does(&format!("base add noise {}", a.at("noise.raw").display()));
    // It keeps chunks from being collected, so the first collection waits.
    let run = |line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
        command.arg("--root").arg(a.root()).args(line.split_whitespace()).stdout(Stdio::null());
        command.spawn().unwrap()
    };
    let in_phase = |kind: &str, phase: &str| {
        let begun = Instant::now();
        let is_so = |job: &Value| job["kind"] == kind && job["phases"].to_string().contains(phase);
        while !a.does("job list").as_array().unwrap().iter().any(is_so) {
            assert!(begun.elapsed() < PATIENCE, "no {kind} in phase {phase}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let mut verify = run("store verify --limit-mib-s 1");
    in_phase("store_verify", "verify");
    std::thread::sleep(Duration::from_millis(300));
    let mut first = run("store gc");
    in_phase("store_gc", "wait");
    assert_eq!(a.cli("store gc").status.code(), Some(4));
    assert!(verify.wait().unwrap().success() && first.wait().unwrap().success());
    assert_eq!(a.cli("store gc").status.code(), Some(0));
}

#[test]
fn the_kind_of_an_error_decides_the_status_and_the_exit_code() {
    let a = Site::new("a");
    a.start();
    a.define("web");
    let missing = a.at("missing.raw");
    let peer = json!({ "name": "b", "address": "nowhere", "fingerprint": "00" });
    for (method, path, body, expected) in [
        ("POST", "/v1/vms/nobody/start", json!({}), (404, "not_found")),
        ("GET", "/v1/jobs/00000000000000000000000000000000", json!({}), (404, "not_found")),
        ("GET", "/v1/jobs/no-id", json!({}), (400, "invalid")),
        ("GET", "/v1/nothing", json!({}), (404, "not_found")),
        ("POST", "/v1/bases", json!({ "name": "x", "image": missing }), (404, "not_found")),
        ("POST", "/v1/bases", json!({ "name": "X!", "image": missing }), (400, "invalid")),
        ("POST", "/v1/bases", json!({ "nonsense": 1 }), (400, "invalid")),
        ("POST", "/v1/peers", peer, (400, "invalid")),
        ("POST", "/v1/vms", json!({ "toml": "memory_mib = 0", "file": "x.toml" }), (400, "invalid")),
        ("DELETE", "/v1/vms/web?disks=perhaps", json!({}), (400, "invalid")),
        ("DELETE", "/v1/addresses/web", json!({}), (403, "denied")),
    ] {
        let (status, kind) = a.kind(method, path, &body);
        assert_eq!((status, kind.as_str()), expected, "{method} {path} {body}");
    }
    assert_eq!(a.asks("POST", "/v1/bases", "{").0, 400);
    a.refuses("vm start nobody");
}

#[test]
fn a_vm_that_a_command_works_on_is_busy_for_another() {
    let a = Site::new("a");
    a.start();
    a.define("web");
    fs::create_dir_all(a.at("run/vm/web")).unwrap();
    // A monitor that never says a word.
    let silent = UnixListener::bind(a.at("run/vm/web/qmp.sock")).unwrap();
    let mut first = Command::new(env!("CARGO_BIN_EXE_longhaul"));
    first.arg("--root").arg(a.root()).args(["vm", "start", "web"]).stderr(Stdio::null());
    let mut first = first.spawn().unwrap();
    let _held = silent.accept().unwrap();
    assert_eq!(a.kind("POST", "/v1/vms/web/start", &json!({})), (423, "busy".into()));
    assert_eq!(a.cli("vm start web").status.code(), Some(4));
    assert_eq!(first.wait().unwrap().code(), Some(1));
}

#[test]
fn a_job_that_finds_no_room_says_so() {
    let a = Site::new("a");
    fs::create_dir(a.at("small")).unwrap();
    // The daemon alone sees the small file system.
    let mount = "mount -t tmpfs -o size=64k small \"$1/small\" && exec \"$0\" --root \"$1\" daemon";
    let unshare = |rest: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount"]).args(rest);
        command
    };
    if !unshare(&["true"]).status().is_ok_and(|status| status.success()) {
        println!("left out: this host allows no mount namespaces");
        return;
    }
    let mut daemon = unshare(&["sh", "-c", mount, env!("CARGO_BIN_EXE_longhaul")]);
    a.run(daemon.arg(a.root()), Stdio::null());
    let mut noise = vec![0; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(a.at("noise.raw"), noise).unwrap();
    a.does(&format!("base add noise {}", a.at("noise.raw").display()));
    for line in ["store export {}/noise.archive", "base restore noise {}/noise.raw"] {
        let line = line.replace("{}", &a.at("small").display().to_string());
        let output = a.cli(&format!("--json {line}"));
        assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["error_kind"], &report["busy"]), (&json!("space"), &json!(false)), "{report}");
    }
}
