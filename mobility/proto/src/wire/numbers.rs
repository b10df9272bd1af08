//! The numbers that IANA assigns in its registry "Mobile IPv6 parameters": types, status codes, flags. Each type holds any
//! number, so that what a later RFC assigns is kept and shown as it came; none says what to do about it.

use std::fmt;

/// A newtype over an assigned number, with a constant and a text for each that we know.
macro_rules! registry {
    ($(#[$doc:meta])* $name:ident($int:ty) { $($constant:ident = $value:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $(#[doc = $text] pub const $constant: Self = Self($value);)+
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$constant => write!(f, concat!($text, " ({})"), self.0),)+
                    Self(other) => write!(f, "unassigned number {other}"),
                }
            }
        }
    };
}

/// A set of bits, with a constant for each that we know.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident($int:ty) { $($constant:ident = $value:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            $(#[doc = $text] pub const $constant: Self = Self($value);)+

            /// Whether all of `flags` are set.
            #[must_use]
            pub fn contains(self, flags: Self) -> bool {
                self.0 & flags.0 == flags.0
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    };
}

registry! {
    /// The MH Type of a Mobility Header.
    MhType(u8) {
        BINDING_REFRESH_REQUEST = 0, "Binding Refresh Request";
        HOME_TEST_INIT = 1, "Home Test Init";
        CARE_OF_TEST_INIT = 2, "Care-of Test Init";
        HOME_TEST = 3, "Home Test";
        CARE_OF_TEST = 4, "Care-of Test";
        BINDING_UPDATE = 5, "Binding Update";
        BINDING_ACKNOWLEDGEMENT = 6, "Binding Acknowledgement";
        BINDING_ERROR = 7, "Binding Error";
        HEARTBEAT = 13, "Heartbeat";
        HANDOVER_INITIATE = 14, "Handover Initiate";
        HANDOVER_ACKNOWLEDGE = 15, "Handover Acknowledge";
        BINDING_REVOCATION = 16, "Binding Revocation";
        LOCALIZED_ROUTING_INITIATION = 17, "Localized Routing Initiation";
        LOCALIZED_ROUTING_ACKNOWLEDGMENT = 18, "Localized Routing Acknowledgment";
        UPDATE_NOTIFICATION = 19, "Update Notification";
        UPDATE_NOTIFICATION_ACKNOWLEDGEMENT = 20, "Update Notification Acknowledgement";
    }
}

registry! {
    /// The type of a mobility option.
    OptionType(u8) {
        PAD1 = 0, "Pad1";
        PADN = 1, "PadN";
        BINDING_REFRESH_ADVICE = 2, "Binding Refresh Advice";
        ALTERNATE_CARE_OF_ADDRESS = 3, "Alternate Care-of Address";
        NONCE_INDICES = 4, "Nonce Indices";
        BINDING_AUTHORIZATION_DATA = 5, "Binding Authorization Data";
        MOBILE_NETWORK_PREFIX = 6, "Mobile Network Prefix";
        LINK_LAYER_ADDRESS = 7, "Mobility Header Link-Layer Address";
        MOBILE_NODE_IDENTIFIER = 8, "Mobile Node Identifier";
        AUTHENTICATION = 9, "Mobility Message Authentication";
        MESSAGE_IDENTIFICATION = 10, "Mobility Message Replay Protection";
        VENDOR_SPECIFIC = 19, "Vendor Specific";
        HOME_NETWORK_PREFIX = 22, "Home Network Prefix";
        HANDOFF_INDICATOR = 23, "Handoff Indicator";
        ACCESS_TECHNOLOGY_TYPE = 24, "Access Technology Type";
        LINK_LAYER_IDENTIFIER = 25, "Mobile Node Link-layer Identifier";
        LINK_LOCAL_ADDRESS = 26, "Link-local Address";
        TIMESTAMP = 27, "Timestamp";
        RESTART_COUNTER = 28, "Restart Counter";
        IPV4_HOME_ADDRESS = 29, "IPv4 Home Address";
        IPV4_ADDRESS_ACKNOWLEDGEMENT = 30, "IPv4 Address Acknowledgement";
        NAT_DETECTION = 31, "NAT Detection";
        IPV4_CARE_OF_ADDRESS = 32, "IPv4 Care-of Address";
        IPV6_ADDRESS_PREFIX = 34, "Mobility Header IPv6 Address/Prefix";
        IPV4_HOME_ADDRESS_REQUEST = 36, "IPv4 Home Address Request";
        IPV4_HOME_ADDRESS_REPLY = 37, "IPv4 Home Address Reply";
        IPV4_DEFAULT_ROUTER_ADDRESS = 38, "IPv4 Default-Router Address";
        CONTEXT_REQUEST = 40, "Context Request";
        LOCAL_MOBILITY_ANCHOR_ADDRESS = 41, "Local Mobility Anchor Address";
        LINK_LOCAL_INTERFACE_IDENTIFIER = 42, "Mobile Node Link-local Address Interface Identifier";
        TRANSIENT_BINDING = 43, "Transient Binding";
        MAG_IPV6_ADDRESS = 51, "MAG IPv6 Address";
        LMA_USER_PLANE_ADDRESS = 59, "LMA User-Plane Address";
    }
}

