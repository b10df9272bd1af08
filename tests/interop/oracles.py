"""Two independent implementations of the Mobility Header, scapy and pypcapkit, asked from a test.

  oracles.py build   prints what they make of the cases below, {"scapy": {case: packet}, "pypcapkit": {case: header}}, and
                     beside it a packet with its proof made right, and what they do wrong
  oracles.py read    takes {case: header} on standard input and prints for each null when pypcapkit reads the same as from
                     its own header, padding apart, else what is different
  oracles.py register  takes a key, a digest and the two packets of a home registration, prints what scapy reads in them with
                     checksum and proof judged, and the same registration as scapy makes it from the fields

Bytes are hexadecimal. It never decides what is right: the cases are written twice, here and in src/cases.rs.
"""

import hashlib
import hmac
import io
import json
import logging
import socket
import sys
from datetime import timedelta

logging.disable(logging.CRITICAL)

from pcapkit.const.mh.option import Option as O
from pcapkit.const.mh.packet import Packet as P
from pcapkit.protocols.internet.mh import MH
from scapy.layers import inet6 as s
from scapy.compat import raw

HOME = "2001:db8:1::10"
CARE_OF = "2001:db8:2::20"
AGENT = "2001:db8:1::1"
PREFIX = "2001:db8:a::"
KEY = b"0123456789abcdef"


def scapy_cases():
    direct = s.IPv6(src=CARE_OF, dst=AGENT, hlim=64)
    homed = direct / s.IPv6ExtHdrDestOpt(options=[s.HAO(hoa=HOME)])
    back = s.IPv6(src=AGENT, dst=CARE_OF, hlim=64) / s.IPv6ExtHdrRouting(type=2, addresses=[HOME])
    name = s.MIP6OptMNID(id=b"node@example.org")
    replay = s.MIP6OptReplayProtection(timestamp=0x0123456789ABCDEF)
    proof = s.MIP6OptMsgAuth()
    proof.mspi, proof.authdata = 0x1234, b"authenticate"
    return {
        "refresh request": direct / s.MIP6MH_BRR(),
        "home test init": direct / s.MIP6MH_HoTI(cookie=b"cookie01"),
        "care-of test init": direct / s.MIP6MH_CoTI(cookie=b"cookie02"),
        "home test": direct / s.MIP6MH_HoT(index=0x1234, cookie=b"cookie01", token=b"token..1"),
        "care-of test": direct / s.MIP6MH_CoT(index=0x1234, cookie=b"cookie01", token=b"token..1"),
        "binding update": homed
        / s.MIP6MH_BU(seq=0x0102, flags="AHLK", mhtime=105, options=[s.MIP6OptAltCoA(acoa=CARE_OF)]),
        "authenticated update": homed
        / s.MIP6MH_BU(seq=0x0103, flags="AH", mhtime=15, options=[name, replay, proof]),
        "router's update": direct
        / s.MIP6MH_BU(seq=1, flags="AHR", mhtime=15, options=[s.MIP6OptMobNetPrefix(prefix=PREFIX, plen=64)]),
        "acknowledgement": back
        / s.MIP6MH_BA(status=135, flags="K", res2=0, seq=0x0102, mhtime=9, options=[s.MIP6OptBRAdvice(rinter=7)]),
        "binding error": direct / s.MIP6MH_BE(status=2, ha=HOME),
    }


