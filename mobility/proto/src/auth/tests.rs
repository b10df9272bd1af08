use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;
use crate::wire::*;

const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
const CARE_OF: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x20);
const AGENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const ENDS: Endpoints = Endpoints { source: HOME, destination: AGENT };
const WITH_HOME: Covered = Covered { care_of: CARE_OF, peer: HOME };
const WITH_CORRESPONDENT: Covered = Covered { care_of: CARE_OF, peer: AGENT };

/// What is behind the proof of 128 bits in [`update`].
const PADDING: usize = 4;

fn update() -> Repr {
    let update = BindingUpdate {
        sequence: SequenceNumber(1),
        flags: BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::HOME_REGISTRATION,
        lifetime: BindingLifetime(15),
    };
    let identifier = b"node@example.org".to_vec();
    let options = vec![
        MobilityOption::MobileNodeIdentifier { kind: IdentifierType::NAI, identifier },
        MobilityOption::MessageIdentification(NtpTimestamp(0x0123_4567_89ab_cdef)),
    ];
    Repr { message: Message::BindingUpdate(update), options }
}

fn shared(algorithm: Algorithm) -> SharedKey {
    SharedKey::new(0x1234, algorithm, b"0123456789abcdef")
}

fn binding_key() -> BindingKey {
    BindingKey::new(*b"hometokn", Some(*b"careoftk"))
}

fn header(bytes: &[u8]) -> MobilityHeader<'_> {
    MobilityHeader::new_checked(bytes).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The expected values were made by Python's hmac and hashlib, over bytes written down by hand from RFC 4285 section 5.1
/// and RFC 6275 sections 5.2.5 and 6.2.7.
#[test]
fn proofs_are_those_that_python_makes() {
    let bytes = shared(Algorithm::HmacSha1_96).emit(&update(), ENDS, WITH_HOME).unwrap();
    assert_eq!(hex(&bytes[bytes.len() - 12..]), "e3d30a0c598c0ff6c346dce8");
    let bytes = shared(Algorithm::HmacSha256_128).emit(&update(), ENDS, WITH_HOME).unwrap();
    assert_eq!(hex(&bytes[bytes.len() - 20..]), "41bce39de3e0f4b1e25aab6200d4fbf601020000");

    let correspondent = CorrespondentKey(*b"twenty random bytes.");
    let home = correspondent.home_token(HOME, b"nonce--1");
    let care_of = correspondent.care_of_token(CARE_OF, b"nonce--2");
    assert_eq!((hex(&home), hex(&care_of)), ("17e82aea22d936e3".to_owned(), "f9fa6d52be7c4add".to_owned()));
    let mut repr = update();
    repr.options = vec![MobilityOption::NonceIndices { home: 1, care_of: 2 }];
    let bytes = BindingKey::new(home, Some(care_of)).emit(&repr, ENDS, WITH_CORRESPONDENT).unwrap();
    assert_eq!(hex(&bytes[bytes.len() - 12..]), "071d47adbf21cb4ec84ce613");
}

#[test]
fn a_proof_is_accepted_by_its_receiver_only() {
    for algorithm in [Algorithm::HmacSha1_96, Algorithm::HmacSha256_128] {
        let key = shared(algorithm);
        let bytes = key.emit(&update(), ENDS, WITH_HOME).unwrap();
        let read = Repr::parse(&header(&bytes), ENDS).unwrap();
        assert_eq!(read.options[..2], update().options[..]);
        assert_eq!(key.verify(&header(&bytes), WITH_HOME), Ok(()));
        assert_eq!(key.verify(&header(&bytes), WITH_CORRESPONDENT), Err(VerifyError::Wrong));
        let other = SharedKey::new(0x1234, algorithm, b"0123456789abcdeF");
        assert_eq!(other.verify(&header(&bytes), WITH_HOME), Err(VerifyError::Wrong));
        let other = SharedKey::new(0x1235, algorithm, b"0123456789abcdef");
        assert_eq!(other.verify(&header(&bytes), WITH_HOME), Err(VerifyError::OtherKey(0x1234)));
    }
    let weaker = shared(Algorithm::HmacSha1_96).emit(&update(), ENDS, WITH_HOME).unwrap();
    let stronger = shared(Algorithm::HmacSha256_128);
    assert_eq!(stronger.verify(&header(&weaker), WITH_HOME), Err(VerifyError::Wrong));
    let plain = update().emit(ENDS).unwrap();
    assert_eq!(stronger.verify(&header(&plain), WITH_HOME), Err(VerifyError::Missing));
    assert_eq!(binding_key().verify(&header(&plain), WITH_HOME), Err(VerifyError::Missing));
    assert_eq!(binding_key().verify(&header(&weaker), WITH_HOME), Err(VerifyError::Missing));
}

