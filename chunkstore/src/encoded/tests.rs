use bytes::Bytes;

use super::{Codec, DecodeError, Encoded};
use crate::LEVEL;
use crate::testing::{noise, text};

#[test]
fn compresses_what_pays() {
    let plain = Bytes::from(text(1, 65536));
    let encoded = Encoded::encode(plain.clone(), 1);
    assert_eq!(encoded.codec, Codec::Zstd);
    assert!(encoded.bytes.len() < plain.len() / 4);
    assert_eq!(encoded.decode(65536).unwrap(), plain);
}

#[test]
fn every_level_compresses() {
    let plain = Bytes::from(text(1, 3 << 20));
    for level in (-7..=19).step_by(2).chain([i32::MIN, -100_000, LEVEL, i32::MAX]) {
        for plain in [plain.slice(..1 << 20), plain.clone()] {
            let encoded = Encoded::encode(plain.clone(), level);
            assert_eq!(encoded.codec, Codec::Zstd, "level {level}");
            assert!(encoded.decode(3 << 20).unwrap() == plain, "level {level}");
        }
    }
}

#[test]
fn leaves_alone_what_does_not() {
    for plain in [noise(1, 65536), vec![], vec![7], vec![7, 7]] {
        let encoded = Encoded::encode(plain.clone().into(), 1);
        assert_eq!((encoded.codec, &encoded.bytes[..]), (Codec::Raw, &plain[..]));
        assert_eq!(encoded.decode(65536).unwrap(), plain);
    }
}

#[test]
fn decodes_no_more_than_allowed() {
    let encoded = Encoded::encode(text(1, 65536).into(), 1);
    assert!(matches!(encoded.decode(65535), Err(DecodeError::TooLong { plain_len: 65536, max_len: 65535 })));
    let lies = [Encoded { plain_len: 100, ..encoded.clone() }, Encoded { plain_len: 70000, ..encoded }];
    for lie in lies {
        assert!(matches!(lie.decode(1 << 20), Err(DecodeError::Damaged { .. })));
    }
    let short = Encoded { codec: Codec::Raw, plain_len: 4, bytes: Bytes::from_static(b"abc") };
    assert!(matches!(short.decode(1 << 20), Err(DecodeError::Damaged { .. })));
}

#[test]
fn damage_is_an_error() {
    let whole = Encoded::encode(text(1, 4096).into(), 3);
    for len in 0..whole.bytes.len() {
        let cut = Encoded { bytes: whole.bytes.slice(..len), ..whole.clone() };
        assert!(cut.decode(4096).is_err());
    }
}