def kit_cases():
    update = lambda options, **more: (P.Binding_Update, dict(seq=0x0102, lifetime=timedelta(seconds=420), options=options, **more))
    acknowledge = lambda options: (
        P.Binding_Acknowledgement,
        dict(status=157, proxy_reg=True, seq=0x0102, lifetime=timedelta(seconds=420), options=options),
    )
    ntp = MH._make_opt_mesg_id.__globals__["Data_NTPTimestamp"](seconds=0x01234567, fraction=0x89ABCDEF)
    test = dict(nonce_index=0x1234, cookie=b"cookie01", token=b"token..1")
    v4 = dict(prefix_length=24, address="192.0.2.1")
    return {
        "refresh request": (P.Binding_Refresh_Request, {}),
        "home test init": (P.Home_Test_Init, dict(cookie=b"cookie01")),
        "care-of test init": (P.Care_of_Test_Init, dict(cookie=b"cookie02")),
        "home test": (P.Home_Test, test),
        "care-of test": (P.Care_of_Test, test),
        "binding update": update(
            [(O.Alternate_Care_of_Address, dict(address=CARE_OF))],
            ack=True, home=True, lla_compat=True, key_mngt=True,
        ),
        "router's update": (
            P.Binding_Update,
            dict(seq=1, ack=True, home=True, mobile_router=True, lifetime=timedelta(seconds=60),
                 options=[(O.Mobile_Network_Prefix_Option, dict(prefix=PREFIX + "/64"))]),
        ),
        "acknowledgement": (
            P.Binding_Acknowledgement,
            dict(status=135, key_mngt=True, seq=0x0102, lifetime=timedelta(seconds=36),
                 options=[(O.Binding_Refresh_Advice, dict(interval=timedelta(seconds=28)))]),
        ),
        "binding error": (P.Binding_Error, dict(status=2, home=HOME)),
        "nonces": update([(O.Nonce_Indices, dict(home=0x0A0B, careof=0x0C0D))], ack=True),
        "all flags": update([], ack=True, home=True, lla_compat=True, key_mngt=True, map_reg=True, mobile_router=True,
                            proxy_reg=True, udp_encap=True, tlv_format=True, bulk_binding=True, multicast=True, dmm=True),
        "proxy update": update(
            [
                (O.MN_ID_OPTION_TYPE, dict(subtype=1, identifier="vm@example.org")),
                (O.Home_Network_Prefix_Option, dict(prefix=PREFIX, prefix_length=64)),
                (O.Handoff_Indicator_Option, dict(hi=3)),
                (O.Access_Technology_Type_Option, dict(att=3)),
                (O.Mobile_Node_Link_layer_Identifier_Option, dict(lli=bytes([2, 0, 0, 0, 0, 1]))),
                (O.Link_local_Address_Option, dict(address="fe80::1")),
                (O.Timestamp_Option, dict(seconds=1700000000, fraction=0x8000)),
                (O.Transient_Binding, dict(late=True, lifetime=timedelta(milliseconds=500))),
            ],
            ack=True, home=True, proxy_reg=True,
        ),
        "proxy acknowledgement": acknowledge(
            [
                (O.MN_ID_OPTION_TYPE, dict(subtype=1, identifier="vm@example.org")),
                (O.Vendor_Specific_Mobility_Option, dict(vendor=32473, subtype=5, data=b"epoch 7")),
                (O.LMA_User_Plane_Address, dict(address="2001:db8:3::1")),
                (O.LMA_User_Plane_Address, dict(address="192.0.2.7")),
            ]
        ),
        "replay protection": update([(O.MESG_ID_OPTION_TYPE, dict(timestamp=ntp))]),
        "IPv4": acknowledge(
            [
                (O.IPv4_Home_Address, dict(request_prefix=True, **v4)),
                (O.IPv4_Address_Acknowledgement, dict(status=131, **v4)),
                (O.NAT_Detection, dict(force=True, refresh=110)),
                (O.IPv4_Care_of_Address, dict(address="192.0.2.9")),
                (O.IPv4_Home_Address_Request, v4),
                (O.IPv4_Home_Address_Reply, dict(status=131, **v4)),
                (O.IPv4_Default_Router_Address, dict(address="192.0.2.254")),
            ]
        ),
        "heartbeat": (
            P.Heartbeat_Message,
            dict(response=True, unsolicited=True, seq=0x01020304, options=[(O.Restart_Counter, dict(counter=9))]),
        ),
        "handover initiate": (
            P.Handover_Initiate_Message,
            dict(seq=0x0102, buffer=True, proxy=True, forward=True, code=2,
                 options=[
                     (O.Local_Mobility_Anchor_Address_Option, dict(code=1, address=AGENT)),
                     (O.Local_Mobility_Anchor_Address_Option, dict(code=2, address="192.0.2.7")),
                     (O.Mobile_Node_Link_local_Address_Interface_Identifier_Option, dict(iid=b"interfac")),
                     (O.Mobility_Header_IPv6_Address_Prefix, dict(code=2, prefix_length=64, address=CARE_OF)),
                 ]),
        ),
        "handover acknowledge": (
            P.Handover_Acknowledge_Message,
            dict(seq=0x0102, buffer=True, proxy=True, code=6,
                 options=[(O.Context_Request_Option, dict(requests=[(22, b""), (19, b"\x00\x00\x7e\xd9\x05")]))]),
        ),
        "revocation": (P.Binding_Revocation_Message, dict(br_type=1, code=2, seq=0x0102, proxy=True)),
        "revocation acknowledged": (
            P.Binding_Revocation_Message,
            dict(br_type=2, code=128, seq=0x0102, proxy=True, ipv4_hoa=True, global_revocation=True),
        ),
        "localized routing": (
            P.Localized_Routing_Initiation,
            dict(seq=0x0102, lifetime=60, options=[(O.MAG_IPv6_Address, dict(address=AGENT))]),
        ),
        "localized routing acknowledged": (
            P.Localized_Routing_Acknowledgment, dict(seq=0x0102, unsolicited=True, status=129, lifetime=65535),
        ),
        "notification": (P.Update_Notification, dict(seq=0x0102, reason=1, ack=True, retransmit=True)),
        "notification acknowledged": (P.Update_Notification_Acknowledgement, dict(seq=0x0102, status=128)),
    }


