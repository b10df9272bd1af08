//! The source address of what segment routing encapsulates: the kernel has one for a network namespace, set by generic netlink
//! (linux/genetlink.h, linux/seg6_genl.h). Without it, it takes whichever address it likes of the interface that a packet goes
//! out by, and the other end knows a packet's sender by it.

use std::io;
use std::net::Ipv6Addr;

use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
/// NLMSG_ERROR, which with the code 0 is an acknowledgement.
const ERROR: u16 = 2;
/// The family of generic netlink that knows the others: GENL_ID_CTRL, its command CTRL_CMD_GETFAMILY, its attributes.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const NAME: &[u8] = b"SEG6\0";
/// SEG6_CMD_SET_TUNSRC, SEG6_CMD_GET_TUNSRC, SEG6_ATTR_DST.
const SET: u8 = 3;
const GET: u8 = 4;
const ADDRESS: u16 = 1;
/// struct nlmsghdr, and behind it struct genlmsghdr.
const HEADER_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;

pub(super) struct TunnelSource {
    socket: Socket,
    family: u16,
}

impl TunnelSource {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut source = Self { socket, family: CONTROL };
        let answer = source.ask(GET_FAMILY, 0, &[(FAMILY_NAME, NAME)])?;
        let id = attribute(&answer, FAMILY_ID).and_then(|id| Some(u16::from_ne_bytes(*id.first_chunk()?)));
        source.family = id.ok_or(io::ErrorKind::InvalidData)?;
        Ok(source)
    }

    /// Unspecified when it was never set.
    pub(super) fn get(&mut self) -> io::Result<Ipv6Addr> {
        let answer = self.ask(GET, 0, &[])?;
        let address = attribute(&answer, ADDRESS).and_then(|address| address.first_chunk::<16>());
        Ok(address.map_or(Ipv6Addr::UNSPECIFIED, |address| Ipv6Addr::from(*address)))
    }

    pub(super) fn set(&mut self, address: Ipv6Addr) -> io::Result<()> {
        self.ask(SET, ACKNOWLEDGE, &[(ADDRESS, &address.octets())]).map(drop)
    }

    /// Sends a request; gives the attributes of the answer.
    fn ask(&mut self, command: u8, flags: u16, attributes: &[(u16, &[u8])]) -> io::Result<Vec<u8>> {
        self.socket.send(&request(self.family, command, flags, attributes), 0)?;
        let (message, _) = self.socket.recv_from_full()?;
        let word = |at: usize| message.get(at..at + 4).and_then(|word| word.first_chunk()).copied();
        if message.get(4..6) == Some(&ERROR.to_ne_bytes()) {
            let code = word(HEADER_BYTES).map_or(0, i32::from_ne_bytes);
            return if code == 0 { Ok(Vec::new()) } else { Err(io::Error::from_raw_os_error(-code)) };
        }
        Ok(message.get(HEADER_BYTES + GENERIC_BYTES..).unwrap_or_default().to_vec())
    }
}

fn request(family: u16, command: u8, flags: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![command, 1, 0, 0];
    for (kind, value) in attributes {
        body.extend((value.len() as u16 + 4).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(family.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// The value of the first attribute of this kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let found = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(4..len)?;
        if found == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it_and_attributes_are_found() {
        let message = request(16, GET_FAMILY, ACKNOWLEDGE, &[(FAMILY_NAME, NAME), (FAMILY_ID, &[7, 0])]);
        assert_eq!(message.len(), 16 + 4 + 12 + 8);
        assert_eq!(message[..4], 40_u32.to_ne_bytes());
        assert_eq!(message[16..20], [GET_FAMILY, 1, 0, 0]);
        let attributes = &message[20..];
        assert_eq!(attribute(attributes, FAMILY_NAME), Some(NAME));
        assert_eq!(attribute(attributes, FAMILY_ID), Some(&[7, 0][..]));
        assert_eq!(attribute(attributes, 9), None);
        // A length that leads nowhere ends the search.
        assert_eq!(attribute(&[0, 0, 5, 0, 0, 0], 9), None);
        assert_eq!(attribute(&[200, 0, 5, 0], 5), None);
    }
}
