//! Mobility options: what a Mobility Header carries behind its fixed part. Knows the layout and the alignment of each;
//! never what an option means for a binding. An option of a type that is not known is kept as it came.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bytes::{Options, Reader, pad};
use super::error::{EmitError, ParseError};
use super::numbers::*;
use super::units::*;

/// The length of the authenticator in a Binding Authorization Data option, in bytes.
pub const BINDING_AUTHENTICATOR_BYTES: usize = 12;

/// A mobility option. Padding is none: it is skipped when read and put where it is needed when written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MobilityOption {
    /// The home agent would like to be asked again after this time (RFC 6275 section 6.2.4).
    BindingRefreshAdvice(BindingLifetime),
    /// The care-of address, when it is not the packet's source (RFC 6275 section 6.2.5).
    AlternateCareOfAddress(Ipv6Addr),
    /// Which nonces the keygen tokens were made with (RFC 6275 section 6.2.6).
    NonceIndices {
        /// Index of the nonce for the home keygen token.
        home: u16,
        /// Index of the nonce for the care-of keygen token.
        care_of: u16,
    },
    /// Proof of a return-routability test; the last option (RFC 6275 section 6.2.7). Made and checked in
    /// [`auth`](crate::auth).
    BindingAuthorizationData([u8; BINDING_AUTHENTICATOR_BYTES]),
    /// A prefix that moves with a mobile router (RFC 3963 section 4.3).
    MobileNetworkPrefix(Ipv6Prefix),
    /// A link-layer address, and in `code` whose it is (RFC 5568 section 6.4.4).
    LinkLayerAddress {
        /// Whose address: 2 for the mobile node's.
        code: u8,
        /// The address, at most 254 bytes.
        address: Vec<u8>,
    },
    /// The mobile node's name (RFC 4283 section 3).
    MobileNodeIdentifier {
        /// What kind of name.
        kind: IdentifierType,
        /// The name, 1 to 254 bytes.
        identifier: Vec<u8>,
    },
    /// Proof of a shared key (RFC 4285 section 5). Made and checked in [`auth`](crate::auth).
    Authentication {
        /// Whose key.
        kind: AuthenticationType,
        /// Which key and algorithm.
        spi: u32,
        /// The proof, at most 250 bytes; 12 for HMAC-SHA1-96.
        authenticator: Vec<u8>,
    },
    /// The time of sending, against replay (RFC 4285 section 6).
    MessageIdentification(NtpTimestamp),
    /// What a vendor defines (RFC 5094 section 3).
    VendorSpecific {
        /// The vendor's private enterprise number.
        vendor: u32,
        /// The vendor's own type.
        kind: u8,
        /// The vendor's own data, at most 250 bytes.
        data: Vec<u8>,
    },
    /// A prefix assigned to the mobile node; `::/0` asks for one (RFC 5213 section 8.3).
    HomeNetworkPrefix(Ipv6Prefix),
    /// What kind of hand-off happened (RFC 5213 section 8.4).
    HandoffIndicator(HandoffIndicator),
    /// By what the mobile node is attached (RFC 5213 section 8.5).
    AccessTechnologyType(AccessTechnology),
    /// The link-layer identifier of the mobile node's interface, at most 253 bytes (RFC 5213 section 8.6).
    LinkLayerIdentifier(Vec<u8>),
    /// The link-local address that every gateway uses on the mobile node's link (RFC 5213 section 8.7).
    LinkLocalAddress(Ipv6Addr),
    /// When the proxy registration was sent (RFC 5213 section 8.8).
    Timestamp(Timestamp),
    /// How often the sender has started (RFC 5847 section 4.1).
    RestartCounter(u32),
    /// The IPv4 home address (RFC 5555 section 3.1.1).
    Ipv4HomeAddress {
        /// The address; `0.0.0.0` asks for one.
        interface: Ipv4Interface,
        /// P: the prefix too is asked for.
        prefix: bool,
    },
    /// What became of the IPv4 home address (RFC 5555 section 3.2.1).
    Ipv4AddressAcknowledgement {
        /// The result.
        status: Ipv4AddressStatus,
        /// The address it is about.
        interface: Ipv4Interface,
    },
    /// There is a NAT in between (RFC 5555 section 3.2.2).
    NatDetection {
        /// F: use UDP encapsulation even without a NAT.
        force: bool,
        /// How often to send something to keep the NAT's state, in seconds.
        refresh_s: u32,
    },
    /// The IPv4 care-of address (RFC 5555 section 3.1.2).
    Ipv4CareOfAddress(Ipv4Addr),
    /// An address or a prefix, and in `code` what it is (RFC 5568 section 6.4.2).
    Ipv6AddressPrefix {
        /// What it is: 1 the old care-of address, 2 the new one, 3 the new router's address, 4 its prefix.
        code: u8,
        /// How much of the address is a prefix, in bits.
        prefix_len: u8,
        /// The address.
        address: Ipv6Addr,
    },
    /// An IPv4 home address is asked for (RFC 5844 section 3.3.1).
    Ipv4HomeAddressRequest(Ipv4Interface),
    /// What became of that (RFC 5844 section 3.3.2).
    Ipv4HomeAddressReply {
        /// The result.
        status: Ipv4AddressStatus,
        /// The address it is about.
        interface: Ipv4Interface,
    },
    /// The mobile node's IPv4 default router on its link (RFC 5844 section 3.3.3).
    Ipv4DefaultRouterAddress(Ipv4Addr),
    /// Which options the other gateway shall send (RFC 5949 section 6.2.1).
    ContextRequest(Vec<ContextItem>),
    /// The anchor that serves the mobile node (RFC 5949 section 6.2.2).
    LocalMobilityAnchorAddress(IpAddr),
    /// The interface identifier of the mobile node's link-local address (RFC 5949 section 6.2.3).
    LinkLocalInterfaceIdentifier([u8; 8]),
    /// The registration is transient: make before break (RFC 6058 section 5.1).
    TransientBinding {
        /// L: packets go the old way until the binding is activated.
        late_path_switch: bool,
        /// How long the transient state may last.
        lifetime: TransientLifetime,
    },
    /// The gateway to route to directly (RFC 6705 section 9.3).
    MagIpv6Address(Ipv6Addr),
    /// Where the anchor takes tunnelled packets, when not where it takes signalling (RFC 7389 section 4.1).
    LmaUserPlaneAddress(IpAddr),
    /// An option whose type is not known: kept, to be skipped.
    Unknown {
        /// Its type.
        kind: OptionType,
        /// Its data, at most 255 bytes.
        data: Vec<u8>,
    },
}

