//! Where a platform keeps its things, and the configuration file. Reads files; opens no socket.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use longhaul_proto::wire::MAX_NAME_BYTES;
use mobility::PlaneChoice;
use mobility::access::MAX_DNS;
use serde::Deserialize;

use crate::address::mobile_node::{MobileNodeConfig, NodeConfig};

/// A unix socket's path has room for 107 bytes; the longest name below the run directory is that of a VM's socket.
const LONGEST_SOCKET_BELOW_RUN: usize = "/vm/".len() + 64 + "/mem.sock".len();
const UNIX_PATH_BYTES: usize = 107;

/// The example that `--help` and the README point to; it is parsed by a test, so it stays true.
pub(crate) const EXAMPLE: &str = include_str!("../../longhaul.example.toml");

/// The directories of a platform.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    etc: PathBuf,
    var: PathBuf,
    run: PathBuf,
}

impl Layout {
    /// Everything below `root`, or in the system's own places when there is none.
    pub(crate) fn new(root: Option<&Path>) -> Self {
        match root {
            Some(root) => {
                let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
                Layout { etc: root.clone(), run: root.join("run"), var: root }
            }
            None => Layout {
                etc: "/etc/longhaul".into(),
                var: "/var/lib/longhaul".into(),
                run: "/run/longhaul".into(),
            },
        }
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.etc.join("longhaul.toml")
    }

    /// The key and the list of peers.
    pub(crate) fn identity(&self) -> PathBuf {
        self.var.join("identity")
    }

    /// The chunk store.
    pub(crate) fn store(&self) -> PathBuf {
        self.var.join("store")
    }

    /// Which peers pushed which bases.
    pub(crate) fn base_origins(&self) -> PathBuf {
        self.var.join("bases.json")
    }

    /// Images of VMs that came here: `images/VM/DISK.raw`.
    pub(crate) fn image(&self, vm: &str, disk: &str) -> PathBuf {
        self.images().join(vm).join(format!("{disk}.raw"))
    }

    /// Images of VMs that came here.
    pub(crate) fn images(&self) -> PathBuf {
        self.var.join("images")
    }

    /// Replicas: `replicas/VM/DISK/`.
    pub(crate) fn replicas(&self) -> PathBuf {
        self.var.join("replicas")
    }

    /// Journals and reports of jobs.
    pub(crate) fn journal(&self) -> PathBuf {
        self.var.join("journal")
    }

    /// What a home agent knows: `home-agent/VM.json`.
    pub(crate) fn home_agent(&self) -> PathBuf {
        self.var.join("home-agent")
    }

    /// VM definitions: `vms/NAME.toml`.
    pub(crate) fn vms(&self) -> PathBuf {
        self.var.join("vms")
    }

    /// Scratch files that have no name: the overlays of running jobs.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.var.join("scratch")
    }

    /// What other programs run for us.
    pub(crate) fn scripts(&self) -> PathBuf {
        self.var.join("scripts")
    }

    /// Sockets and pid files.
    pub(crate) fn run(&self) -> PathBuf {
        self.run.clone()
    }

    /// The control socket.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.run.join("longhaul.sock")
    }

    /// Everything that the platform keeps: directories, with all that is in them, and the configuration.
    pub(crate) fn own(&self) -> [PathBuf; 12] {
        [
            self.identity(),
            self.store(),
            self.replicas(),
            self.journal(),
            self.vms(),
            self.scratch(),
            self.run(),
            self.images(),
            self.home_agent(),
            self.scripts(),
            self.base_origins(),
            self.config(),
        ]
    }

    /// Creates the directories a daemon needs.
    pub(crate) fn create(&self) -> Result<(), ConfigError> {
        let run_bytes = self.run.as_os_str().len();
        let longest = UNIX_PATH_BYTES - LONGEST_SOCKET_BELOW_RUN;
        if run_bytes > longest {
            return Err(ConfigError::PathTooLong { path: self.run.clone(), longest });
        }
        let dirs = [
            self.identity(),
            self.store(),
            self.replicas(),
            self.journal(),
            self.vms(),
            self.scratch(),
            self.run.join("vm"),
            self.images(),
        ];
        for dir in dirs {
            std::fs::create_dir_all(&dir).map_err(|source| ConfigError::Io { path: dir.clone(), source })?;
        }
        // A migration's plan, which is in its journal, may hold the key for the VM's address.
        let journal = self.journal();
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&journal, owner_only)
            .map_err(|source| ConfigError::Io { path: journal.clone(), source })
    }
}

