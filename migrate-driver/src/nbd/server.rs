//! The server: one thread for the socket, one a connection, blocking reads and writes.
//!
//! Threads, because every request is a system call into page cache: there is nothing to await, and a hypervisor opens
//! one connection a disk. Never touches the network, never waits for anything but its client and the scratch file.

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::codec::{
    self, Command, NbdError, OptionHeader, OptionKind, Request, WireError, info_block_size, info_export,
    option_reply, server_name,
};
use super::overlay::Overlay;

/// A hypervisor opens one connection a tap; more than this is no hypervisor.
const MAX_CONNECTIONS: usize = 64;
/// Options before a client has to choose an export.
const MAX_OPTIONS: usize = 64;
/// Room for a batch of small requests.
const BUFFER_BYTES: usize = 256 * 1024;

/// A running server. Dropping it closes all connections, ends its threads and removes the socket.
#[derive(Debug)]
pub struct NbdServer {
    socket: PathBuf,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// What there is to choose from, by name.
pub(super) type Exports = Vec<(String, Arc<Overlay>)>;

#[derive(Debug)]
struct Shared {
    listener: UnixListener,
    exports: Exports,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    stopping: bool,
    next_id: u64,
    open: HashMap<u64, (UnixStream, Option<JoinHandle<()>>)>,
}

impl NbdServer {
    /// Listens on `socket`, which must not exist or be a dead server's. Only our user may connect.
    pub fn start(socket: &Path, exports: Vec<(String, Arc<Overlay>)>) -> io::Result<NbdServer> {
        remove_dead_socket(socket)?;
        let listener = UnixListener::bind(socket)?;
        fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
        let shared = Arc::new(Shared { listener, exports, connections: Mutex::default() });
        let acceptor = {
            let shared = shared.clone();
            thread::Builder::new().name("nbd-accept".into()).spawn(move || accept(&shared))?
        };
        Ok(NbdServer { socket: socket.into(), shared, acceptor: Some(acceptor) })
    }

    /// The socket it listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Closes all connections and removes the socket; the same as dropping it.
    pub fn stop(self) {}
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let threads: Vec<JoinHandle<()>> = {
            let mut connections = self.shared.connections();
            connections.stopping = true;
            for (stream, _) in connections.open.values() {
                // It may be closed already.
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
            connections.open.values_mut().filter_map(|(_, thread)| thread.take()).collect()
        };
        // Wakes `accept`. (A listening unix socket can be shut down; the thread then gets an error.)
        let _ = rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Both);
        for thread in threads.into_iter().chain(self.acceptor.take()) {
            if thread.join().is_err() {
                tracing::error!(socket = %self.socket.display(), "an NBD thread panicked");
            }
        }
        let _ = fs::remove_file(&self.socket);
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find<'a>(exports: &'a Exports, name: &str) -> Option<&'a Arc<Overlay>> {
    exports.iter().find(|(export, _)| export == name).map(|(_, overlay)| overlay)
}

fn remove_dead_socket(socket: &Path) -> io::Result<()> {
    match UnixStream::connect(socket) {
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, format!("{} has a live server", socket.display()))),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(socket),
        // Anything else shows when we bind.
        Err(_) => Ok(()),
    }
}

fn accept(shared: &Arc<Shared>) {
    loop {
        let stream = match shared.listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if shared.connections().stopping => return,
            Err(error) => {
                tracing::warn!(%error, "NBD accept failed");
                // Out of descriptors, most likely: do not spin.
                thread::sleep(std::time::Duration::from_millis(50));
                continue;
            }
        };
        if let Err(error) = admit(shared, stream) {
            tracing::warn!(%error, "NBD connection refused");
        }
    }
}