/// One thing that a Context Request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextItem {
    /// The type of the option asked for.
    pub kind: OptionType,
    /// Which one of that type: empty except for a vendor's.
    pub data: Vec<u8>,
}

impl MobilityOption {
    /// Reads the options in `bytes`, which begin `offset` bytes into the Mobility Header.
    pub(super) fn parse_all(bytes: &[u8], offset: usize) -> Result<Vec<Self>, ParseError> {
        let mut options = Vec::new();
        let mut at = 0;
        for raw in Options::new(bytes) {
            let Some(raw) = raw else { return Err(ParseError::OptionCutOff { at: offset + at }) };
            at = raw.at + raw.data.len() + usize::from(raw.kind != 0) + 1;
            let kind = OptionType(raw.kind);
            if kind != OptionType::PAD1 && kind != OptionType::PADN {
                let option = Self::parse(kind, raw.data);
                options.push(option.ok_or(ParseError::Option { kind, at: offset + raw.at })?);
            }
        }
        Ok(options)
    }

    fn parse(kind: OptionType, data: &[u8]) -> Option<Self> {
        let mut r = Reader::new(data);
        let option = match kind {
            OptionType::BINDING_REFRESH_ADVICE => Self::BindingRefreshAdvice(BindingLifetime(r.u16()?)),
            OptionType::ALTERNATE_CARE_OF_ADDRESS => Self::AlternateCareOfAddress(r.ipv6()?),
            OptionType::NONCE_INDICES => Self::NonceIndices { home: r.u16()?, care_of: r.u16()? },
            OptionType::BINDING_AUTHORIZATION_DATA => Self::BindingAuthorizationData(r.array()?),
            OptionType::MOBILE_NETWORK_PREFIX => Self::MobileNetworkPrefix(parse_prefix(&mut r)?),
            OptionType::LINK_LAYER_ADDRESS => {
                Self::LinkLayerAddress { code: r.u8()?, address: r.rest().to_vec() }
            }
            OptionType::MOBILE_NODE_IDENTIFIER if data.len() > 1 => {
                let kind = IdentifierType(r.u8()?);
                Self::MobileNodeIdentifier { kind, identifier: r.rest().to_vec() }
            }
            OptionType::MOBILE_NODE_IDENTIFIER => return None,
            OptionType::AUTHENTICATION => Self::Authentication {
                kind: AuthenticationType(r.u8()?),
                spi: r.u32()?,
                authenticator: r.rest().to_vec(),
            },
            OptionType::MESSAGE_IDENTIFICATION => Self::MessageIdentification(NtpTimestamp(r.u64()?)),
            OptionType::VENDOR_SPECIFIC => {
                Self::VendorSpecific { vendor: r.u32()?, kind: r.u8()?, data: r.rest().to_vec() }
            }
            OptionType::HOME_NETWORK_PREFIX => Self::HomeNetworkPrefix(parse_prefix(&mut r)?),
            OptionType::HANDOFF_INDICATOR => {
                r.u8()?;
                Self::HandoffIndicator(HandoffIndicator(r.u8()?))
            }
            OptionType::ACCESS_TECHNOLOGY_TYPE => {
                r.u8()?;
                Self::AccessTechnologyType(AccessTechnology(r.u8()?))
            }
            OptionType::LINK_LAYER_IDENTIFIER => {
                r.u16()?;
                Self::LinkLayerIdentifier(r.rest().to_vec())
            }
            OptionType::LINK_LOCAL_ADDRESS => Self::LinkLocalAddress(r.ipv6()?),
            OptionType::TIMESTAMP => Self::Timestamp(Timestamp(r.u64()?)),
            OptionType::RESTART_COUNTER => Self::RestartCounter(r.u32()?),
            _ => return Self::parse_extension(kind, data),
        };
        r.is_empty().then_some(option)
    }

