//! The arithmetic of the return-routability procedure (RFC 6275 section 5.2): the tokens a correspondent gives, the key
//! that follows from them, and the binding authorization data made with it. Keeps no nonces and counts no time.

use std::fmt;
use std::net::Ipv6Addr;

use hmac::Mac;
use sha1::{Digest, Sha1};

use super::{Covered, VerifyError, hmac_of, keyed};
use crate::wire::{
    BINDING_AUTHENTICATOR_BYTES, EmitError, Endpoints, KeygenToken, MobilityHeader, MobilityOption,
    OptionType, Repr,
};

/// A correspondent's secret, Kcn (RFC 6275 section 5.2.1): 20 random bytes.
#[derive(Clone)]
pub struct CorrespondentKey(pub [u8; 20]);

/// Without the key.
impl fmt::Debug for CorrespondentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CorrespondentKey(..)")
    }
}

impl CorrespondentKey {
    /// The token that answers a Home Test Init from this address (RFC 6275 section 5.2.5). `nonce` is random, 8 bytes or
    /// more.
    #[must_use]
    pub fn home_token(&self, home_address: Ipv6Addr, nonce: &[u8]) -> KeygenToken {
        self.token(home_address, nonce, 0)
    }

    /// The token that answers a Care-of Test Init from this address (RFC 6275 section 5.2.5).
    #[must_use]
    pub fn care_of_token(&self, care_of_address: Ipv6Addr, nonce: &[u8]) -> KeygenToken {
        self.token(care_of_address, nonce, 1)
    }

    fn token(&self, address: Ipv6Addr, nonce: &[u8], last: u8) -> KeygenToken {
        let mut mac = keyed::<Sha1>(&self.0);
        for part in [&address.octets()[..], nonce, &[last]] {
            Mac::update(&mut mac, part);
        }
        let mut token = KeygenToken::default();
        token.copy_from_slice(&mac.finalize().into_bytes()[..8]);
        token
    }
}

/// The binding management key, Kbm (RFC 6275 section 5.2.5).
#[derive(Clone)]
pub struct BindingKey([u8; 20]);

/// Without the key.
impl fmt::Debug for BindingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BindingKey(..)")
    }
}

impl BindingKey {
    /// The key that follows from both tokens; from the home token alone for deregistering at home.
    #[must_use]
    pub fn new(home: KeygenToken, care_of: Option<KeygenToken>) -> Self {
        let mut hash = Sha1::new();
        hash.update(home);
        hash.update(care_of.as_ref().map_or(&[][..], |token| token));
        Self(hash.finalize().into())
    }

    /// Emits the message with binding authorization data behind its options (RFC 6275 section 6.2.7).
    ///
    /// # Errors
    /// As [`Repr::emit`].
    pub fn emit(&self, repr: &Repr, ends: Endpoints, covered: Covered) -> Result<Vec<u8>, EmitError> {
        let option = MobilityOption::BindingAuthorizationData([0; BINDING_AUTHENTICATOR_BYTES]);
        repr.emit_proved(option, ends, |before, authenticator| {
            let code = hmac_of::<Sha1>(&self.0, covered, before).finalize().into_bytes();
            authenticator.copy_from_slice(&code[..BINDING_AUTHENTICATOR_BYTES]);
        })
    }

    /// Checks the binding authorization data of a message that came.
    ///
    /// # Errors
    /// [`VerifyError`]; nothing in the message may then be believed.
    pub fn verify(&self, header: &MobilityHeader<'_>, covered: Covered) -> Result<(), VerifyError> {
        let (before, authenticator) = Repr::last_option(header, OptionType::BINDING_AUTHORIZATION_DATA)
            .filter(|(_, data)| data.len() == BINDING_AUTHENTICATOR_BYTES)
            .ok_or(VerifyError::Missing)?;
        // Its alignment leaves no room for padding behind it, which would be covered too.
        if before + authenticator.len() != header.as_bytes().len() {
            return Err(VerifyError::Missing);
        }
        hmac_of::<Sha1>(&self.0, covered, &header.as_bytes()[..before])
            .verify_truncated_left(authenticator)
            .map_err(|_| VerifyError::Wrong)
    }
}
