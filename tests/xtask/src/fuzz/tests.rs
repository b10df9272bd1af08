use super::*;

#[test]
fn the_options_are_read() {
    let plain = Options { targets: Vec::new(), seconds: 60, input: None };
    assert_eq!(Options::parse(&[]).unwrap(), plain);
    let some = Options::parse(&["pack", "--seconds", "5", "journal"]).unwrap();
    assert_eq!(some, Options { targets: vec!["pack".into(), "journal".into()], seconds: 5, input: None });
    let one = Options::parse(&["pack", "--input", "/tmp/x"]).unwrap();
    assert_eq!(one.input, Some(PathBuf::from("/tmp/x")));
    for bad in
        [&["--seconds"][..], &["--seconds", "0"], &["--fast"], &["--input", "x"], &["a", "b", "--input", "x"]]
    {
        assert!(Options::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn an_unknown_target_is_named_with_those_there_are() {
    let all = ["journal".to_owned(), "pack".to_owned()];
    assert_eq!(choose(&all, &[]).unwrap(), all);
    assert_eq!(choose(&all, &all[1..]).unwrap(), all[1..]);
    let error = choose(&all, &["park".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("`park`") && error.contains("journal, pack"), "{error}");
}

#[test]
fn the_output_is_read() {
    let mut told = Told::default();
    let output = b"Running: /r/1\n#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        #900\tDONE   cov: 345 ft: 700 corp: 35/13Kb lim: 4096 exec/s: 300 rss: 46Mb\n\
        \xff an input's bytes, cov: 9 \n\
        stat::number_of_executed_units: 900\n\
        artifact_prefix='/f/'; Test unit written to /f/crash-1\n";
    read_lines(&output[..], |line| {
        told.take(line);
        Ok(())
    })
    .unwrap();
    assert_eq!((told.runs, told.coverage), (900, 345));
    assert_eq!(told.input.as_deref(), Some(Path::new("/f/crash-1")));
    assert!(told.line().ends_with("ok"));
    let failure = Failure { output: "panicked".into(), input: told.input.take(), log: "/l".into() };
    let text = failure.text("pack");
    assert!(text.contains("cargo xtask fuzz pack --input /f/crash-1"), "{text}");
    told.failure = Some(failure);
    assert!(told.line().ends_with("FAILED"));
}
