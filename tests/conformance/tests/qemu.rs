//! QEMU's driver under the suite: two hosts that are two directories here, with one disk.

use std::sync::Arc;

use anyhow::Result;
use conformance::Local;
use conformance::suite::{self, Suite};
use harness::guest::Guest;
use harness::{Collector, Lab, files};
use migrate_driver::{Qemu, VmDefinition};

#[tokio::test(flavor = "multi_thread")]
async fn qemu_conforms() -> Result<()> {
    let lab = Lab::open()?;
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk.raw");
    files::copy_sparse(&lab.small_base()?, &disk)?;
    let collector = Collector::start()?;
    let guest = Guest::new(&lab, "conforms", &disk, collector.port());
    let definition = VmDefinition::parse(&guest.definition(), dir.path())?;
    let site = |name: &str| -> Result<Local> {
        let home = dir.path().join(name);
        files::create_dir(&home)?;
        let run = home.join("run");
        let make = move || Arc::new(Qemu::new(run.clone())) as Arc<_>;
        Ok(Local::new(Box::new(make), definition.clone(), home))
    };
    let (a, b) = (site("a")?, site("b")?);
    let checked = suite::run(&Suite { a: &a, b: &b, collector: &collector }).await;
    // Whatever came of it, nothing is left.
    for site in [&a, &b] {
        conformance::Site::call(site, conformance::Call::Stop).await?;
    }
    checked
}
