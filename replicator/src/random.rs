//! Random bytes: keys and names. They are the kernel's or there are none.

use rustix::rand::{GetRandomFlags, getrandom};

/// `N` of them, at most 256.
///
/// # Panics
/// When the kernel gives fewer. It gives so many once it has been seeded, and waits until then (getrandom(2)); what is made of
/// zeroes instead would be a key that everybody knows.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    const { assert!(N <= 256) };
    let mut bytes = [0; N];
    let count = getrandom(&mut bytes, GetRandomFlags::empty());
    assert_eq!(count, Ok(N), "the kernel's random numbers");
    bytes
}
