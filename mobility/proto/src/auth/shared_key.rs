//! The Mobility Message Authentication option with a key shared by mobile node and home agent, MN-HA (RFC 4285 section
//! 5.1). Never prints a key.

use std::fmt;

use hmac::Mac;
use sha1::Sha1;
use sha2::Sha256;

use super::{Covered, VerifyError, hmac_of};
use crate::wire::{
    AuthenticationType, EmitError, Endpoints, MobilityHeader, MobilityOption, OptionType, Repr,
};

/// How the authenticator is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// The first 96 bits of HMAC-SHA1: what RFC 4285 asks for, to work with others.
    HmacSha1_96,
    /// The first 128 bits of HMAC-SHA-256, as RFC 4868 truncates it: where both ends are ours.
    HmacSha256_128,
}

impl Algorithm {
    /// The authenticator's length in bytes.
    #[must_use]
    pub fn authenticator_bytes(self) -> usize {
        match self {
            Self::HmacSha1_96 => 12,
            Self::HmacSha256_128 => 16,
        }
    }
}

/// A key that a mobile node and its home agent share.
#[derive(Clone)]
pub struct SharedKey {
    spi: u32,
    algorithm: Algorithm,
    key: Vec<u8>,
}

/// Without the key.
impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spi, algorithm, key: _ } = self;
        f.debug_struct("SharedKey").field("spi", spi).field("algorithm", algorithm).finish_non_exhaustive()
    }
}

impl SharedKey {
    /// `spi` is the number both ends know the key and the algorithm by; those up to 255 are reserved (RFC 4285 section 5).
    #[must_use]
    pub fn new(spi: u32, algorithm: Algorithm, key: &[u8]) -> Self {
        Self { spi, algorithm, key: key.to_vec() }
    }

    /// The number both ends know it by.
    #[must_use]
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// Emits the message with the authentication option behind its options.
    ///
    /// # Errors
    /// As [`Repr::emit`].
    pub fn emit(&self, repr: &Repr, ends: Endpoints, covered: Covered) -> Result<Vec<u8>, EmitError> {
        let option = MobilityOption::Authentication {
            kind: AuthenticationType::MN_HA,
            spi: self.spi,
            authenticator: vec![0; self.algorithm.authenticator_bytes()],
        };
        repr.emit_proved(option, ends, |before, authenticator| {
            let code = match self.algorithm {
                Algorithm::HmacSha1_96 => {
                    hmac_of::<Sha1>(&self.key, covered, before).finalize().into_bytes().to_vec()
                }
                Algorithm::HmacSha256_128 => {
                    hmac_of::<Sha256>(&self.key, covered, before).finalize().into_bytes().to_vec()
                }
            };
            authenticator.copy_from_slice(&code[..authenticator.len()]);
        })
    }

    /// Checks the authentication option of a message that came.
    ///
    /// # Errors
    /// [`VerifyError`]; nothing in the message may then be believed.
    pub fn verify(&self, header: &MobilityHeader<'_>, covered: Covered) -> Result<(), VerifyError> {
        let fixed = 5;
        let (before, data) = Repr::last_option(header, OptionType::AUTHENTICATION)
            .filter(|(_, data)| data.len() > fixed && data[0] == AuthenticationType::MN_HA.0)
            .ok_or(VerifyError::Missing)?;
        let spi = u32::from_be_bytes([data[1], data[2], data[3], data[4]]);
        if spi != self.spi {
            return Err(VerifyError::OtherKey(spi));
        }
        let authenticator = &data[fixed..];
        // A shorter one would be easier to guess.
        if authenticator.len() != self.algorithm.authenticator_bytes() {
            return Err(VerifyError::Wrong);
        }
        let before = &header.as_bytes()[..before + fixed];
        let verified = match self.algorithm {
            Algorithm::HmacSha1_96 => {
                hmac_of::<Sha1>(&self.key, covered, before).verify_truncated_left(authenticator)
            }
            Algorithm::HmacSha256_128 => {
                hmac_of::<Sha256>(&self.key, covered, before).verify_truncated_left(authenticator)
            }
        };
        verified.map_err(|_| VerifyError::Wrong)
    }
}
