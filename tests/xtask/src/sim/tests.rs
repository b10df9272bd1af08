use super::*;

#[test]
fn the_options_are_read() {
    assert_eq!(Options::parse(&[]).unwrap(), Options { seeds: 100_000, first: 0 });
    let some = Options::parse(&["--from", "7", "--seeds", "1"]).unwrap();
    assert_eq!(some, Options { seeds: 1, first: 7 });
    for bad in [&["--seeds"][..], &["--seeds", "0"], &["--seeds", "many"], &["--fast"], &["12"]] {
        assert!(Options::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn only_the_test_itself_can_say_that_it_is_clean() {
    let follow = |text: &str| follow(text.as_bytes(), false).unwrap();
    assert!(follow("running 1 test\nsim: 5 seeds from 0 on are clean: 9 migrations\ntest result: ok."));
    assert!(!follow("running 0 tests\ntest result: ok. 0 passed; 0 failed"));
    assert!(!follow("sim: 5000 of 100000 seeds\n"));
}
