//! Is this block all zero? Asked for every block of every image, so it runs at memory speed. It never allocates.

/// Bytes looked at between two chances to stop early.
const STRIDE: usize = 256;

/// True when every byte of `data` is zero; true for an empty slice.
pub fn is_zero(data: &[u8]) -> bool {
    let mut strides = data.chunks_exact(STRIDE);
    strides.by_ref().all(stride_is_zero) && strides.remainder().iter().all(|byte| *byte == 0)
}

/// OR of a fixed number of words: the shape that the compiler turns into vector instructions.
#[inline]
fn stride_is_zero(stride: &[u8]) -> bool {
    let (words, _) = stride.as_chunks::<16>();
    words.iter().fold(0, |seen, word| seen | u128::from_ne_bytes(*word)) == 0
}

#[cfg(test)]
mod tests;
