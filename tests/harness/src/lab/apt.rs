//! The host's packages: which the lab needs and what for, and installing what is missing. Never touches a host on which
//! all are present.

use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use super::say;
use crate::shell;

/// A Debian package and why it is needed.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// What the lab does with it.
    pub purpose: &'static str,
}

/// All of them.
pub const PACKAGES: &[Package] = &[
    Package { name: "qemu-system-x86", purpose: "runs the guests, by emulation" },
    Package { name: "mmdebstrap", purpose: "makes the base image's Debian root file system" },
    Package { name: "e2fsprogs", purpose: "makes and checks ext4 images without mounting them" },
    Package { name: "busybox-static", purpose: "sets up the network inside a guest" },
    Package { name: "gcc", purpose: "links the guest's program" },
    Package { name: "libc6-dev", purpose: "links it statically" },
    Package { name: "iproute2", purpose: "shows and sets the host's network" },
];

/// Those that only a disk whose files can share blocks needs.
pub const REFLINK: &[Package] =
    &[Package { name: "xfsprogs", purpose: "makes a file system whose files can share blocks" }];

/// Those that only the fuzzer needs.
pub const FUZZER: &[Package] = &[
    Package { name: "g++", purpose: "builds the fuzzer's own library, libFuzzer" },
    Package { name: "libc6-dev", purpose: "links it" },
];

/// Those that the tests of our wire formats compare with.
pub const ORACLES: &[Package] = &[
    Package { name: "tshark", purpose: "shows what another program reads in our packets" },
    Package { name: "python3-venv", purpose: "holds two more of such programs" },
];

/// What advertises a foreign link to a mobile node.
pub const ROUTER: &[Package] =
    &[Package { name: "radvd", purpose: "is the router of a link that a guest moves to" }];

/// What makes a router's namespace one that translates addresses.
pub const NAT: &[Package] = &[Package { name: "nftables", purpose: "sets up the kernel's NAT" }];

/// What a guest of IPv4 asks its link with.
pub const BUSYBOX: &[Package] = &[Package {
    name: "busybox-static",
    purpose: "asks a link for neighbours and an address (arping, udhcpc)",
}];

/// Installs what the lab needs and is missing; nothing when nothing is missing.
///
/// # Errors
/// As for [`install`].
pub fn setup() -> Result<()> {
    install(PACKAGES)
}

/// Installs those that are missing, by apt, saying what and why.
///
/// # Errors
/// When something must be installed and the caller is not root, or apt fails.
pub fn install(packages: &[Package]) -> Result<()> {
    // Tests of one program start together, and apt serves one.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    let missing: Vec<&Package> =
        packages.iter().filter(|package| installed(package.name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("These Debian packages are missing and will be installed by apt:");
    for package in &missing {
        eprintln!("  {:<16} {}", package.name, package.purpose);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !is_root() {
        bail!(
            "installing packages needs root, and this is not root. Run this once, then try again:\n  \
             sudo apt-get update && sudo apt-get install --no-install-recommends {}",
            names.join(" ")
        );
    }
    update()?;
    let arguments = install_arguments(&names, &|name| installed(name), &|name| candidate(name));
    say(&format!("apt-get {}", arguments.join(" ")));
    shell::run(apt_get().args(&arguments)).map(drop)
}

/// `apt-get update`.
///
/// # Errors
/// When the caller is not root or the mirrors do not answer.
pub(super) fn update() -> Result<()> {
    if !is_root() {
        bail!("the package lists are missing or old, and renewing them needs root: sudo apt-get update");
    }
    say("apt-get update");
    shell::run(apt_get().args(["update", "-q"])).map(drop)
}

/// Whether this process may do what root may.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The arguments of the `apt-get` that installs `missing`.
///
/// A machine may ship a qemu-utils newer than the qemu-system-x86 it can install. The two share libraries of one exact
/// version, so apt would give up ("held broken packages") unless both come from one version in one command.
pub(super) fn install_arguments(
    missing: &[&str],
    installed: &dyn Fn(&str) -> Option<String>,
    candidate: &dyn Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["install", "-y", "-q", "--no-install-recommends"].map(String::from).into();
    arguments.extend(missing.iter().map(|name| (*name).to_owned()));
    if missing.contains(&"qemu-system-x86")
        && let (Some(utils), Some(system)) = (installed("qemu-utils"), candidate("qemu-system-x86"))
        && utils != system
    {
        arguments.push("--allow-downgrades".to_owned());
        arguments.push(format!("qemu-utils={system}"));
    }
    arguments
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The installed version of a package.
#[must_use]
pub fn installed(name: &str) -> Option<String> {
    let format = "-f=${db:Status-Status} ${Version}";
    let out = shell::output(Command::new("dpkg-query").args(["-W", format, name])).ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Some(text.strip_prefix("installed ")?.trim().to_owned())
}

fn candidate(name: &str) -> Option<String> {
    let policy = shell::run(Command::new("apt-cache").args(["policy", name])).ok()?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

/// The Debian mirrors this host uses, as lines for a sources.list.
///
/// # Errors
/// When apt knows none.
pub(super) fn sources() -> Result<(String, Vec<String>)> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)";
    let list = || {
        shell::run(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))
    };
    let mut targets = list()?;
    if !targets.contains(" Debian") {
        update()?;
        targets = list()?;
    }
    parse_sources(&targets).context("apt knows no Debian mirror; look at /etc/apt/sources.list.d")
}

/// The release's name and the sources that belong to it, out of `apt-get indextargets`.
pub(super) fn parse_sources(targets: &str) -> Option<(String, Vec<String>)> {
    let debian: Vec<(&str, &str)> = targets
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (uri, release, component) = (words.next()?, words.next()?, words.next()?);
            (words.next() == Some("Debian") && component == "main").then_some((uri, release))
        })
        .collect();
    let (_, suite) = debian.iter().find(|(_, release)| !release.contains('-'))?;
    let mut lines: Vec<String> = debian
        .iter()
        .filter(|(_, release)| release == suite || release.strip_suffix("-security") == Some(suite))
        .map(|(uri, release)| format!("deb {uri} {release} main"))
        .collect();
    lines.sort_unstable();
    lines.dedup();
    Some(((*suite).to_owned(), lines))
}
