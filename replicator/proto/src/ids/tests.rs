use super::JobId;

#[test]
fn a_job_id_comes_back_from_its_text() {
    let id = JobId(*b"0123456789abcdef");
    assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
    assert_eq!(id.to_string().to_uppercase().parse::<JobId>().unwrap(), id);
}

#[test]
fn other_text_is_no_job_id() {
    for text in
        ["", "00", &"g".repeat(32), &"0".repeat(31), &"0".repeat(33), &"\u{e9}".repeat(16), &"+f".repeat(16)]
    {
        let error = text.parse::<JobId>().unwrap_err();
        assert!(error.to_string().contains("32 hexadecimal digits"), "{error}");
    }
}
