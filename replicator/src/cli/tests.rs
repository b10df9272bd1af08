//! Flags in, requests out. What the program prints and how it exits is in `replicator/tests/command_line.rs`.

use clap::CommandFactory;
use serde_json::Value;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("longhaul").chain(line.split_whitespace()))
}

/// Method, path and body of the request that a command line makes.
fn asks(line: &str) -> (&'static str, String, Value) {
    match request(parse(line).unwrap().command).unwrap() {
        Request::Get(path) => ("get", path, Value::Null),
        Request::Delete(path) => ("delete", path, Value::Null),
        Request::Post(path, body) => ("post", path, body),
        Request::Job(path, body) => ("job", path, body),
        Request::Pass(path, body) => ("pass", path, body),
        Request::Watch(id) => ("watch", id, Value::Null),
        Request::Report(id) => ("report", id, Value::Null),
    }
}

fn here(path: &str) -> PathBuf {
    std::env::current_dir().unwrap().join(path)
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_a_line_of_help() {
    fn check(command: &clap::Command, path: &str) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name());
            assert!(sub.get_about().is_some(), "`{path}` has no help");
            for argument in sub.get_arguments() {
                assert!(argument.get_help().is_some(), "`{path}` has no help for {}", argument.get_id());
            }
            check(sub, &path);
        }
    }
    check(&Cli::command(), "longhaul");
}

#[test]
fn the_help_ends_with_the_exit_codes() {
    let help = Cli::command().render_help().to_string();
    for code in [0, EXIT_FAILED, EXIT_USAGE, EXIT_NO_DAEMON, Kind::Busy.exit_code()] {
        assert!(
            help.contains(&format!(" {code} ")) || help.contains(&format!("\n{code} ")),
            "{code}: {help}"
        );
    }
}

#[test]
fn root_and_json_may_stand_anywhere() {
    for line in ["--root /x --json vm list", "vm --root /x list --json", "vm list --json --root /x"] {
        let cli = parse(line).unwrap();
        assert!(cli.json, "{line}");
        assert_eq!(cli.root.as_deref(), Some(std::path::Path::new("/x")), "{line}");
    }
}

#[test]
fn a_downtime_has_a_unit_and_bounds() {
    for (text, ms) in [("300ms", 300), ("1ms", 1), ("2s", 2000), ("0.5s", 500), ("60s", 60_000)] {
        assert_eq!(milliseconds(text), Ok(ms), "{text}");
    }
    for text in ["300", "", "ms", "2m", "2 s", "0ms", "0.5ms", "61s", "-1s", "1e9s", "infs", "NaNs", "1ss"] {
        assert!(milliseconds(text).is_err(), "{text}");
    }
    let error = parse("migrate web --to b --max-downtime 300").err().unwrap();
    assert!(error.to_string().contains("300ms or 2s"), "{error}");
}

#[test]
fn a_migration_is_a_job_and_a_dry_run_is_not() {
    let (method, path, body) = asks("migrate web --to b --max-downtime 300ms");
    assert_eq!((method, path.as_str()), ("job", "/v1/vms/web/migrate"));
    assert_eq!(body, json!({ "to": "b", "max_downtime_ms": 300, "cold": false, "dry_run": false }));
    let (method, _, body) = asks("migrate web --to b --cold --dry-run");
    assert_eq!(method, "post");
    assert_eq!(body, json!({ "to": "b", "max_downtime_ms": null, "cold": true, "dry_run": true }));
}

#[test]
fn an_image_goes_to_a_peer_under_its_own_name_or_another() {
    let body = |line: &str| asks(line).2;
    let named = body("image send disks/Web.RAW b:archive-1");
    assert_eq!(named, json!({ "image": here("disks/Web.RAW"), "peer": "b", "name": "archive-1" }));
    let own = body("image send disks/Web.RAW b");
    assert_eq!((&own["peer"], &own["name"]), (&json!("b"), &json!("web")), "the file's, in small letters");
    let device = body("image send /dev/vg/web b");
    assert_eq!((&device["image"], &device["name"]), (&json!("/dev/vg/web"), &json!("web")));
    let second_colon = body("image send /x.raw b:c:d");
    assert_eq!((&second_colon["peer"], &second_colon["name"]), (&json!("b"), &json!("c:d")), "refused later");
}

