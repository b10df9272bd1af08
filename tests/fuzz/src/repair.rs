//! Checksums made right after a mutation, in place, by the format documents and not by the code that is fuzzed. What
//! does not look like its format is left as it is, and so are all fields that are no checksum.

/// For formats without checksums.
pub(crate) fn nothing(_: &mut [u8], _: u32) {}

/// A manifest or a state file: the last 32 bytes are BLAKE3 of what is before.
pub(crate) fn whole(bytes: &mut [u8], _: u32) {
    let Some(at) = bytes.len().checked_sub(32) else { return };
    let (body, check) = bytes.split_at_mut(at);
    check.copy_from_slice(blake3::hash(body).as_bytes());
}

/// A pack: all checksums of every record, and the one of the index where its footer says it is.
pub(crate) fn pack(bytes: &mut [u8], _: u32) {
    let mut at = 16;
    while at + 64 <= bytes.len() {
        at += record(&mut bytes[at..]).unwrap_or(1);
    }
    let Some(footer) = bytes.len().checked_sub(64) else { return };
    let index = number(bytes, footer + 16, 8);
    if bytes[footer..].starts_with(b"LHINDX") && index <= footer {
        let check = blake3::hash(&bytes[index..footer + 24]);
        bytes[footer + 24..footer + 56].copy_from_slice(check.as_bytes());
    }
}

/// A record of a pack, of either version: its checksums. Gives its length, if it is one.
fn record(bytes: &mut [u8]) -> Option<usize> {
    let (checked, payload, stored) = match bytes.get(..4)? {
        b"LHCR" => (56, 64, number(bytes, 12, 4)),
        b"LHGR" => (40, 48 + 36 * number(bytes, 8, 4), number(bytes, 16, 4)),
        _ => return None,
    };
    let end = payload + stored;
    if end > bytes.len() {
        return None;
    }
    if checked == 40 {
        let check = check8(&[&bytes[48..payload]]);
        bytes[24..32].copy_from_slice(&check);
    }
    let check = check8(&[&bytes[payload..end]]);
    bytes[checked - 8..checked].copy_from_slice(&check);
    let check = check8(&[&bytes[..checked]]);
    bytes[checked..checked + 8].copy_from_slice(&check);
    Some(end)
}

/// A redo log: the checksum of its header and of every record, and every second time the count in the commit record,
/// which a record more or less makes wrong.
pub(crate) fn log(bytes: &mut [u8], seed: u32) {
    if bytes.len() < 40 {
        return;
    }
    let check = check8(&[&bytes[..32]]);
    bytes[32..40].copy_from_slice(&check);
    let mut records = 0_u64;
    let mut rest = &mut bytes[40..];
    while rest.len() >= 40 {
        let end = 40_usize.saturating_add(number(rest, 24, 4));
        if end > rest.len() {
            return;
        }
        if rest[4] == 3 && seed & 8 == 0 {
            rest[8..16].copy_from_slice(&records.to_le_bytes());
        }
        let check = check8(&[&rest[..32], &rest[40..end]]);
        rest[32..40].copy_from_slice(&check);
        rest = &mut rest[end..];
        records += 1;
    }
}

/// A journal: the checksum of every record.
pub(crate) fn journal(bytes: &mut [u8], _: u32) {
    let Some(mut rest) = bytes.get_mut(8..) else { return };
    while rest.len() >= 12 {
        let end = 12_usize.saturating_add(number(rest, 0, 4));
        if end > rest.len() {
            return;
        }
        let check = check8(&[&rest[12..end]]);
        rest[4..12].copy_from_slice(&check);
        rest = &mut rest[end..];
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> usize {
    bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

/// The first 8 bytes of BLAKE3.
fn check8(parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut check = [0; 8];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    check
}
