//! The data plane that this machine's kernel may not have, `ip6tnl`, under Debian's kernel in a guest: the tests of the other
//! files that are ignored here, run there.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::lab::{Trial, workspace};
use harness::shell;
use serde_json::Value;

/// The files with such tests.
const FILES: [&str; 7] = ["failures", "guests", "hostile", "ipv4", "moves", "persistence", "traces"];
/// Several times what it takes: 200 s on one machine, 400 on another.
const PATIENCE: Duration = Duration::from_secs(1200);

#[test]
fn ip6tnl_carries_what_the_other_data_planes_do() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["test", "--no-run", "--quiet", "--package", "mobility-lab", "--message-format", "json"]);
    let built = shell::run(build.current_dir(workspace())).context("building the tests for the guest")?;
    let program = |name: &str| -> Result<PathBuf> {
        let messages = built.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut programs = messages.filter(|message| message["target"]["name"] == name);
        let found = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
        found.with_context(|| format!("the test program {name} was not built"))
    };
    let mut trial = Trial {
        modules: vec!["bridge", "veth", "tun", "ip6_tunnel", "sch_ingress", "cls_u32", "act_gact"],
        tools: vec!["ip", "bridge", "tc"],
        programs: Vec::new(),
    };
    for name in FILES {
        let arguments = ["--ignored", "--test-threads=1"].map(str::to_owned);
        trial.programs.push((program(name)?, arguments.to_vec()));
    }
    let mut has_passed = true;
    for (name, ended) in FILES.iter().zip(trial.run(PATIENCE)?) {
        println!("{name}: {:?}\n{}", ended.status, ended.output);
        has_passed &= ended.status == Some(0) && !ended.output.contains(" 0 passed");
    }
    ensure!(has_passed, "not all tests passed in the guest");
    Ok(())
}
