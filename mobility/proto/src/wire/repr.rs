//! What a Mobility Header says, as a value: parsed by the rules of RFC 6275 section 9.2, emitted with padding, lengths and
//! checksum. Acts on nothing; what has to be answered to an invalid message is said by [`ParseError::answer`].

use super::bytes::{Options, Reader, pad};
use super::checksum::checksum;
use super::error::{EmitError, ParseError};
use super::layout::{HEADER_LEN_AT, MAX_BYTES, NO_NEXT_HEADER};
use super::message::Unreadable;
use super::{Endpoints, Message, MobilityHeader, MobilityOption, OptionType};

/// A message with its options, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repr {
    /// The message.
    pub message: Message,
    /// Its options.
    pub options: Vec<MobilityOption>,
}

impl Repr {
    /// Reads a message, with the checks of RFC 6275 section 9.2 in their order.
    ///
    /// # Errors
    /// [`ParseError`]; its [`answer`](ParseError::answer) says what the sender is told.
    pub fn parse(header: &MobilityHeader<'_>, ends: Endpoints) -> Result<Self, ParseError> {
        if !header.is_intact(ends) {
            return Err(ParseError::Checksum);
        }
        let kind = header.mh_type();
        let mut r = Reader::new(header.data());
        let message = match Message::parse(kind, &mut r) {
            Err(Unreadable::UnknownType) => return Err(ParseError::UnknownType(kind)),
            _ if header.payload_proto() != NO_NEXT_HEADER => {
                return Err(ParseError::PayloadProto(header.payload_proto()));
            }
            Err(Unreadable::TooShort) => {
                return Err(ParseError::TooShort { kind, len: header.as_bytes().len() });
            }
            Err(Unreadable::UnknownRevocation(other)) => return Err(ParseError::UnknownRevocation(other)),
            Ok(message) => message,
        };
        let options = r.rest();
        let offset = header.as_bytes().len() - options.len();
        Ok(Self { message, options: MobilityOption::parse_all(options, offset)? })
    }

    /// The Mobility Header, padded, with its checksum.
    ///
    /// # Errors
    /// [`EmitError`] when an option or the whole is too long, or an option could not be read back.
    pub fn emit(&self, ends: Endpoints) -> Result<Vec<u8>, EmitError> {
        let (mut out, _) = self.emit_unsummed(None)?;
        fill_checksum(&mut out, ends);
        Ok(out)
    }

    /// As [`emit`](Self::emit), with one option more that proves the others: `prove` gets all that comes before the
    /// option's authenticator, with a checksum of zero, and fills in the authenticator, for which `option` has zeros.
    pub(crate) fn emit_proved(
        &self,
        option: MobilityOption,
        ends: Endpoints,
        prove: impl FnOnce(&[u8], &mut [u8]),
    ) -> Result<Vec<u8>, EmitError> {
        let authenticator_bytes = match &option {
            MobilityOption::Authentication { authenticator, .. } => authenticator.len(),
            MobilityOption::BindingAuthorizationData(authenticator) => authenticator.len(),
            _ => 0,
        };
        let (mut out, end) = self.emit_unsummed(Some(&option))?;
        let (before, authenticator) = out[..end].split_at_mut(end - authenticator_bytes);
        prove(before, authenticator);
        fill_checksum(&mut out, ends);
        Ok(out)
    }

    /// The Mobility Header with a checksum of zero, and where its last option ends: behind that there is only padding.
    fn emit_unsummed(&self, last: Option<&MobilityOption>) -> Result<(Vec<u8>, usize), EmitError> {
        let mut out = vec![NO_NEXT_HEADER, 0, self.message.kind().0, 0, 0, 0];
        self.message.emit(&mut out);
        for option in self.options.iter().chain(last) {
            option.emit(&mut out)?;
            // Before many long options are written for nothing.
            if out.len() > MAX_BYTES {
                return Err(EmitError::TooLong(out.len()));
            }
        }
        let end = out.len();
        pad(&mut out, (8, 0));
        // Fits: at most MAX_BYTES, which is a multiple of 8.
        out[HEADER_LEN_AT] = (out.len() / 8 - 1) as u8;
        Ok((out, end))
    }

    /// Where in the header the data of the last option that is no padding begins, and that data, when the option is of
    /// this type.
    pub(crate) fn last_option<'a>(
        header: &MobilityHeader<'a>,
        kind: OptionType,
    ) -> Option<(usize, &'a [u8])> {
        let mut r = Reader::new(header.data());
        Message::parse(header.mh_type(), &mut r).ok()?;
        let options = r.rest();
        let offset = header.as_bytes().len() - options.len();
        let mut last = None;
        for raw in Options::new(options) {
            let raw = raw?;
            if ![OptionType::PAD1.0, OptionType::PADN.0].contains(&raw.kind) {
                last = Some(raw);
            }
        }
        last.filter(|raw| raw.kind == kind.0).map(|raw| (offset + raw.at + 2, raw.data))
    }
}

/// Puts the checksum into a Mobility Header that has zeros there.
fn fill_checksum(message: &mut [u8], ends: Endpoints) {
    let at = MobilityHeader::CHECKSUM_AT;
    let sum = checksum(ends, message);
    message[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