registry! {
    /// The status of a Binding Acknowledgement (RFC 6275 section 6.1.8 and those that extend it). From 128 on the
    /// Binding Update was rejected.
    Status(u8) {
        ACCEPTED = 0, "accepted";
        PREFIX_DISCOVERY_NECESSARY = 1, "accepted, but prefix discovery is necessary";
        TRANSIENT_BINDING_IGNORED = 6, "accepted, transient binding ignored as the settings do not match";
        REASON_UNSPECIFIED = 128, "reason unspecified";
        ADMINISTRATIVELY_PROHIBITED = 129, "administratively prohibited";
        INSUFFICIENT_RESOURCES = 130, "insufficient resources";
        HOME_REGISTRATION_NOT_SUPPORTED = 131, "home registration not supported";
        NOT_HOME_SUBNET = 132, "not home subnet";
        NOT_HOME_AGENT = 133, "not home agent for this mobile node";
        DUPLICATE_ADDRESS_DETECTION_FAILED = 134, "duplicate address detection failed";
        SEQUENCE_OUT_OF_WINDOW = 135, "sequence number out of window";
        EXPIRED_HOME_NONCE = 136, "expired home nonce index";
        EXPIRED_CARE_OF_NONCE = 137, "expired care-of nonce index";
        EXPIRED_NONCES = 138, "expired nonces";
        REGISTRATION_TYPE_CHANGE = 139, "registration type change disallowed";
        MOBILE_ROUTER_NOT_PERMITTED = 140, "mobile router operation not permitted";
        INVALID_PREFIX = 141, "invalid prefix";
        NOT_AUTHORIZED_FOR_PREFIX = 142, "not authorized for prefix";
        FORWARDING_SETUP_FAILED = 143, "forwarding setup failed";
        ID_MISMATCH = 144, "replay protection timestamp mismatch";
        MESSAGE_ID_REQUIRED = 145, "replay protection option required";
        AUTHENTICATION_FAILED = 146, "authentication failed";
        PROXY_REGISTRATION_NOT_ENABLED = 152, "proxy registration not enabled for the mobile node";
        NOT_LMA = 153, "not local mobility anchor for this mobile node";
        MAG_NOT_AUTHORIZED = 154, "the mobile access gateway is not authorized for proxy registrations";
        NOT_AUTHORIZED_FOR_HOME_NETWORK_PREFIX = 155, "not authorized for home network prefix";
        TIMESTAMP_MISMATCH = 156, "timestamp mismatch, the clocks are not synchronized";
        TIMESTAMP_LOWER_THAN_PREVIOUS = 157, "timestamp lower than the one accepted before";
        MISSING_HOME_NETWORK_PREFIX = 158, "missing home network prefix option";
        PREFIX_SET_MISMATCH = 159, "the prefixes do not match those of the binding";
        MISSING_MOBILE_NODE_IDENTIFIER = 160, "missing mobile node identifier option";
        MISSING_HANDOFF_INDICATOR = 161, "missing handoff indicator option";
        MISSING_ACCESS_TECHNOLOGY_TYPE = 162, "missing access technology type option";
        NOT_AUTHORIZED_FOR_IPV4_MOBILITY = 170, "not authorized for IPv4 mobility service";
        NOT_AUTHORIZED_FOR_IPV4_HOME_ADDRESS = 171, "not authorized for IPv4 home address";
        NOT_AUTHORIZED_FOR_IPV6_MOBILITY = 172, "not authorized for IPv6 mobility service";
        MULTIPLE_IPV4_HOME_ADDRESSES = 173, "multiple IPv4 home address assignment not supported";
        INVALID_CARE_OF_ADDRESS = 174, "invalid care-of address";
    }
}

