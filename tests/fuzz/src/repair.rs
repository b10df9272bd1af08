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
    // None is shorter.
    let (checked, payload, stored) = match &bytes.get(..64)?[..4] {
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

/// An archive: every checksum, and every second time also what a mutation of a plain chunk or of an extent makes wrong:
/// the chunk's name in its record and its manifest, the image's size, the counts in the end mark.
pub(crate) fn archive(bytes: &mut [u8], seed: u32) {
    // Where it stops fitting the format it is left as it is.
    let _ = archive_parts(bytes, seed & 8 == 0);
}

fn archive_parts(bytes: &mut [u8], consistent: bool) -> Option<()> {
    let names_end = 12_usize.checked_add(number(bytes.get(..12)?, 8, 4))?;
    let check = check8(&[bytes.get(..names_end)?]);
    let mut at = names_end + 8;
    bytes.get_mut(names_end..at)?.copy_from_slice(&check);
    let (mut images, mut records, mut stored) = (0_u64, 0_u64, Vec::new());
    while !bytes.get(at..)?.starts_with(b"LHARCEND") {
        let manifest_len = number(bytes.get(..at + 16)?, at, 8);
        let check = check8(&[&bytes[at..at + 8]]);
        bytes[at + 8..at + 16].copy_from_slice(&check);
        let (head, chunks) = bytes.get_mut(at + 16..)?.split_at_mut_checked(manifest_len)?;
        let (len, count) = archive_records(head, chunks, consistent, &mut stored)?;
        whole(head, 0);
        at += 16 + manifest_len + len;
        (images, records) = (images + 1, records + count);
    }
    if consistent {
        let counts = bytes.get_mut(at + 8..at + 32)?;
        counts[..8].copy_from_slice(&images.to_le_bytes());
        counts[8..16].copy_from_slice(&records.to_le_bytes());
        counts[16..].copy_from_slice(&(at as u64).to_le_bytes());
    }
    let check = blake3::hash(bytes.get(..at + 32)?);
    bytes.get_mut(at + 32..at + 64)?.copy_from_slice(check.as_bytes());
    Some(())
}

/// The records of one image, and its manifest as far as they change it; their length and the number of their chunks.
fn archive_records(
    manifest: &mut [u8],
    chunks: &mut [u8],
    consistent: bool,
    stored: &mut Vec<[u8; 32]>,
) -> Option<(usize, u64)> {
    let (mut at, mut count, mut size) = (0, 0, 0_usize);
    let mut extent = 56;
    while extent + 12 + 32 <= manifest.len() {
        let plain_len = number(manifest, extent, 4);
        if plain_len == 0 {
            size = size.wrapping_add(number(manifest, extent + 4, 8));
            extent += 12;
            continue;
        }
        let id: [u8; 32] = manifest.get(extent + 4..extent + 36)?.try_into().ok()?;
        if !stored.contains(&id)
            && let Some(end) = chunks.get_mut(at..).and_then(record)
        {
            let record = &mut chunks[at..at + end];
            for name in names(record) {
                let old: [u8; 32] = record[name.clone()].try_into().ok()?;
                if consistent {
                    name_again(record, name.clone());
                    rename(&mut manifest[extent..], &old, record, &name);
                }
                stored.push(record[name].try_into().ok()?);
                count += 1;
            }
            self::record(record)?;
            at += end;
        }
        size = size.wrapping_add(number(manifest, extent, 4));
        extent += 36;
    }
    if consistent {
        manifest.get_mut(8..16)?.copy_from_slice(&(size as u64).to_le_bytes());
    }
    Some((at, count))
}

/// Where a record has the names of its chunks; right before a name, or 8 bytes before it in version 1, is the length.
fn names(record: &[u8]) -> Vec<std::ops::Range<usize>> {
    if record.starts_with(b"LHCR") {
        return vec![16..48];
    }
    (0..number(record, 8, 4)).map(|chunk| 52 + 36 * chunk).map(|name| name..name + 32).collect()
}

/// Where a name's length is.
fn length(record: &[u8], name: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    if record.starts_with(b"LHCR") { 8..12 } else { name.start - 4..name.start }
}

/// Gives a chunk that is stored plain the name of its bytes.
fn name_again(record: &mut [u8], name: std::ops::Range<usize>) {
    if record[4] != 0 {
        return;
    }
    let payload = if record.starts_with(b"LHCR") { 64 } else { 48 + 36 * number(record, 8, 4) };
    let before = names(record).into_iter().take_while(|other| *other != name);
    let start: usize = before.map(|other| number(record, length(record, &other).start, 4)).sum();
    let len = number(record, length(record, &name).start, 4);
    if let Some(bytes) = record[payload..].get(start..).and_then(|bytes| bytes.get(..len)) {
        let id = *blake3::hash(bytes).as_bytes();
        record[name].copy_from_slice(&id);
    }
}

/// The extents of chunk `id` become those of the chunk that `record` has at `name`.
fn rename(extents: &mut [u8], id: &[u8; 32], record: &[u8], name: &std::ops::Range<usize>) {
    let mut at = 0;
    while at + 36 + 32 <= extents.len() {
        if number(extents, at, 4) == 0 {
            at += 12;
            continue;
        }
        if extents[at + 4..at + 36] == *id {
            extents[at..at + 4].copy_from_slice(&record[length(record, name)]);
            extents[at + 4..at + 36].copy_from_slice(&record[name.clone()]);
        }
        at += 36;
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
