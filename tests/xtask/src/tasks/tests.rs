use super::*;

#[test]
fn closing_lines_are_added_up() {
    let mut totals = Totals::default();
    for line in [
        "running 3 tests",
        "test result: ok. 22 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.60s",
        "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
    ] {
        totals.count(line);
    }
    assert_eq!(totals, Totals { programs: 2, passed: 24, failed: 3, ignored: 1, success: false });
}
