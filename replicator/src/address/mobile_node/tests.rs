use std::path::Path;

use super::*;
use crate::service::config::Config;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("longhaul.toml")).map_err(|error| error.to_string())
}

const NODE: &str = "[mobile_node]\nhome_address = \"2001:db8:f:2::10\"\nhome_agent = \"2001:db8:1::1\"\n\
                    name = \"node@example.org\"\nlink = \"eth0\"\nspi = 4096\n";

#[test]
fn a_node_is_described_alike_in_the_guest_and_at_its_home_agent() {
    let key = "00112233445566778899aabbccddeeff";
    let node = parse(&format!("{NODE}key = \"{key}\"\n")).unwrap().mobile_node.unwrap();
    assert_eq!((node.interface.as_str(), node.proof), ("longhaul-node", Proof::HmacSha256));
    let known = format!(
        "[home_agent]\naddress = \"2001:db8:1::1\"\nprefixes = [\"2001:db8:f::/48\"]\n[[home_agent.nodes]]\n\
         name = \"node@example.org\"\nhome_address = \"2001:db8:f:2::10\"\nspi = 4096\nkey = \"{key}\"\n\
         proof = \"hmac-sha1-96\"\n"
    );
    let known = parse(&known).unwrap().home_agent.unwrap().nodes.remove(0);
    assert_eq!((known.proof, &known.key, known.shared_key().spi()), (Proof::HmacSha1, &node.key, 4096));
    assert!(!format!("{node:?} {known:?}").contains("1122"), "a key is printed");
}

#[test]
fn a_key_or_a_number_that_cannot_be_is_refused_and_the_key_not_repeated() {
    for key in
        ["", "00112233445566778899aabbccddeef", "00112233445566778899aabbccddeexx", "aabb", &"a".repeat(130)]
    {
        let message = parse(&format!("{NODE}key = \"{key}\"\n")).unwrap_err();
        assert!(message.contains("32 to 128 hexadecimal digits"), "{message}");
    }
    let sound = format!("{NODE}key = \"{}\"\n", "ab".repeat(32));
    let message = parse(&sound.replace("4096", "255")).unwrap_err();
    assert!(message.contains("spi = 255") && message.contains("256"), "{message}");
    let message = parse(&sound.replace("node@example.org", "")).unwrap_err();
    assert!(message.contains("1 to 254"), "{message}");
    let message = parse(&sound.replace("link =", "interface = \"sixteen-bytes-xx\"\nlink =")).unwrap_err();
    assert!(message.contains("1 to 15 bytes"), "{message}");
}
