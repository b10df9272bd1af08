use super::*;

#[test]
fn the_texts_have_the_lengths_that_were_captured() {
    assert_eq!([RECEIVER_READY.len(), READY.len(), GO.len(), REPORT.len()], [54, 34, 44, 39]);
}

#[test]
fn a_text_is_complete_however_it_is_cut_and_leaves_what_follows() {
    for cut in 1..REPORT.len() {
        let bytes = [REPORT, &[FAILED]].concat();
        let mut due = Due::new(REPORT);
        let mut rest = bytes.as_slice();
        while !due.is_complete() {
            let step = due.take(&rest[..cut.min(rest.len())]).unwrap();
            rest = &rest[step..];
        }
        assert_eq!(rest, [FAILED]);
        assert_eq!(due.take(rest).unwrap(), 0);
    }
}

#[test]
fn another_text_is_told_with_both() {
    let error = Due::new(READY).take(GO).unwrap_err().to_string();
    assert!(error.contains("domain is yours") && error.contains("ready to unpause"), "{error}");
}
