use super::*;

#[test]
fn a_run_has_its_output_time_and_memory() {
    let run = super::run(Command::new("echo").arg("hello"), Some(Path::new("/tmp"))).unwrap();
    assert_eq!(run.stdout, "hello\n");
    assert!(run.seconds > 0.0 && run.rss_bytes > 100_000, "{run:?}");
}

#[test]
fn a_failure_says_which_command_and_what_it_said() {
    let error = run(Command::new("ls").arg("/nowhere/at all"), None).unwrap_err().to_string();
    assert!(error.contains("ls /nowhere/at all") && error.contains("No such file"), "{error}");
}

#[test]
fn one_core_is_one_core() {
    let mut plain = Command::new("nproc");
    plain.env("OMP_NUM_THREADS", "");
    assert_eq!(run(&mut on_one_core(&plain), None).unwrap().stdout, "1\n");
}

#[test]
fn a_tree_is_as_large_as_its_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("a"), [1; 10]).unwrap();
    std::fs::write(dir.path().join("d/b"), [1; 32]).unwrap();
    assert_eq!(tree_bytes(dir.path()).unwrap(), 42);
}
