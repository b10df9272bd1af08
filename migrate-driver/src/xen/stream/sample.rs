//! Streams as xl sends them, for the tests and the fuzz targets.

use super::*;

/// A stream as xl sends it: a header with `configuration`, libxl's records, libxc's with `pages` bytes of them.
pub(crate) fn stream(configuration: &str, pages: usize) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let text = [configuration.as_bytes(), b"\0"].concat();
    for number in [BYTE_ORDER, FLAGS, 0, text.len() as u32 + 4, text.len() as u32] {
        out.extend(number.to_le_bytes());
    }
    out.extend(&text);
    let record = |out: &mut Vec<u8>, kind: u32, body: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend((body.len() as u32).to_le_bytes());
        out.extend(body);
        out.resize(out.len() + (body.len().next_multiple_of(8) - body.len()), 0);
    };
    out.extend(LIBXL_IDENT);
    out.extend([0; 4]);
    record(&mut out, LIBXL_LIBXC_CONTEXT, b"");
    out.extend(LIBXC_IDENT);
    out.extend([0; 28]);
    record(&mut out, 1, &vec![0; pages]);
    record(&mut out, 9, b"context");
    record(&mut out, LIBXC_END, b"");
    record(&mut out, 2, b"xenstore");
    record(&mut out, LIBXL_END, b"");
    out
}