def kit_build(kind, data):
    return bytes(MH(next=59, type=kind, chksum=b"\0\0", data=data).data)


def kit_plain(header):
    info = header.info.to_dict()
    fields = {k: repr(v) for k, v in info.items() if k not in ("length", "chksum", "options", "nopayload", "packet", "_ident")}
    options = header.info.get("options")
    shown = []
    if options is not None:
        shown = [repr(option.to_dict()) for kind, option in options.items(multi=True) if int(kind) not in (0, 1)]
    return [fields, shown]


def kit_read(data):
    return kit_plain(MH(io.BytesIO(data), len(data)))


def proved():
    """The authenticated update with its proof made right, over the bytes that scapy made (RFC 4285 section 5.1)."""
    packet = raw(scapy_cases()["authenticated update"])
    message = packet[40 + 24 :]
    before = message[: message.index(b"authenticate")]
    covered = socket.inet_pton(socket.AF_INET6, CARE_OF) + socket.inet_pton(socket.AF_INET6, HOME)
    covered += before[:4] + b"\0\0" + before[6:]
    proof = hmac.new(KEY, covered, hashlib.sha1).digest()[:12]
    return packet.replace(b"authenticate", proof).hex()


def kit_error(header):
    """What pypcapkit says to a header that it does not take; null when it does."""
    try:
        kit_read(bytes.fromhex(header))
    except Exception as error:
        return type(error).__name__


def defects():
    """What these programs get wrong, so that the test notices when they no longer do."""
    update = s.MIP6MH_BU(seq=1, flags="AH")
    home, other = s.HAO(hoa=HOME), s.HBHOptUnknown(otype=0x1E, optdata=b"xx")
    to_agent = s.IPv6(src=CARE_OF, dst=AGENT)
    proxy = s.MIP6MH_BU(raw(s.MIP6MH_BU(options=[s.MIP6OptUnknown(otype=22, odata=bytes(18))])))
    return {
        "scapy: nonce indices": raw(s.MIP6OptNonceIndices(hni=1, coni=2)).hex(),
        "scapy: authorization data": raw(s.MIP6OptBindingAuthData(authenticator=0)).hex(),
        "scapy: option 22": type(proxy.options[0]).__name__,
        "scapy: home address alone": raw(to_agent / s.IPv6ExtHdrDestOpt(options=[home]) / update).hex(),
        "scapy: home address behind another option": raw(to_agent / s.IPv6ExtHdrDestOpt(options=[other, home]) / update).hex(),
        "pypcapkit: option 9 of 17 bytes": kit_error(
            "3b030500 0000 0001 c000 000f 00 0911 01 00001234 61757468656e746963617465"
        ),
        "pypcapkit: option 5 of 12 bytes": kit_error(
            "3b030500 0000 0001 c000 000f 01040000 0000 050c 61757468656e746963617465"
        ),
    }


def build():
    return {
        "scapy": {case: raw(packet).hex() for case, packet in scapy_cases().items()},
        "pypcapkit": {case: kit_build(*message).hex() for case, message in kit_cases().items()},
        "proved": proved(),
        "defects": defects(),
    }


def read(headers):
    told = {}
    for case, header in headers.items():
        theirs, mine = kit_read(bytes.fromhex(header)), kit_read(kit_build(*kit_cases()[case]))
        told[case] = None if theirs == mine else f"{theirs} instead of {mine}"
    return told