/// The configuration file, all of it optional. See `longhaul.example.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// What this platform calls itself.
    pub name: String,
    /// Where it listens for its peers (UDP).
    pub listen: SocketAddr,
    /// zstd level for what goes over the wire.
    pub compression_level: i32,
    /// zstd level for what `base add` puts into the store.
    pub store_level: i32,
    /// Congestion controller: CUBIC for clean paths, BBR where packets are lost at random.
    pub congestion: Congestion,
    /// Bytes of image data that may be under way in one transfer.
    pub window_bytes: usize,
    /// Silence after which a connection is given up, in seconds.
    pub idle_timeout_s: u64,
    /// The programs that a peer's VM may be run with here: a definition names its QEMU, and must not name just anything.
    pub qemu_binaries: Vec<String>,
    /// The QEMU arguments that a peer's VM may bring, an option with its value each; `*` is for any.
    pub qemu_arguments: Vec<String>,
    /// What runs this platform's VMs.
    pub hypervisor: HypervisorKind,
    /// Xen: bridges of other platforms, and which of this one's stands for each.
    pub bridges: BTreeMap<String, String>,
    /// Xen: what connects VMs' network interfaces to their bridges, in place of our own short form of vif-bridge.
    pub vif_script: Option<PathBuf>,
    /// How VMs' addresses follow them; without it they do not.
    pub mobility: Option<MobilityConfig>,
    /// Set on the host that is the home agent.
    pub home_agent: Option<HomeAgentConfig>,
    /// Set in a guest that looks after its address itself, for `longhaul mobile-node`.
    pub mobile_node: Option<MobileNodeConfig>,
}

/// This platform as a mobile access gateway.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MobilityConfig {
    /// This platform's own address, where the home agent sends what is for its VMs.
    pub address: Ipv6Addr,
    /// The peer that is the home agent.
    pub home_agent: String,
    /// Its address.
    pub home_agent_address: Ipv6Addr,
    /// The name of the tunnel interface, at most 15 bytes.
    #[serde(default = "gateway_interface")]
    pub interface: String,
    /// Who carries packets.
    #[serde(default)]
    pub plane: PlaneChoice,
    /// An address for tunnels alone, which the data plane `seg6` needs.
    #[serde(default)]
    pub user_plane: Option<Ipv6Addr>,
    /// The DNS servers that VMs are told of: those of IPv6 by router advertisements, those of IPv4 by DHCP.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
}

/// This host as a home agent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HomeAgentConfig {
    /// Its address.
    pub address: Ipv6Addr,
    /// The prefixes of which VMs have a part, as `2001:db8:f::/48`: what is for them comes to this host.
    pub prefixes: Vec<String>,
    /// The same of IPv4, as `198.51.100.0/24`.
    #[serde(default)]
    pub ipv4_prefixes: Vec<String>,
    /// Its IPv4 address, for guests on links that have IPv4 only.
    #[serde(default)]
    pub ipv4_address: Option<Ipv4Addr>,
    /// The name of the tunnel interface, at most 15 bytes.
    #[serde(default = "home_agent_interface")]
    pub interface: String,
    /// Who carries packets.
    #[serde(default)]
    pub plane: PlaneChoice,
    /// An address for tunnels alone, which the data plane `seg6` needs.
    #[serde(default)]
    pub user_plane: Option<Ipv6Addr>,
    /// How many VMs it serves at most.
    #[serde(default = "max_machines")]
    pub max_machines: usize,
    /// Guests on hosts that are not ours, which register themselves.
    #[serde(default)]
    pub nodes: Vec<NodeConfig>,
}

