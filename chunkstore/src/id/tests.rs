use super::{ChunkId, ImageRoot};

#[test]
fn text_goes_and_comes_back() {
    let id = ChunkId::of(b"a chunk");
    assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
    assert_eq!(id.to_string(), blake3::hash(b"a chunk").to_hex().to_string());
}

#[test]
fn other_text_is_refused() {
    for text in ["", "00", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65), &"é".repeat(32)] {
        let error = text.parse::<ImageRoot>().unwrap_err();
        assert!(error.to_string().contains("64 hexadecimal digits"), "{error}");
    }
}