/// Gives a connection its thread.
fn admit(shared: &Arc<Shared>, stream: UnixStream) -> io::Result<()> {
    let mut connections = shared.connections();
    if connections.stopping {
        return Ok(());
    }
    if connections.open.len() >= MAX_CONNECTIONS {
        return Err(io::Error::other(format!("{MAX_CONNECTIONS} are open already")));
    }
    let id = connections.next_id;
    connections.next_id += 1;
    let handle = stream.try_clone()?;
    let worker = shared.clone();
    // The thread takes the lock to leave, so it finds itself in the map.
    let thread =
        thread::Builder::new().name("nbd-connection".into()).spawn(move || serve(&worker, id, stream))?;
    connections.open.insert(id, (handle, Some(thread)));
    Ok(())
}

fn serve(shared: &Shared, id: u64, stream: UnixStream) {
    let mut export = None;
    let result = stream.try_clone().and_then(|writer| converse(&shared.exports, stream, writer, &mut export));
    let stopping = {
        let mut connections = shared.connections();
        connections.open.remove(&id);
        connections.stopping
    };
    let Err(error) = result else { return };
    tracing::debug!(%error, stopping, "NBD connection ended");
    // A hypervisor says goodbye. One that does not may have had a write on the way.
    if let (Some(overlay), false) = (export, stopping) {
        overlay.fail(format!("the hypervisor's NBD connection was lost: {error}"));
    }
}

/// One connection from greeting to goodbye. `export` is set when the client has chosen one.
fn converse(
    exports: &Exports,
    client: impl Read,
    answers: impl Write,
    export: &mut Option<Arc<Overlay>>,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, answers);
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, client);
    let Some(overlay) = negotiate(exports, &mut reader, &mut writer)? else { return Ok(()) };
    *export = Some(overlay.clone());
    transmit(&overlay, &mut reader, &mut writer)
}

/// Greeting and options; `None` when the client left in good order.
pub(super) fn negotiate(
    exports: &Exports,
    reader: &mut impl Read,
    writer: &mut impl Write,
) -> io::Result<Option<Arc<Overlay>>> {
    let flags = codec::FLAG_FIXED_NEWSTYLE | codec::FLAG_NO_ZEROES;
    writer.write_all(&codec::INIT_MAGIC.to_be_bytes())?;
    writer.write_all(&codec::OPTION_MAGIC.to_be_bytes())?;
    writer.write_all(&flags.to_be_bytes())?;
    writer.flush()?;
    let client = u32::from_be_bytes(read_array(reader)?);
    if client & !u32::from(flags) != 0 || client & u32::from(codec::FLAG_FIXED_NEWSTYLE) == 0 {
        return Err(hostile(WireError::NotFixedNewstyle(client)));
    }
    for _ in 0..MAX_OPTIONS {
        let header = OptionHeader::parse(&read_array(reader)?).map_err(hostile)?;
        let mut reply = |kind, data: &[u8]| writer.write_all(&option_reply(header.number, kind, data));
        if header.len > codec::MAX_OPTION_BYTES {
            io::copy(&mut reader.by_ref().take(header.len.into()), &mut io::sink())?;
            if header.kind == OptionKind::ExportName {
                return Err(invalid("an export name without end"));
            }
            reply(codec::REP_ERR_TOO_BIG, b"")?;
            writer.flush()?;
            continue;
        }
        let mut data = vec![0; header.len as usize];
        reader.read_exact(&mut data)?;
        match header.kind {
            OptionKind::ExportName => {
                let no_zeroes = client & u32::from(codec::FLAG_NO_ZEROES) != 0;
                return enter_by_name(exports, &data, no_zeroes, writer).map(Some);
            }
            OptionKind::Abort => {
                reply(codec::REP_ACK, b"")?;
                writer.flush()?;
                return Ok(None);
            }
            OptionKind::List if data.is_empty() => {
                for (name, _) in exports {
                    reply(codec::REP_SERVER, &server_name(name))?;
                }
                reply(codec::REP_ACK, b"")?;
            }
            OptionKind::List => reply(codec::REP_ERR_INVALID, b"")?,
            OptionKind::Info | OptionKind::Go => {
                let overlay = describe(exports, &data, &mut reply)?;
                writer.flush()?;
                if let (OptionKind::Go, Some(overlay)) = (header.kind, overlay) {
                    return Ok(Some(overlay));
                }
            }
            OptionKind::Other => reply(codec::REP_ERR_UNSUP, b"")?,
        }
        writer.flush()?;
    }
    Err(invalid("options without end"))
}