fn gateway_interface() -> String {
    "longhaul".to_owned()
}

fn home_agent_interface() -> String {
    "longhaul-home".to_owned()
}

fn max_machines() -> usize {
    100_000
}

/// What runs VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HypervisorKind {
    /// QEMU, of which the platform starts one for each VM.
    #[default]
    Qemu,
    /// Xen, of whose first domain the platform is a program.
    Xen,
}

/// A QUIC congestion controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Congestion {
    /// RFC 9438.
    Cubic,
    /// BBR, experimental in quinn.
    Bbr,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            name: host_name(),
            listen: SocketAddr::from(([0; 8], 4433)),
            compression_level: 3,
            store_level: chunkstore::LEVEL,
            congestion: Congestion::Cubic,
            window_bytes: 64 << 20,
            idle_timeout_s: 10,
            qemu_binaries: vec!["qemu-system-x86_64".to_owned()],
            qemu_arguments: Vec::new(),
            hypervisor: HypervisorKind::Qemu,
            bridges: BTreeMap::new(),
            vif_script: None,
            mobility: None,
            home_agent: None,
            mobile_node: None,
        }
    }
}

impl Config {
    /// The file's settings, or the defaults when there is no file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Config::default()),
            Err(source) => return Err(ConfigError::Io { path: path.to_owned(), source }),
        };
        Config::parse(&text, path)
    }

    /// The settings that this text makes; `path` is only for the error message.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Config = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        if config.name.len() > MAX_NAME_BYTES {
            let what = format!("name has {} bytes, more than {MAX_NAME_BYTES}", config.name.len());
            return Err(ConfigError::Value { path: path.to_owned(), what });
        }
        let range = 1 << 20..=1 << 30;
        if !range.contains(&config.window_bytes) {
            let what = format!("window_bytes = {} is not within 1 MiB to 1 GiB", config.window_bytes);
            return Err(ConfigError::Value { path: path.to_owned(), what });
        }
        let levels = [("compression_level", config.compression_level), ("store_level", config.store_level)];
        if let Some((key, level)) = levels.into_iter().find(|(_, level)| !(-7..=19).contains(level)) {
            let what = format!("{key} = {level} is not within -7 to 19");
            return Err(ConfigError::Value { path: path.to_owned(), what });
        }
        let interfaces = [
            config.mobility.as_ref().map(|mobility| &mobility.interface),
            config.home_agent.as_ref().map(|home_agent| &home_agent.interface),
        ];
        if let Some(name) = interfaces.into_iter().flatten().find(|name| !(1..=15).contains(&name.len())) {
            let what = format!("interface = {name:?}: it must be 1 to 15 bytes long");
            return Err(ConfigError::Value { path: path.to_owned(), what });
        }
        if let Some(dns) =
            config.mobility.as_ref().map(|mobility| &mobility.dns).filter(|dns| dns.len() > MAX_DNS)
        {
            let what = format!("mobility.dns names {} servers, more than {MAX_DNS}", dns.len());
            return Err(ConfigError::Value { path: path.to_owned(), what });
        }
        let nodes = config.home_agent.iter().flat_map(|home_agent| &home_agent.nodes).map(NodeConfig::check);
        let own = config.mobile_node.iter().map(MobileNodeConfig::check);
        if let Some(what) = nodes.chain(own).find_map(Result::err) {
            return Err(ConfigError::Value { path: path.to_owned(), what });
        }
        if !(1..=600).contains(&config.idle_timeout_s) {
            let what = format!("idle_timeout_s = {} is not within 1 to 600", config.idle_timeout_s);
            return Err(ConfigError::Value { path: path.to_owned(), what });
        }
        Ok(config)
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "longhaul".to_owned(), |name| name.trim().to_owned())
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A file or directory is out of reach.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// Not TOML, or a key that is not known.
    #[error("{path}: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    /// A value out of bounds.
    #[error("{path}: {what}")]
    Value {
        path: PathBuf,
        /// Which value, and its bounds.
        what: String,
    },
    /// Sockets below it could not be named.
    #[error(
        "{path}: this path has more than {longest} bytes, too long for the unix sockets below it; use a shorter --root"
    )]
    PathTooLong {
        path: PathBuf,
        /// The most it may have.
        longest: usize,
    },
}

