use super::*;

#[test]
fn a_root_is_short_its_own_and_gone_afterwards() {
    let platform = Platform::with_config("a", "# more").unwrap();
    let other = Platform::new("b").unwrap();
    assert_ne!((platform.root(), platform.address()), (other.root(), other.address()));
    assert!(platform.root().as_os_str().len() < 30);
    let config = fs::read_to_string(platform.root().join("longhaul.toml")).unwrap();
    assert!(
        config.starts_with("name = \"a\"\nlisten = \"127.0.0.1:") && config.ends_with("# more\n"),
        "{config}"
    );
    let root = platform.root().to_path_buf();
    drop(platform);
    assert!(!root.exists());
}

#[test]
fn only_processes_that_name_the_root_are_ended() {
    let platform = Platform::new("a").unwrap();
    let run = platform.root().join("run/vm");
    let sleeper = |argument: &str| Command::new("tail").args(["-f", "/dev/null", argument]).spawn().unwrap();
    let mut ours = sleeper(&platform.root().join("longhaul.toml").display().to_string());
    // A root whose name only starts like ours.
    let mut theirs = sleeper("-n1");
    for (vm, child) in [("ours", &ours), ("theirs", &theirs)] {
        files::create_dir(&run.join(vm)).unwrap();
        files::write(&run.join(vm).join("pid"), format!("{}\n", child.id())).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(5);
    while platform.qemu("ours").is_none() && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(platform.qemu("ours"), i32::try_from(ours.id()).ok());
    assert_eq!(platform.qemu("theirs"), None);
    drop(platform);
    assert!(!ours.wait().unwrap().success());
    assert!(theirs.try_wait().unwrap().is_none());
    theirs.kill().unwrap();
    theirs.wait().unwrap();
}

#[test]
fn a_command_that_fails_or_hangs_says_so() {
    let run = |line: &[&str]| CliRun::start(Command::new(line[0]).args(&line[1..])).unwrap();
    let outcome = run(&["ls", "/nonexistent"]).wait(CLI_TIMEOUT).unwrap();
    assert!(outcome.code != Some(0) && outcome.stderr.contains("nonexistent"));
    assert!(outcome.json().unwrap_err().to_string().contains("exit code"));
    assert_eq!(run(&["echo", "{\"a\": 1}"]).wait(CLI_TIMEOUT).unwrap().json().unwrap()["a"], 1);
    let error = run(&["sleep", "60"]).wait(Duration::from_millis(50)).unwrap_err().to_string();
    assert!(error.contains("`sleep 60` did not end"), "{error}");
}
