//! `conformance-agent DEFINITION PROGRAM DIR ADDRESS`: the Xen driver of the host that it runs on, for the suite. Its
//! guest is that of the definition file, its keepers are run by PROGRAM (longhaul), its files are in DIR.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use conformance::{Local, agent};
use migrate_driver::{VmDefinition, Xen, XenSettings};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [definition, program, dir, address] = words.as_slice() else {
        bail!("usage: conformance-agent DEFINITION PROGRAM DIR ADDRESS");
    };
    let text = std::fs::read_to_string(definition).with_context(|| format!("reading {definition}"))?;
    let definition = VmDefinition::parse(&text, definition.as_ref())?;
    let (program, dir) = (PathBuf::from(program), PathBuf::from(dir));
    std::fs::create_dir_all(&dir)?;
    let (run_dir, scripts_dir) = (dir.join("run"), dir.join("scripts"));
    let settings = XenSettings { run_dir, scripts_dir, program, ..XenSettings::default() };
    let make = move || Arc::new(Xen::new(settings.clone())) as Arc<_>;
    let address = address.parse().context("the address")?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async { agent::serve(Local::new(Box::new(make), definition, dir), address).await })
}
