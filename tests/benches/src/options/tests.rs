use super::*;

#[test]
fn words_become_options() {
    let plain = Options::parse(&["store"]).unwrap();
    assert_eq!(plain, Options { bench: Bench::Store, json: None, quick: false, runs: 3 });
    let all = Options::parse(&["chunking", "--quick", "--json", "f", "--runs", "5"]).unwrap();
    assert_eq!(all, Options { bench: Bench::Chunking, json: Some("f".into()), quick: true, runs: 5 });
    assert_eq!(Options::parse(&["store", "--quick"]).unwrap().runs, 1);
}

#[test]
fn what_is_wrong_is_named() {
    for (words, named) in [
        (&[][..], "name a benchmark"),
        (&["disk"], "`disk`"),
        (&["store", "--fast"], "`--fast`"),
        (&["store", "--json"], "--json needs"),
        (&["store", "--runs", "0"], "\"0\""),
    ] {
        let error = Options::parse(words).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