#[test]
fn paths_are_the_callers_not_the_daemons() {
    assert_eq!(asks("base add debian x.raw").2["image"], json!(here("x.raw")));
    let restore = asks("replica restore web x.raw --from c --disk root --in-place").2;
    let path = here("x.raw");
    assert_eq!(restore, json!({ "path": path, "disk": "root", "from": "c", "in_place": true }));
    let restore = json!({ "path": here("x"), "in_place": false, "like": here("y") });
    assert_eq!(asks("base restore debian x --like y").2, restore);
    let export = json!({ "path": here("x"), "names": ["debian"] });
    assert_eq!(asks("store export x debian"), ("job", "/v1/store/export".to_owned(), export));
    let import = json!({ "path": here("x"), "replace": true });
    assert_eq!(asks("store import x --replace"), ("job", "/v1/store/import".to_owned(), import));
}

#[test]
fn a_definition_is_read_here_and_an_error_names_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.toml");
    std::fs::write(&file, "name = \"web\"\nmemory_mib = 64\ndisks = []\nmemory = 3\n").unwrap();
    let command = parse(&format!("vm define {}", file.display())).unwrap().command;
    let message = format!("{:#}", request(command).err().unwrap());
    assert!(message.contains("web.toml") && message.contains("memory"), "{message}");
}

#[test]
fn every_other_command_asks_for_what_it_says() {
    let null = Value::Null;
    let cases = [
        ("peer list", "get", "/v1/peers", null.clone()),
        ("peer ask b", "get", "/v1/peers/b", null.clone()),
        ("peer remove b", "delete", "/v1/peers/b", null.clone()),
        ("base list", "get", "/v1/bases", null.clone()),
        ("base remove debian", "delete", "/v1/bases/debian", null.clone()),
        ("base push debian b c", "job", "/v1/bases/debian/push", json!({ "peers": ["b", "c"] })),
        (
            "base restore debian /x.raw --in-place",
            "job",
            "/v1/bases/debian/restore",
            json!({ "path": "/x.raw", "in_place": true, "like": null }),
        ),
        ("vm list", "get", "/v1/vms", null.clone()),
        ("vm start web", "post", "/v1/vms/web/start", json!({})),
        ("vm stop web --kill", "post", "/v1/vms/web/stop", json!({ "kill": true })),
        ("replicate web --to b", "pass", "/v1/vms/web/replicate", json!({ "to": "b" })),
        ("replica list", "get", "/v1/replicas", null.clone()),
        ("replica verify web", "job", "/v1/replicas/verify", json!({ "name": "web" })),
        ("job list", "get", "/v1/jobs", null.clone()),
        ("job show 12", "get", "/v1/jobs/12", null.clone()),
        ("job watch 12", "watch", "12", null.clone()),
        ("job cancel 12", "post", "/v1/jobs/12/cancel", json!({})),
        ("report 12", "report", "12", null.clone()),
        ("store stats", "get", "/v1/store", null),
        (
            "store verify --sample 30 --limit-mib-s 50",
            "job",
            "/v1/store/verify",
            json!({ "sample": 30, "base": null, "limit_mib_s": 50, "heal": false }),
        ),
        (
            "store verify --base debian --heal",
            "job",
            "/v1/store/verify",
            json!({ "sample": null, "base": "debian", "limit_mib_s": null, "heal": true }),
        ),
        ("store gc", "job", "/v1/store/gc", json!({ "dry_run": false, "waste_percent": null })),
        (
            "store gc --dry-run --waste-percent 10",
            "job",
            "/v1/store/gc",
            json!({ "dry_run": true, "waste_percent": 10 }),
        ),
    ];
    for (line, method, path, body) in cases {
        assert_eq!(asks(line), (method, path.to_owned(), body), "{line}");
    }
    let key = "ab".repeat(32);
    let (_, path, body) = asks(&format!("peer add b h:1 {key}"));
    assert_eq!(path, "/v1/peers");
    assert_eq!(body, json!({ "name": "b", "address": "h:1", "fingerprint": key }));
}

#[test]
fn what_is_missing_or_too_much_is_a_usage_error() {
    for line in [
        "",
        "migrate web",
        "replicate --to b",
        "base push debian",
        "peer add b",
        "vm list web",
        "fly",
        "base restore debian",
        "base restore debian x --in-place --like y",
    ] {
        let error = parse(line).err().unwrap_or_else(|| panic!("`{line}` was taken"));
        assert!(error.use_stderr(), "{line}");
    }
    for line in ["--help", "--version", "migrate --help"] {
        assert!(!parse(line).err().unwrap().use_stderr(), "{line}");
    }
}

#[test]
fn a_vm_is_removed_with_or_without_its_images() {
    assert_eq!(asks("vm remove web"), ("delete", "/v1/vms/web".into(), Value::Null));
    assert_eq!(asks("vm remove web --disks"), ("delete", "/v1/vms/web?disks=true".into(), Value::Null));
}