impl Status {
    /// Whether the Binding Update was accepted.
    #[must_use]
    pub fn is_accepted(self) -> bool {
        self.0 < 128
    }
}

flags! {
    /// The flags of a Binding Update.
    BindingUpdateFlags(u16) {
        ACKNOWLEDGE = 0x8000, "A: an acknowledgement is asked for (RFC 6275)";
        HOME_REGISTRATION = 0x4000, "H: for a home agent (RFC 6275)";
        LINK_LOCAL = 0x2000, "L: the link-local address has the home address's interface identifier (RFC 6275)";
        KEY_MANAGEMENT = 0x1000, "K: key management survives movement (RFC 6275)";
        MAP = 0x0800, "M: for a mobility anchor point (RFC 4140)";
        MOBILE_ROUTER = 0x0400, "R: from a mobile router (RFC 3963)";
        PROXY = 0x0200, "P: a proxy registration (RFC 5213)";
        FORCE_UDP = 0x0100, "F: UDP encapsulation is asked for (RFC 5555)";
        TLV_HEADER = 0x0080, "T: TLV header format in the tunnel (RFC 5845)";
        BULK = 0x0040, "B: for the whole group of bindings (RFC 6602)";
        MULTICAST = 0x0020, "S: multicast subscriptions are asked for (RFC 7161)";
        DELEGATED_PREFIX = 0x0010, "D: delegated prefixes are asked for (RFC 7148)";
    }
}

flags! {
    /// The flags of a Binding Acknowledgement.
    BindingAcknowledgementFlags(u8) {
        KEY_MANAGEMENT = 0x80, "K: key management survives movement (RFC 6275)";
        MOBILE_ROUTER = 0x40, "R: mobile routers are supported (RFC 3963)";
        PROXY = 0x20, "P: of a proxy registration (RFC 5213)";
        TLV_HEADER = 0x10, "T: TLV header format in the tunnel (RFC 5845)";
        BULK = 0x08, "B: for the whole group of bindings (RFC 6602)";
        MULTICAST = 0x04, "S: multicast subscriptions (RFC 7161)";
        DELEGATED_PREFIX = 0x02, "D: delegated prefixes (RFC 7148)";
    }
}

registry! {
    /// The status of a Binding Error (RFC 6275 section 6.1.9).
    BindingErrorStatus(u8) {
        UNKNOWN_BINDING = 1, "unknown binding for the Home Address option";
        UNRECOGNIZED_TYPE = 2, "unrecognized MH Type";
    }
}

