//! Independent implementations of the Mobility Header, made ready and asked: scapy and pypcapkit in a Python environment
//! under `.cache/interop`, and tshark. Decides nothing about what is right; the tests do.

pub mod cases;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use harness::lab::{apt, workspace};
use harness::{files, shell};
use serde_json::Value;

/// The Python packages, each at the version whose defects the tests know.
const PYTHON_PACKAGES: [&str; 2] = ["scapy==2.8.0", "pypcapkit==1.5.0b14"];
/// A capture file's link type for packets that begin with their IP header.
const LINKTYPE_RAW: u32 = 101;

/// The programs, installed.
#[derive(Debug)]
pub struct Oracles {
    dir: PathBuf,
    python: PathBuf,
}

impl Oracles {
    /// Installs what is missing: tshark by apt, the Python packages by pip.
    ///
    /// # Errors
    /// When that fails, for instance without the network or without root.
    pub fn open() -> Result<Self> {
        apt::install(apt::ORACLES)?;
        let dir = workspace().join(".cache/interop");
        files::create_dir(&dir)?;
        // Tests run beside each other; one makes the environment.
        let _lock = files::lock(&dir.join("lock"))?;
        let environment = dir.join(PYTHON_PACKAGES.join("-"));
        let oracles = Self { dir, python: environment.join("bin/python") };
        let done = environment.join("done");
        if !done.exists() {
            // What an interrupted attempt left.
            if environment.exists() {
                fs::remove_dir_all(&environment)
                    .with_context(|| format!("removing {}", environment.display()))?;
            }
            shell::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
            shell::run(Command::new(&oracles.python).args(pip).args(PYTHON_PACKAGES))?;
            fs::write(&done, "").with_context(|| format!("writing {}", done.display()))?;
        }
        Ok(oracles)
    }

    /// Runs `oracles.py` with this word and this text on its standard input.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn python(&self, word: &str, input: &str) -> Result<Value> {
        let script = workspace().join("tests/interop/oracles.py");
        let mut command = Command::new(&self.python);
        command.arg(script).arg(word).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting the Python of .cache/interop")?;
        let mut stdin = child.stdin.take().context("Python's standard input")?;
        let input = input.to_owned();
        let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().context("waiting for oracles.py")?;
        if !output.status.success() {
            bail!("oracles.py {word} ended with {}: {}", output.status, shell::tail(&output.stderr));
        }
        writer.join().ok().context("writing to oracles.py")??;
        serde_json::from_slice(&output.stdout).context("reading what oracles.py printed")
    }

    /// What tshark shows of each IPv6 packet: the values of these fields, several of one separated by commas.
    ///
    /// # Errors
    /// When tshark fails or does not show every packet.
    pub fn tshark(&self, name: &str, packets: &[Vec<u8>], fields: &[&str]) -> Result<Vec<Vec<String>>> {
        let capture = self.dir.join(format!("{name}.pcap"));
        fs::write(&capture, pcap(packets)).with_context(|| format!("writing {}", capture.display()))?;
        let mut command = Command::new("tshark");
        command.arg("-r").arg(&capture).args(["-T", "fields", "-E", "separator=|"]);
        for field in fields {
            command.args(["-e", field]);
        }
        let text = shell::run(&mut command)?;
        let shown: Vec<Vec<String>> =
            text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect();
        ensure!(shown.len() == packets.len(), "tshark shows {} of {} packets", shown.len(), packets.len());
        Ok(shown)
    }
}

/// A capture file (the classic format of libpcap, version 2.4).
fn pcap(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, LINKTYPE_RAW] {
        out.extend(u32::to_le_bytes(word));
    }
    for packet in packets {
        let len = packet.len() as u32;
        for word in [0, 0, len, len] {
            out.extend(word.to_le_bytes());
        }
        out.extend(packet);
    }
    out
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of hexadecimal digits.
///
/// # Errors
/// When the value is no text, or the text something else.
pub fn from_hex(value: &Value) -> Result<Vec<u8>> {
    let text = value.as_str().with_context(|| format!("{value} is no text"))?;
    let pairs = (0..text.len()).step_by(2);
    let bytes = pairs.map(|at| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()));
    bytes.collect::<Option<_>>().with_context(|| format!("{text} is not hexadecimal"))
}