#[test]
fn nothing_can_be_added_behind_a_proof() {
    let key = shared(Algorithm::HmacSha256_128);
    let bytes = key.emit(&update(), ENDS, WITH_HOME).unwrap();
    let mut read = Repr::parse(&header(&bytes), ENDS).unwrap();
    read.options.push(MobilityOption::AlternateCareOfAddress(AGENT));
    let longer = read.emit(ENDS).unwrap();
    assert_eq!(key.verify(&header(&longer), WITH_HOME), Err(VerifyError::Missing));
    // The padding made into an option, with the header's length as it was.
    let mut changed = bytes.clone();
    let at = changed.len() - PADDING;
    assert_eq!(changed[at..], [1, 2, 0, 0]);
    changed[at] = 200;
    assert_eq!(key.verify(&header(&changed), WITH_HOME), Err(VerifyError::Missing));
}

#[test]
fn a_proof_that_is_right_but_short_is_refused() {
    let of_bytes = |len: usize| {
        let option = MobilityOption::Authentication {
            kind: AuthenticationType::MN_HA,
            spi: 0x1234,
            authenticator: vec![0; len],
        };
        let prove = |before: &[u8], proof: &mut [u8]| {
            let code = hmac_of::<sha1::Sha1>(b"0123456789abcdef", WITH_HOME, before).finalize().into_bytes();
            proof.copy_from_slice(&code[..len]);
        };
        let bytes = update().emit_proved(option, ENDS, prove).unwrap();
        shared(Algorithm::HmacSha1_96).verify(&header(&bytes), WITH_HOME)
    };
    assert_eq!(of_bytes(0), Err(VerifyError::Missing));
    for len in [1, 11, 13, 20] {
        assert_eq!(of_bytes(len), Err(VerifyError::Wrong), "{len} bytes");
    }
    assert_eq!(of_bytes(12), Ok(()));
}

#[test]
fn return_routability_ends_in_a_binding_update_that_holds() {
    let correspondent = CorrespondentKey(*b"twenty random bytes.");
    let (home_nonce, care_of_nonce) = (*b"nonce--1", *b"nonce--2");
    let home = correspondent.home_token(HOME, &home_nonce);
    let care_of = correspondent.care_of_token(CARE_OF, &care_of_nonce);
    assert_ne!(correspondent.home_token(HOME, &home_nonce), correspondent.care_of_token(HOME, &home_nonce));
    let key = BindingKey::new(home, Some(care_of));
    let mut repr = update();
    repr.options = vec![MobilityOption::NonceIndices { home: 1, care_of: 2 }];
    let bytes = key.emit(&repr, ENDS, WITH_CORRESPONDENT).unwrap();
    // The correspondent makes the key again from the nonces it kept.
    let again = BindingKey::new(
        correspondent.home_token(HOME, &home_nonce),
        Some(correspondent.care_of_token(CARE_OF, &care_of_nonce)),
    );
    assert_eq!(again.verify(&header(&bytes), WITH_CORRESPONDENT), Ok(()));
    let deregistering = BindingKey::new(home, None);
    assert_eq!(deregistering.verify(&header(&bytes), WITH_CORRESPONDENT), Err(VerifyError::Wrong));
}

#[test]
fn keys_are_not_printed() {
    let shown = format!(
        "{:?} {:?} {:?}",
        SharedKey::new(300, Algorithm::HmacSha1_96, b"SECRET"),
        CorrespondentKey(*b"SECRETSECRETSECRETSE"),
        binding_key()
    );
    let secret = format!("{:?}", b"SECRET");
    assert!(!shown.contains(secret.trim_matches(['[', ']'])) && shown.contains("300"), "{shown}");
}

proptest! {
    #[test]
    fn every_byte_that_is_covered_counts(at in any::<prop::sample::Index>(), change in 1_u8..) {
        let (shared, binding) = (shared(Algorithm::HmacSha256_128), binding_key());
        let mut bytes = shared.emit(&update(), ENDS, WITH_HOME).unwrap();
        let mut bound = binding.emit(&update(), ENDS, WITH_CORRESPONDENT).unwrap();
        for (bytes, is_shared) in [(&mut bytes, true), (&mut bound, false)] {
            let at = at.index(bytes.len());
            // The checksum is covered as zero, and padding behind the proof is nothing.
            let padding = if is_shared { PADDING } else { 0 };
            prop_assume!(!(4..6).contains(&at) && at < bytes.len() - padding);
            bytes[at] ^= change;
            if let Ok(header) = MobilityHeader::new_checked(bytes) {
                let verified = if is_shared {
                    shared.verify(&header, WITH_HOME)
                } else {
                    binding.verify(&header, WITH_CORRESPONDENT)
                };
                prop_assert!(verified.is_err(), "byte {}", at);
            }
        }
    }

    #[test]
    fn any_bytes_are_checked_without_panic(bytes in prop::collection::vec(any::<u8>(), 8..120), kind in 0_u8..22) {
        let mut bytes = bytes;
        bytes[1] = (bytes.len() / 8 - 1) as u8;
        bytes[2] = kind;
        let header = header(&bytes);
        prop_assert!(shared(Algorithm::HmacSha1_96).verify(&header, WITH_HOME).is_err());
        prop_assert!(binding_key().verify(&header, WITH_CORRESPONDENT).is_err());
    }
}
