//! What one connection keeps in memory.

use super::*;

#[test]
fn the_payload_buffer_is_no_longer_than_the_longest_payload() {
    let mut buffer = Vec::new();
    let longest = codec::MAX_PAYLOAD_BYTES;
    for len in [4096, longest - 1, longest, 512] {
        assert_eq!(room(&mut buffer, len).len(), len as usize);
    }
    assert_eq!((buffer.len(), buffer.capacity()), (longest as usize, longest as usize));
}