def checksum(source, destination, message):
    """RFC 6275 section 6.1.1, over these addresses; 0 when the one in the message is right."""
    pseudo = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    words = pseudo + len(message).to_bytes(4, "big") + bytes([0, 0, 0, 135]) + message
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def proof(asked, care_of, home, before):
    """RFC 4285 section 5.1; the part of the message before the authenticator, with any checksum in it."""
    covered = socket.inet_pton(socket.AF_INET6, care_of) + socket.inet_pton(socket.AF_INET6, home)
    covered += before[:4] + b"\0\0" + before[6:]
    return hmac.new(bytes.fromhex(asked["key"]), covered, asked["digest"]).digest()[: asked["bytes"]]


# Of the packet: IPv6, then 24 bytes of the Home Address option's or the routing header.
MESSAGE_AT = 40 + 24


def scapy_read(asked, packet):
    shown = s.IPv6(packet)
    options = shown.getlayer(s.IPv6ExtHdrDestOpt)
    home = shown.getlayer(s.IPv6ExtHdrRouting).addresses[0] if options is None else None
    if options is not None:
        home = next(option.hoa for option in options.options if isinstance(option, s.HAO))
    message = packet[MESSAGE_AT:]
    care_of, ends = (shown.src, (home, shown.dst)) if options is not None else (shown.dst, (shown.src, home))
    mh = shown.getlayer(s.MIP6MH_BU) or shown.getlayer(s.MIP6MH_BA)
    auth = next(option for option in mh.options if isinstance(option, s.MIP6OptMsgAuth))
    before = message[: message.rindex(auth.authdata)]
    fields = {
        "home": home, "care_of": care_of, "seq": mh.seq, "lifetime": mh.mhtime, "spi": auth.mspi, "subtype": auth.subtype,
        "name": next((o.id.decode() for o in mh.options if isinstance(o, s.MIP6OptMNID)), None),
        "time": next((o.timestamp for o in mh.options if isinstance(o, s.MIP6OptReplayProtection)), None),
        "checksum": checksum(*ends, message) == 0,
        "proof": proof(asked, care_of, home, before) == auth.authdata,
    }
    fields.update(status=mh.status) if shown.haslayer(s.MIP6MH_BA) else fields.update(flags=str(mh.flags))
    return fields


def scapy_make(asked, layers, ends, care_of, home):
    """The packet with its proof in place of the marks, then its checksum."""
    mark = b"authenticator..."[: asked["bytes"]]
    auth = s.MIP6OptMsgAuth()
    auth.mspi, auth.authdata = asked["spi"], mark
    layers.lastlayer().options = layers.lastlayer().options + [auth]
    packet = raw(layers)
    message = packet[MESSAGE_AT:]
    message = message.replace(mark, proof(asked, care_of, home, message[: message.index(mark)]))
    message = message[:4] + b"\0\0" + message[6:]
    summed = message[:4] + checksum(*ends, message).to_bytes(2, "big") + message[6:]
    return (packet[:MESSAGE_AT] + summed).hex()


def register(asked):
    name = [s.MIP6OptMNID(id=asked["name"].encode())]
    time = [s.MIP6OptReplayProtection(timestamp=asked["time"])]
    update = s.IPv6(src=CARE_OF, dst=AGENT, hlim=64) / s.IPv6ExtHdrDestOpt(options=[s.HAO(hoa=HOME)])
    update /= s.MIP6MH_BU(seq=asked["seq"], flags="AH", mhtime=15, options=name + time)
    told = s.IPv6(src=AGENT, dst=CARE_OF, hlim=64) / s.IPv6ExtHdrRouting(type=2, addresses=[HOME])
    told /= s.MIP6MH_BA(status=0, res2=0, seq=asked["seq"], mhtime=15, options=name)
    return {
        "read": {case: scapy_read(asked, bytes.fromhex(packet)) for case, packet in asked["packets"].items()},
        "update": scapy_make(asked, update, (HOME, AGENT), CARE_OF, HOME),
        "acknowledgement": scapy_make(asked, told, (AGENT, HOME), CARE_OF, HOME),
    }


if __name__ == "__main__":
    word = sys.argv[1]
    answer = build() if word == "build" else {"read": read, "register": register}[word](json.load(sys.stdin))
    print(json.dumps(answer))