registry! {
    /// What kind of hand-off happened (RFC 5213 section 8.4).
    HandoffIndicator(u8) {
        NEW_INTERFACE = 1, "attachment over a new interface";
        BETWEEN_INTERFACES = 2, "handoff between two interfaces of the mobile node";
        BETWEEN_GATEWAYS = 3, "handoff between mobile access gateways for the same interface";
        UNKNOWN = 4, "handoff state unknown";
        NOT_CHANGED = 5, "handoff state not changed";
    }
}

registry! {
    /// By what the mobile node is attached (RFC 5213 section 8.5).
    AccessTechnology(u8) {
        VIRTUAL = 1, "virtual interface";
        PPP = 2, "PPP";
        ETHERNET = 3, "IEEE 802.3";
        WIRELESS_LAN = 4, "IEEE 802.11";
        WIMAX = 5, "IEEE 802.16e";
    }
}

registry! {
    /// How a mobile node is named in the Mobile Node Identifier option (RFC 4283 section 3, RFC 8371).
    IdentifierType(u8) {
        NAI = 1, "network access identifier";
        IPV6_ADDRESS = 2, "IPv6 address";
        IMSI = 3, "IMSI";
        EUI_48 = 5, "EUI-48 address";
        EUI_64 = 6, "EUI-64 address";
        DUID = 8, "DUID";
    }
}

registry! {
    /// Whose the shared key of an authentication option is (RFC 4285 section 5).
    AuthenticationType(u8) {
        MN_HA = 1, "between mobile node and home agent";
        MN_AAA = 2, "between mobile node and AAA server";
    }
}

registry! {
    /// The result for the IPv4 home address: in the IPv4 Address Acknowledgement option (RFC 5555 section 3.2.1) and in
    /// the IPv4 Home Address Reply option (RFC 5844 section 3.3.2), which share these numbers up to 132. From 128 on it
    /// was refused.
    Ipv4AddressStatus(u8) {
        SUCCESS = 0, "success";
        REASON_UNSPECIFIED = 128, "reason unspecified";
        ADMINISTRATIVELY_PROHIBITED = 129, "administratively prohibited";
        INCORRECT_ADDRESS = 130, "incorrect IPv4 home address";
        INVALID_ADDRESS = 131, "invalid IPv4 address";
        NO_DYNAMIC_ASSIGNMENT = 132, "dynamic IPv4 home address assignment not available";
        PREFIX_UNAUTHORIZED = 133, "prefix allocation unauthorized";
    }
}

flags! {
    /// The flags of a Handover Initiate (RFC 5568 section 6.2.1, RFC 5949 section 6.1.1).
    HandoverInitiateFlags(u8) {
        ASSIGN = 0x80, "S: assign an address to the mobile node";
        BUFFER = 0x40, "U: buffer what is forwarded until told to deliver it";
        PROXY = 0x20, "P: from a mobile access gateway";
        FORWARD = 0x10, "F: forwarding of packets is asked for";
    }
}

flags! {
    /// The flags of a Handover Acknowledge (RFC 5949 section 6.1.2).
    HandoverAcknowledgeFlags(u8) {
        BUFFER = 0x80, "U: what is forwarded will be buffered";
        PROXY = 0x40, "P: from a mobile access gateway";
        FORWARD = 0x20, "F: forwarding of packets is asked for";
    }
}

registry! {
    /// The code of a Handover Initiate with the P flag (RFC 5949 section 6.1.1).
    HandoverInitiateCode(u8) {
        START = 0, "forwarding begins, or context is transferred";
        UNSOLICITED = 1, "the binding update did not come from the mobile node's address";
        FORWARDING_COMPLETE = 2, "forwarding is complete";
        CONTEXT_COMPLETE = 3, "all available context is transferred";
    }
}