    /// The options for IPv4, for fast handovers and of the later RFCs.
    fn parse_extension(kind: OptionType, data: &[u8]) -> Option<Self> {
        let mut r = Reader::new(data);
        let option = match kind {
            OptionType::IPV4_HOME_ADDRESS => {
                let bits = r.u16()?;
                let interface = Ipv4Interface::new(r.ipv4()?, (bits >> 10) as u8)?;
                Self::Ipv4HomeAddress { interface, prefix: bits & 0x0200 != 0 }
            }
            OptionType::IPV4_ADDRESS_ACKNOWLEDGEMENT => {
                let (status, interface) = parse_ipv4_result(&mut r)?;
                Self::Ipv4AddressAcknowledgement { status, interface }
            }
            OptionType::NAT_DETECTION => {
                Self::NatDetection { force: r.u16()? & 0x8000 != 0, refresh_s: r.u32()? }
            }
            OptionType::IPV4_CARE_OF_ADDRESS => {
                r.u16()?;
                Self::Ipv4CareOfAddress(r.ipv4()?)
            }
            OptionType::IPV6_ADDRESS_PREFIX => {
                Self::Ipv6AddressPrefix { code: r.u8()?, prefix_len: r.u8()?, address: r.ipv6()? }
            }
            OptionType::IPV4_HOME_ADDRESS_REQUEST => {
                let prefix_len = (r.u16()? >> 10) as u8;
                Self::Ipv4HomeAddressRequest(Ipv4Interface::new(r.ipv4()?, prefix_len)?)
            }
            OptionType::IPV4_HOME_ADDRESS_REPLY => {
                let (status, interface) = parse_ipv4_result(&mut r)?;
                Self::Ipv4HomeAddressReply { status, interface }
            }
            OptionType::IPV4_DEFAULT_ROUTER_ADDRESS => {
                r.u16()?;
                Self::Ipv4DefaultRouterAddress(r.ipv4()?)
            }
            OptionType::CONTEXT_REQUEST => {
                r.u16()?;
                Self::ContextRequest(parse_context(&mut r)?)
            }
            OptionType::LOCAL_MOBILITY_ANCHOR_ADDRESS => {
                let code = r.u16()? >> 8;
                match code {
                    1 => Self::LocalMobilityAnchorAddress(r.ipv6()?.into()),
                    2 => Self::LocalMobilityAnchorAddress(r.ipv4()?.into()),
                    _ => return None,
                }
            }
            OptionType::LINK_LOCAL_INTERFACE_IDENTIFIER => {
                r.u16()?;
                Self::LinkLocalInterfaceIdentifier(r.array()?)
            }
            OptionType::TRANSIENT_BINDING => {
                let late_path_switch = r.u8()? & 1 != 0;
                Self::TransientBinding { late_path_switch, lifetime: TransientLifetime(r.u8()?) }
            }
            OptionType::MAG_IPV6_ADDRESS if data.get(1) == Some(&128) => {
                r.u16()?;
                Self::MagIpv6Address(r.ipv6()?)
            }
            OptionType::MAG_IPV6_ADDRESS => return None,
            OptionType::LMA_USER_PLANE_ADDRESS => {
                r.u16()?;
                let address = if data.len() == 6 { r.ipv4()?.into() } else { r.ipv6()?.into() };
                Self::LmaUserPlaneAddress(address)
            }
            _ => Self::Unknown { kind, data: r.rest().to_vec() },
        };
        r.is_empty().then_some(option)
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> OptionType {
        match self {
            Self::BindingRefreshAdvice(_) => OptionType::BINDING_REFRESH_ADVICE,
            Self::AlternateCareOfAddress(_) => OptionType::ALTERNATE_CARE_OF_ADDRESS,
            Self::NonceIndices { .. } => OptionType::NONCE_INDICES,
            Self::BindingAuthorizationData(_) => OptionType::BINDING_AUTHORIZATION_DATA,
            Self::MobileNetworkPrefix(_) => OptionType::MOBILE_NETWORK_PREFIX,
            Self::LinkLayerAddress { .. } => OptionType::LINK_LAYER_ADDRESS,
            Self::MobileNodeIdentifier { .. } => OptionType::MOBILE_NODE_IDENTIFIER,
            Self::Authentication { .. } => OptionType::AUTHENTICATION,
            Self::MessageIdentification(_) => OptionType::MESSAGE_IDENTIFICATION,
            Self::VendorSpecific { .. } => OptionType::VENDOR_SPECIFIC,
            Self::HomeNetworkPrefix(_) => OptionType::HOME_NETWORK_PREFIX,
            Self::HandoffIndicator(_) => OptionType::HANDOFF_INDICATOR,
            Self::AccessTechnologyType(_) => OptionType::ACCESS_TECHNOLOGY_TYPE,
            Self::LinkLayerIdentifier(_) => OptionType::LINK_LAYER_IDENTIFIER,
            Self::LinkLocalAddress(_) => OptionType::LINK_LOCAL_ADDRESS,
            Self::Timestamp(_) => OptionType::TIMESTAMP,
            Self::RestartCounter(_) => OptionType::RESTART_COUNTER,
            Self::Ipv4HomeAddress { .. } => OptionType::IPV4_HOME_ADDRESS,
            Self::Ipv4AddressAcknowledgement { .. } => OptionType::IPV4_ADDRESS_ACKNOWLEDGEMENT,
            Self::NatDetection { .. } => OptionType::NAT_DETECTION,
            Self::Ipv4CareOfAddress(_) => OptionType::IPV4_CARE_OF_ADDRESS,
            Self::Ipv6AddressPrefix { .. } => OptionType::IPV6_ADDRESS_PREFIX,
            Self::Ipv4HomeAddressRequest(_) => OptionType::IPV4_HOME_ADDRESS_REQUEST,
            Self::Ipv4HomeAddressReply { .. } => OptionType::IPV4_HOME_ADDRESS_REPLY,
            Self::Ipv4DefaultRouterAddress(_) => OptionType::IPV4_DEFAULT_ROUTER_ADDRESS,
            Self::ContextRequest(_) => OptionType::CONTEXT_REQUEST,
            Self::LocalMobilityAnchorAddress(_) => OptionType::LOCAL_MOBILITY_ANCHOR_ADDRESS,
            Self::LinkLocalInterfaceIdentifier(_) => OptionType::LINK_LOCAL_INTERFACE_IDENTIFIER,
            Self::TransientBinding { .. } => OptionType::TRANSIENT_BINDING,
            Self::MagIpv6Address(_) => OptionType::MAG_IPV6_ADDRESS,
            Self::LmaUserPlaneAddress(_) => OptionType::LMA_USER_PLANE_ADDRESS,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    /// Appends the option, padding before it. `out` begins with the Mobility Header, so that alignment counts from its
    /// start.
    pub(super) fn emit(&self, out: &mut Vec<u8>) -> Result<(), EmitError> {
        let kind = self.kind();
        pad(out, alignment(kind));
        out.extend([kind.0, 0]);
        let start = out.len();
        self.emit_data(out);
        let len = out.len() - start;
        out[start - 1] = u8::try_from(len).map_err(|_| EmitError::OptionTooLong { kind, len })?;
        // What would not be read back as it is must not be sent.
        let is_pad = kind == OptionType::PAD1 || kind == OptionType::PADN;
        if is_pad || Self::parse(kind, &out[start..]).as_ref() != Some(self) {
            return Err(EmitError::OptionInvalid { kind });
        }
        Ok(())
    }

    fn emit_data(&self, out: &mut Vec<u8>) {
        match self {
            Self::BindingRefreshAdvice(interval) => out.extend(interval.0.to_be_bytes()),
            Self::AlternateCareOfAddress(address) | Self::LinkLocalAddress(address) => {
                out.extend(address.octets());
            }
            Self::NonceIndices { home, care_of } => {
                out.extend(home.to_be_bytes());
                out.extend(care_of.to_be_bytes());
            }
            Self::BindingAuthorizationData(authenticator) => out.extend(authenticator),
            Self::MobileNetworkPrefix(prefix) | Self::HomeNetworkPrefix(prefix) => {
                out.extend([0, prefix.len()]);
                out.extend(prefix.address().octets());
            }
            Self::LinkLayerAddress { code, address } => {
                out.push(*code);
                out.extend(address);
            }
            Self::MobileNodeIdentifier { kind, identifier } => {
                out.push(kind.0);
                out.extend(identifier);
            }
            Self::Authentication { kind, spi, authenticator } => {
                out.push(kind.0);
                out.extend(spi.to_be_bytes());
                out.extend(authenticator);
            }
            Self::MessageIdentification(NtpTimestamp(time)) | Self::Timestamp(Timestamp(time)) => {
                out.extend(time.to_be_bytes());
            }
            Self::VendorSpecific { vendor, kind, data } => {
                out.extend(vendor.to_be_bytes());
                out.push(*kind);
                out.extend(data);
            }
            Self::HandoffIndicator(indicator) => out.extend([0, indicator.0]),
            Self::AccessTechnologyType(technology) => out.extend([0, technology.0]),
            Self::LinkLayerIdentifier(identifier) => {
                out.extend([0, 0]);
                out.extend(identifier);
            }
            Self::RestartCounter(count) => out.extend(count.to_be_bytes()),
            Self::Ipv4HomeAddress { interface, prefix } => {
                out.extend([interface.prefix_len() << 2 | u8::from(*prefix) << 1, 0]);
                out.extend(interface.address().octets());
            }
            Self::Ipv4AddressAcknowledgement { status, interface }
            | Self::Ipv4HomeAddressReply { status, interface } => {
                out.extend([status.0, interface.prefix_len() << 2]);
                out.extend(interface.address().octets());
            }
            Self::NatDetection { force, refresh_s } => {
                out.extend([u8::from(*force) << 7, 0]);
                out.extend(refresh_s.to_be_bytes());
            }
            Self::Ipv4CareOfAddress(address) | Self::Ipv4DefaultRouterAddress(address) => {
                out.extend([0, 0]);
                out.extend(address.octets());
            }
            Self::Ipv6AddressPrefix { code, prefix_len, address } => {
                out.extend([*code, *prefix_len]);
                out.extend(address.octets());
            }
            Self::Ipv4HomeAddressRequest(interface) => {
                out.extend([interface.prefix_len() << 2, 0]);
                out.extend(interface.address().octets());
            }
            Self::ContextRequest(items) => {
                out.extend([0, 0]);
                for ContextItem { kind, data } in items {
                    // Too long for its length it is too long for the option, which is refused then.
                    out.extend([kind.0, data.len() as u8]);
                    out.extend(data);
                }
            }
            Self::LocalMobilityAnchorAddress(address) => {
                out.extend([if address.is_ipv6() { 1 } else { 2 }, 0]);
                emit_address(*address, out);
            }
            Self::LinkLocalInterfaceIdentifier(identifier) => {
                out.extend([0, 0]);
                out.extend(identifier);
            }
            Self::TransientBinding { late_path_switch, lifetime } => {
                out.extend([u8::from(*late_path_switch), lifetime.0]);
            }
            Self::MagIpv6Address(address) => {
                out.extend([0, 128]);
                out.extend(address.octets());
            }
            Self::LmaUserPlaneAddress(address) => {
                out.extend([0, 0]);
                emit_address(*address, out);
            }
            Self::Unknown { data, .. } => out.extend(data),
        }
    }
}

/// Where an option of this type may begin: `y` bytes past a multiple of `x`. From the option's own RFC; where that asks
/// for nothing, at once. Of those that it leaves open the addresses are aligned.
fn alignment(kind: OptionType) -> (usize, usize) {
    match kind {
        OptionType::BINDING_REFRESH_ADVICE | OptionType::NONCE_INDICES => (2, 0),
        OptionType::ALTERNATE_CARE_OF_ADDRESS | OptionType::LINK_LOCAL_ADDRESS => (8, 6),
        OptionType::BINDING_AUTHORIZATION_DATA
        | OptionType::MESSAGE_IDENTIFICATION
        | OptionType::TIMESTAMP => (8, 2),
        OptionType::AUTHENTICATION => (4, 1),
        OptionType::VENDOR_SPECIFIC | OptionType::RESTART_COUNTER => (4, 2),
        OptionType::MOBILE_NETWORK_PREFIX
        | OptionType::HOME_NETWORK_PREFIX
        | OptionType::IPV6_ADDRESS_PREFIX
        | OptionType::LOCAL_MOBILITY_ANCHOR_ADDRESS
        | OptionType::LINK_LOCAL_INTERFACE_IDENTIFIER
        | OptionType::MAG_IPV6_ADDRESS
        | OptionType::LMA_USER_PLANE_ADDRESS => (8, 4),
        OptionType::IPV4_HOME_ADDRESS
        | OptionType::IPV4_ADDRESS_ACKNOWLEDGEMENT
        | OptionType::NAT_DETECTION
        | OptionType::IPV4_CARE_OF_ADDRESS
        | OptionType::IPV4_HOME_ADDRESS_REQUEST
        | OptionType::IPV4_HOME_ADDRESS_REPLY
        | OptionType::IPV4_DEFAULT_ROUTER_ADDRESS
        | OptionType::CONTEXT_REQUEST => (4, 0),
        _ => (1, 0),
    }
}

fn parse_prefix(r: &mut Reader<'_>) -> Option<Ipv6Prefix> {
    r.u8()?;
    let len = r.u8()?;
    Ipv6Prefix::new(r.ipv6()?, len)
}

fn parse_ipv4_result(r: &mut Reader<'_>) -> Option<(Ipv4AddressStatus, Ipv4Interface)> {
    let (status, prefix_len) = (Ipv4AddressStatus(r.u8()?), r.u8()? >> 2);
    Some((status, Ipv4Interface::new(r.ipv4()?, prefix_len)?))
}

fn parse_context(r: &mut Reader<'_>) -> Option<Vec<ContextItem>> {
    let mut items = Vec::new();
    while !r.is_empty() {
        let (kind, len) = (OptionType(r.u8()?), r.u8()?);
        items.push(ContextItem { kind, data: r.take(len.into())?.to_vec() });
    }
    Some(items)
}

fn emit_address(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => out.extend(address.octets()),
        IpAddr::V6(address) => out.extend(address.octets()),
    }
}
