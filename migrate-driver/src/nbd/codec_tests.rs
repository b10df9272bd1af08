//! What the NBD codec takes from a client and what it refuses.

use super::*;

fn option(number: u32, len: u32) -> [u8; OptionHeader::BYTES] {
    let mut bytes = [0; OptionHeader::BYTES];
    bytes[..8].copy_from_slice(b"IHAVEOPT");
    bytes[8..12].copy_from_slice(&number.to_be_bytes());
    bytes[12..].copy_from_slice(&len.to_be_bytes());
    bytes
}

#[test]
fn magics_spell_what_they_should() {
    assert_eq!(INIT_MAGIC.to_be_bytes(), *b"NBDMAGIC");
    assert_eq!(OPTION_MAGIC.to_be_bytes(), *b"IHAVEOPT");
}

#[test]
fn options_are_told_apart() {
    let kinds = [1, 2, 3, 6, 7, 5, 8, 10]
        .map(|number| OptionHeader::parse(&option(number, 9)).unwrap())
        .map(|header| header.kind);
    use OptionKind::*;
    assert_eq!(kinds, [ExportName, Abort, List, Info, Go, Other, Other, Other]);
    let mut bad = option(7, 0);
    bad[0] = b'X';
    assert!(matches!(OptionHeader::parse(&bad), Err(WireError::BadMagic(_))));
}

#[test]
fn an_export_name_is_bounded_by_its_data() {
    let data = |len: u32, name: &str, requests: u16, rest: &[u8]| {
        let mut data = len.to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data.extend(requests.to_be_bytes());
        data.extend(rest);
        data
    };
    assert_eq!(export_name(&data(4, "disk", 0, b"")), Some("disk"));
    assert_eq!(export_name(&data(4, "disk", 1, &[0, 3])), Some("disk"));
    assert_eq!(export_name(&data(0, "", 0, b"")), Some(""));
    assert_eq!(export_name(&data(u32::MAX, "disk", 0, b"")), None);
    assert_eq!(export_name(&data(4, "disk", 2, &[0, 3])), None);
    assert_eq!(export_name(&data(4, "disk", 0, &[0, 3])), None);
    assert_eq!(export_name(&[0, 0]), None);
    assert_eq!(export_name(&[0, 0, 0, 1, 0xff, 0, 0]), None);
}

#[test]
fn requests() {
    let mut bytes = [0; Request::BYTES];
    bytes[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
    bytes[7] = 1;
    bytes[8..16].copy_from_slice(&7u64.to_be_bytes());
    bytes[16..24].copy_from_slice(&8192u64.to_be_bytes());
    bytes[24..].copy_from_slice(&4096u32.to_be_bytes());
    let request = Request::parse(&bytes).unwrap();
    assert_eq!(request, Request { command: Command::Write, handle: 7, offset: 8192, len: 4096 });
    bytes[24..].copy_from_slice(&(MAX_PAYLOAD_BYTES + 1).to_be_bytes());
    assert_eq!(Request::parse(&bytes), Err(WireError::WriteTooLong(MAX_PAYLOAD_BYTES + 1)));
    // Without a payload the same length is fine.
    bytes[7] = 6;
    assert_eq!(Request::parse(&bytes).unwrap().command, Command::WriteZeroes);
    bytes[0] = 0;
    assert!(matches!(Request::parse(&bytes), Err(WireError::BadMagic(_))));
}

#[test]
fn errors_have_the_protocols_numbers() {
    let error = |kind: std::io::ErrorKind| NbdError::of(&kind.into()) as u32;
    assert_eq!(error(std::io::ErrorKind::StorageFull), 28);
    assert_eq!(error(std::io::ErrorKind::InvalidInput), 22);
    assert_eq!(error(std::io::ErrorKind::OutOfMemory), 12);
    assert_eq!(error(std::io::ErrorKind::BrokenPipe), 5);
    assert_eq!(reply(Err(NbdError::NoSpace), 1)[4..8], [0, 0, 0, 28]);
    assert_eq!(reply(Ok(()), 0x0102)[..], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
}
