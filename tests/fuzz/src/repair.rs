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

/// A pack: both checksums of every record, and the one of the index where its footer says it is.
pub(crate) fn pack(bytes: &mut [u8], _: u32) {
    let mut at = 16;
    while at + 64 <= bytes.len() {
        let record = &mut bytes[at..];
        let end = 64_usize.saturating_add(number(record, 12, 4));
        if !record.starts_with(b"LHCR") || end > record.len() {
            at += 1;
            continue;
        }
        let check = check8(&[&record[64..end]]);
        record[48..56].copy_from_slice(&check);
        let check = check8(&[&record[..56]]);
        record[56..64].copy_from_slice(&check);
        at += end;
    }
    let Some(footer) = bytes.len().checked_sub(64) else { return };
    let index = number(bytes, footer + 16, 8);
    if bytes[footer..].starts_with(b"LHINDX") && index <= footer {
        let check = blake3::hash(&bytes[index..footer + 24]);
        bytes[footer + 24..footer + 56].copy_from_slice(check.as_bytes());
    }
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

/// An IPv6 packet around a Mobility Header: its payload length, and the header's checksum with the home addresses in it.
/// Every fourth time a Header Len beyond the end becomes what is there.
pub(crate) fn mobility(bytes: &mut [u8], seed: u32) {
    if bytes.len() < 48 {
        return;
    }
    let payload = (bytes.len() - 40) as u16;
    bytes[4..6].copy_from_slice(&payload.to_be_bytes());
    let (mut source, mut destination) = (8, 24);
    let (mut next_header, mut at) = (bytes[6], 40);
    while [0, 43, 60].contains(&next_header) {
        let end = at + 8 * (1 + usize::from(bytes[at + 1]));
        if end + 8 > bytes.len() {
            return;
        }
        if next_header == 43 && bytes[at + 1..at + 4] == [2, 2, 1] {
            destination = at + 8;
        }
        let mut option = at + 2;
        while next_header == 60 && option + 18 <= end {
            if bytes[option..option + 2] == [0xc9, 16] {
                source = option + 2;
            }
            option += if bytes[option] == 0 { 1 } else { 2 + usize::from(bytes[option + 1]) };
        }
        (next_header, at) = (bytes[at], end);
    }
    let is_longer = at + 8 * (1 + usize::from(bytes[at + 1])) > bytes.len();
    if is_longer && seed & 12 == 0 {
        bytes[at + 1] = ((bytes.len() - at) / 8 - 1).min(255) as u8;
    }
    let end = bytes.len().min(at + 8 * (1 + usize::from(bytes[at + 1])));
    bytes[at + 4..at + 6].fill(0);
    let parts = [&bytes[source..source + 16], &bytes[destination..destination + 16], &bytes[at..end]];
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| word.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))).sum();
    let sum = sum + 135 + (end - at) as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    bytes[at + 4..at + 6].copy_from_slice(&sum.to_be_bytes());
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
