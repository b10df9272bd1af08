//! A driver in this process.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use async_trait::async_trait;
use migrate_driver::nbd::{NbdServer, Overlay};
use migrate_driver::{DriverError, Hypervisor, Mode, Tap as DiskTap, TapKind, VmDefinition};
use tokio::net::UnixStream;

use crate::{Answer, Call, KILL, Site, memory_params};

/// The name of the export.
const EXPORT: &str = "disk";

/// Makes a driver, as each start of a daemon does.
type Make = Box<dyn Fn() -> Arc<dyn Hypervisor> + Send + Sync>;

/// A driver, and what it needs around it.
pub struct Local {
    make: Make,
    driver: Mutex<Arc<dyn Hypervisor>>,
    definition: VmDefinition,
    /// For overlays and their sockets.
    scratch: PathBuf,
    tap: Mutex<Option<Tap>>,
}

struct Tap {
    overlay: Arc<Overlay>,
    _server: NbdServer,
}

impl Local {
    /// For the guest of `definition`, with overlays in `scratch`.
    pub fn new(make: Make, definition: VmDefinition, scratch: PathBuf) -> Self {
        let driver = Mutex::new(make());
        Self { make, driver, definition, scratch, tap: Mutex::default() }
    }

    fn driver(&self) -> Arc<dyn Hypervisor> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn disk(&self) -> &str {
        self.definition.disks.first().map_or("", |disk| disk.name.as_str())
    }

    /// A new overlay, and its socket.
    fn overlay(&self) -> Result<PathBuf> {
        let path = &self.definition.disks.first().context("a guest with a disk")?.path;
        let size = size_of(path)?;
        let overlay = Arc::new(Overlay::new(size, &self.scratch)?);
        let socket = self.scratch.join("tap.sock");
        let mut tap = self.tap.lock().unwrap_or_else(PoisonError::into_inner);
        *tap = None;
        let _ = std::fs::remove_file(&socket);
        let server = NbdServer::start(&socket, vec![(EXPORT.to_owned(), overlay.clone())])?;
        *tap = Some(Tap { overlay, _server: server });
        Ok(socket)
    }

    async fn act(&self, call: Call) -> Result<Answer, DriverError> {
        let (driver, definition) = (self.driver(), &self.definition);
        let vm = &definition.name;
        let mut status = None;
        match call {
            Call::Start => driver.start(definition).await?,
            Call::StartIncoming => driver.start_incoming(definition).await?,
            Call::IncomingLoaded => driver.incoming_loaded(vm).await?,
            Call::WaitPaused => drop(driver.wait_paused(vm).await?),
            Call::FinishMemory => driver.finish_memory(vm).await?,
            Call::Resume => driver.resume(vm).await?,
            Call::Pause => driver.pause(vm).await?,
            Call::Rollback => status = Some(driver.rollback(vm).await?),
            Call::Status => status = Some(driver.status(vm).await?),
            Call::Stop => driver.stop(vm, KILL).await?,
            Call::CheckMovable(live) => {
                driver.check_movable(definition, if live { Mode::Live } else { Mode::Cold }).await?;
            }
            Call::Tap => match self.overlay() {
                Ok(socket) => {
                    let (disk, export) = (self.disk().into(), EXPORT.into());
                    driver.tap_all(vm, &socket, &[DiskTap { disk, export, kind: TapKind::Mirror }]).await?;
                }
                Err(error) => return Ok(Answer::Failed(format!("an overlay: {error:#}"))),
            },
            Call::Drain => driver.drain(vm, self.disk()).await?,
            Call::Untap => driver.untap(vm, self.disk()).await?,
            Call::Restart => *self.driver.lock().unwrap_or_else(PoisonError::into_inner) = (self.make)(),
        }
        let tap = self.tap.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Answer::Done(status, tap.as_ref().map_or(0, |tap| tap.overlay.dirty_bytes())))
    }
}

/// A file's or a block device's.
fn size_of(path: &std::path::Path) -> Result<u64> {
    use std::io::Seek;
    let mut file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    Ok(file.seek(std::io::SeekFrom::End(0))?)
}

#[async_trait]
impl Site for Local {
    async fn call(&self, call: Call) -> Result<Answer> {
        Ok(match self.act(call).await {
            Ok(answer) => answer,
            Err(DriverError::NotRunning { .. }) => Answer::NotRunning,
            Err(DriverError::AlreadyRunning { .. }) => Answer::AlreadyRunning,
            Err(DriverError::WrongState { .. }) => Answer::WrongState,
            Err(error) => Answer::Failed(error.to_string()),
        })
    }

    async fn send_memory(&self, cold: bool) -> Result<UnixStream> {
        Ok(self.driver().send_memory(&self.definition.name, &memory_params(cold)).await?)
    }

    async fn open_incoming(&self) -> Result<UnixStream> {
        Ok(self.driver().open_incoming(&self.definition.name).await?)
    }
}
