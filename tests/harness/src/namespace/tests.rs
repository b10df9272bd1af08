use std::fs;

use super::*;

#[test]
fn a_namespace_is_a_network_of_its_own() {
    let namespace = Namespace::new().unwrap();
    let links = namespace.ip("-o link").unwrap();
    assert!(links.lines().count() >= 1 && links.contains("lo:") && !links.contains("eth0"), "{links}");
    namespace.sysctl("net/ipv4/ip_forward", "1").unwrap();
    let inside = namespace.enter(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward")).unwrap().unwrap();
    assert_eq!(inside.trim(), "1");
    assert!(namespace.sysctl("net/no/such", "1").is_err());
    // The caller is where it was.
    assert_ne!(fs::read_link("/proc/thread-self/ns/net").unwrap(), fs::read_link(namespace.path()).unwrap());
}

#[test]
fn other_programs_reach_it_by_its_path() {
    let [a, b] = [Namespace::new().unwrap(), Namespace::new().unwrap()];
    a.ip(&format!("link add left type veth peer name right netns {}", b.path().display())).unwrap();
    b.ip("link show right").unwrap();
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", a.path().display())).args(["ip", "link", "show", "left"]);
    shell::run(&mut nsenter).unwrap();
    assert!(!a.output(Command::new("ip").args(["link", "show", "right"])).unwrap().status.success());
    assert!(a.spawn(&mut Command::new("true")).unwrap().wait().unwrap().success());
}

#[test]
fn a_panic_inside_is_an_error_outside() {
    let error = Namespace::new().unwrap().enter(|| panic!("a reason")).unwrap_err().to_string();
    assert!(error.contains("a reason"), "{error}");
}