/// Answers INFO and GO.
fn describe(
    exports: &Exports,
    data: &[u8],
    reply: &mut impl FnMut(u32, &[u8]) -> io::Result<()>,
) -> io::Result<Option<Arc<Overlay>>> {
    let Some(name) = codec::export_name(data) else {
        return reply(codec::REP_ERR_INVALID, b"").map(|()| None);
    };
    let Some(overlay) = find(exports, name) else {
        return reply(codec::REP_ERR_UNKNOWN, b"").map(|()| None);
    };
    reply(codec::REP_INFO, &info_export(overlay.size()))?;
    reply(codec::REP_INFO, &info_block_size())?;
    reply(codec::REP_ACK, b"")?;
    Ok(Some(overlay.clone()))
}

/// The old way in: no error reply exists, only hanging up.
fn enter_by_name(
    exports: &Exports,
    name: &[u8],
    no_zeroes: bool,
    writer: &mut impl Write,
) -> io::Result<Arc<Overlay>> {
    let overlay = std::str::from_utf8(name).ok().and_then(|name| find(exports, name));
    let overlay = overlay.ok_or_else(|| invalid("there is no export of that name"))?;
    writer.write_all(&overlay.size().to_be_bytes())?;
    writer.write_all(&codec::EXPORT_FLAGS.to_be_bytes())?;
    if !no_zeroes {
        writer.write_all(&[0; 124])?;
    }
    writer.flush()?;
    Ok(overlay.clone())
}

/// Requests until the client says goodbye.
pub(super) fn transmit(
    overlay: &Overlay,
    reader: &mut BufReader<impl Read>,
    writer: &mut impl Write,
) -> io::Result<()> {
    let mut payload = Vec::new();
    loop {
        // Answers wait only while more requests are here already.
        if reader.buffer().is_empty() {
            writer.flush()?;
        }
        if reader.fill_buf()?.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let request = Request::parse(&read_array(reader)?).map_err(hostile)?;
        let (offset, len) = (request.offset, request.len);
        let result = match request.command {
            Command::Disconnect => return writer.flush(),
            Command::Write => {
                let data = room(&mut payload, len);
                reader.read_exact(data)?;
                changed(overlay, &request, overlay.write(offset, data))
            }
            // What is trimmed reads as zeroes here; the guest's disk agrees, or QEMU would have sent its data.
            Command::WriteZeroes | Command::Trim => {
                changed(overlay, &request, overlay.zero(offset, len.into()))
            }
            // Nothing here is meant to survive a crash, so there is nothing to make durable.
            Command::Flush => Ok(()),
            Command::Read if len > codec::MAX_PAYLOAD_BYTES => Err(NbdError::Invalid),
            Command::Read => {
                overlay.read_at(offset, room(&mut payload, len)).map_err(|error| NbdError::of(&error))
            }
            Command::Other => Err(NbdError::Invalid),
        };
        writer.write_all(&codec::reply(result, request.handle))?;
        if request.command == Command::Read && result.is_ok() {
            writer.write_all(room(&mut payload, len))?;
        }
    }
}

/// The first `len` bytes of a buffer that only grows; `len` is bounded by the codec.
fn room(buffer: &mut Vec<u8>, len: u32) -> &mut [u8] {
    let len = len as usize;
    if buffer.len() < len {
        // Exactly: by itself a vector grows to twice what it had, and so to twice the longest payload.
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// A change that failed is remembered: the overlay is not what the guest's disk is.
fn changed(overlay: &Overlay, request: &Request, result: io::Result<()>) -> Result<(), NbdError> {
    result.map_err(|error| {
        let reason = format!("cannot take {} bytes at {}: {error}", request.len, request.offset);
        overlay.fail_write(&error, reason);
        NbdError::of(&error)
    })
}

fn read_array<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn hostile(error: WireError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message)
}