#[cfg(test)]
mod tests {
    use mobility::DataPlane;

    use super::*;

    #[test]
    fn the_example_is_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("longhaul.toml");
        std::fs::write(&path, EXAMPLE).unwrap();
        let example = Config::load(&path).unwrap();
        let default = Config::default();
        assert_eq!(example.listen, default.listen);
        assert_eq!(example.window_bytes, default.window_bytes);
        assert_eq!(example.congestion, default.congestion);
        assert_eq!(example.compression_level, default.compression_level);
        assert_eq!(example.store_level, default.store_level);
        assert_eq!(example.idle_timeout_s, default.idle_timeout_s);
        assert_eq!(example.qemu_binaries, default.qemu_binaries);
        assert_eq!(example.qemu_arguments, default.qemu_arguments);
        assert_eq!((example.hypervisor, example.bridges), (default.hypervisor, default.bridges));
    }

    #[test]
    fn an_unknown_key_names_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("longhaul.toml");
        std::fs::write(&path, "name = \"a\"\nlisen = \"[::]:1\"\n").unwrap();
        let message = Config::load(&path).unwrap_err().to_string();
        assert!(
            message.contains("longhaul.toml") && message.contains("lisen") && message.contains('2'),
            "{message}"
        );
    }

    /// What this line makes of a gateway's part.
    fn mobility(line: &str) -> Result<MobilityConfig, ConfigError> {
        let own =
            "address = \"2001:db8:a::1\"\nhome_agent = \"home\"\nhome_agent_address = \"2001:db8:1::1\"";
        let config = Config::parse(&format!("[mobility]\n{own}\n{line}"), Path::new("x.toml"));
        config.map(|config| config.mobility.unwrap())
    }

    #[test]
    fn as_many_dns_servers_as_an_option_holds_are_named() {
        let named = |count: usize| mobility(&format!("dns = [{}]", "\"2001:db8::53\",".repeat(count)));
        assert_eq!(named(MAX_DNS).unwrap().dns.len(), MAX_DNS);
        let message = named(MAX_DNS + 1).unwrap_err().to_string();
        assert!(message.contains("mobility.dns") && message.contains("17"), "{message}");
    }

    #[test]
    fn a_data_plane_is_named_or_found() {
        let plane = |line: &str| mobility(line).map(|mobility| mobility.plane);
        assert_eq!(plane("").unwrap(), PlaneChoice::Auto);
        assert_eq!(plane("plane = \"auto\"").unwrap(), PlaneChoice::Auto);
        for each in DataPlane::ALL {
            assert_eq!(plane(&format!("plane = \"{each}\"")).unwrap(), PlaneChoice::Only(each));
        }
        let message = plane("plane = \"ip6tunnel\"").unwrap_err().to_string();
        assert!(message.contains("ip6tunnel") && message.contains("seg6"), "{message}");
    }

    #[test]
    fn a_name_that_no_message_could_hold_is_refused() {
        let named =
            |len: usize| Config::parse(&format!("name = \"{}\"", "n".repeat(len)), Path::new("x.toml"));
        assert_eq!(named(MAX_NAME_BYTES).unwrap().name.len(), MAX_NAME_BYTES);
        let message = named(MAX_NAME_BYTES + 1).unwrap_err().to_string();
        assert!(message.contains("x.toml") && message.contains("256 bytes"), "{message}");
    }

    #[test]
    fn a_long_root_is_refused_before_any_socket() {
        let layout = Layout::new(Some(Path::new(&format!("/tmp/{}", "x".repeat(80)))));
        assert!(matches!(layout.create(), Err(ConfigError::PathTooLong { .. })));
    }
}
