use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: MobileNodeArgs,
}

fn over(line: &str, file: Option<&MobileNodeConfig>) -> anyhow::Result<MobileNodeConfig> {
    let words = std::iter::once("mobile-node").chain(line.split_whitespace());
    Line::try_parse_from(words).unwrap().args.over(file.cloned())
}

#[test]
fn flags_are_enough_and_take_the_place_of_what_the_file_says() {
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("key");
    std::fs::write(&key_file, format!("{}\n", "a1".repeat(32))).unwrap();
    let line = format!(
        "--home-address 2001:db8:f::1 --home-agent 2001:db8:1::1 --name n@x --link eth0 --spi 300 --key-file {}",
        key_file.display()
    );
    let all = over(&line, None).unwrap();
    assert_eq!((all.spi, all.interface.as_str(), all.proof), (300, "longhaul-node", Proof::HmacSha256));
    assert_eq!(over("", Some(&all)).unwrap(), all);
    let line_of_more = "--link eth1 --proof hmac-sha1-96 --interface t0 --home-agent-ipv4 192.0.2.1";
    let changed = over(line_of_more, Some(&all)).unwrap();
    assert_eq!((all.home_agent_ipv4, changed.home_agent_ipv4), (None, Some(Ipv4Addr::new(192, 0, 2, 1))));
    assert_eq!(
        (changed.link.as_str(), changed.proof, changed.interface.as_str()),
        ("eth1", Proof::HmacSha1, "t0")
    );
    assert_eq!((changed.key, changed.home_agent), (all.key.clone(), all.home_agent));

    for flag in ["home-address", "home-agent", "name", "link", "spi", "key-file"] {
        let (start, rest) = line.split_once(&format!("--{flag} ")).unwrap();
        let rest = rest.split_once(' ').map_or("", |(_, rest)| rest);
        let message = over(&format!("{start}{rest}"), None).unwrap_err().to_string();
        assert!(message.contains(&format!("--{flag} is missing")), "{message}");
    }
    std::fs::write(&key_file, "no key").unwrap();
    let message = over(&line, None).unwrap_err().to_string();
    assert!(message.contains("hexadecimal") && !message.contains("no key\""), "{message}");
}