registry! {
    /// The code of a Handover Acknowledge with the P flag (RFC 5949 section 6.1.2). From 128 on the handover was refused.
    HandoverAcknowledgeCode(u8) {
        ACCEPTED = 0, "handover accepted";
        CONTEXT_ACCEPTED = 5, "context transfer accepted";
        CONTEXT_COMPLETE = 6, "all available context is transferred";
        REASON_UNSPECIFIED = 128, "handover not accepted, reason unspecified";
        ADMINISTRATIVELY_PROHIBITED = 129, "administratively prohibited";
        INSUFFICIENT_RESOURCES = 130, "insufficient resources";
        CONTEXT_NOT_AVAILABLE = 131, "requested context not available";
        FORWARDING_NOT_AVAILABLE = 132, "forwarding not available";
    }
}

registry! {
    /// Why a binding is revoked (RFC 5846 section 5.1).
    RevocationTrigger(u8) {
        UNSPECIFIED = 0, "unspecified";
        ADMINISTRATIVE = 1, "administrative reason";
        HANDOVER_SAME_ACCESS_TYPE = 2, "handover to another gateway, same access type";
        HANDOVER_OTHER_ACCESS_TYPE = 3, "handover to another gateway, another access type";
        HANDOVER_UNKNOWN = 4, "handover to another gateway, access type unknown";
        USER_TERMINATION = 5, "the user ended the session";
        ACCESS_NETWORK_TERMINATION = 6, "the access network ended the session";
        OUT_OF_SYNC = 7, "the binding may be out of sync";
        PER_PEER_POLICY = 128, "per-peer policy";
        LOCAL_POLICY = 129, "the revoking node's local policy";
    }
}

registry! {
    /// The answer to a revocation (RFC 5846 section 5.2). From 128 on it was refused.
    RevocationStatus(u8) {
        SUCCESS = 0, "success";
        PARTIAL_SUCCESS = 1, "partial success";
        NO_BINDING = 128, "the binding does not exist";
        IPV4_HOME_ADDRESS_REQUIRED = 129, "IPv4 home address option required";
        GLOBAL_NOT_AUTHORIZED = 130, "global revocation not authorized";
        IDENTITY_REQUIRED = 131, "the mobile nodes' identity is required";
        MOBILE_NODE_ATTACHED = 132, "the mobile node is attached";
        TRIGGER_NOT_SUPPORTED = 133, "revocation trigger not supported";
        NOT_SUPPORTED = 134, "revocation not supported";
        PROXY_NOT_SUPPORTED = 135, "revocation of proxy bindings not supported";
    }
}

flags! {
    /// The flags of a Binding Revocation (RFC 5846 sections 5.1 and 5.2).
    RevocationFlags(u16) {
        PROXY = 0x8000, "P: of a proxy binding";
        IPV4_ONLY = 0x4000, "V: of the IPv4 home address only";
        GLOBAL = 0x2000, "G: of all bindings that the message describes";
    }
}

registry! {
    /// The answer to a Localized Routing Initiation (RFC 6705 section 9.2). From 128 on it was refused.
    LocalizedRoutingStatus(u8) {
        SUCCESS = 0, "success";
        NOT_ALLOWED = 128, "localized routing not allowed";
        NOT_ATTACHED = 129, "the mobile node is not attached";
    }
}

registry! {
    /// Why an Update Notification is sent (RFC 7077 section 4.1).
    NotificationReason(u16) {
        FORCE_REREGISTRATION = 1, "register again";
        UPDATE_SESSION_PARAMETERS = 2, "session parameters have changed";
        VENDOR_SPECIFIC = 3, "vendor specific reason";
    }
}

flags! {
    /// The flags of an Update Notification (RFC 7077 section 4.1).
    NotificationFlags(u16) {
        ACKNOWLEDGE = 0x8000, "A: an acknowledgement is asked for";
        RETRANSMISSION = 0x4000, "D: sent again";
    }
}

registry! {
    /// The answer to an Update Notification (RFC 7077 section 4.2). From 128 on it was refused.
    NotificationStatus(u8) {
        SUCCESS = 0, "success";
        UPDATE_FAILED = 128, "failed to update session parameters";
        MISSING_VENDOR_SPECIFIC = 129, "missing vendor specific option";
    }
}
