//! The command line: flags in, a parsed request out, before anything is done; then one call to the daemon, and its
//! answer shown. Everything it can do can be done with `curl` on the control socket as well.

mod client;
mod mobile_node;
mod probe;
mod request;
mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use migrate_driver::xen::keeper::Role;
use serde_json::json;

use crate::error_kind::Kind;
use crate::service::config::{Config, Layout};
use crate::service::daemon;
use crate::service::identity::Identity;
use crate::service::output::Log;
use client::{Client, ClientError};
use request::{Request, UsageError, at, request};

/// Moves running virtual machines between sites that share no storage, and keeps warm copies of their disks.
#[derive(Parser)]
#[command(name = "longhaul", version, about, after_help = EXIT_CODES)]
struct Cli {
    /// Directory for all files, instead of /etc/longhaul, /var/lib/longhaul and /run/longhaul
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed or refused, nothing changed; 2 invalid command line; 3 no daemon answers;
4 the VM, replica or store is busy with another job (cron: try again later).";

const EXIT_DONE: u8 = 0;
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_NO_DAEMON: u8 = 3;

#[derive(Subcommand)]
enum Command {
    /// Run the daemon of this platform
    Daemon,
    /// Run the daemon on the home agent's host
    HomeAgent,
    /// Keep this guest's address on a foreign host (mobile node); settings from longhaul.toml or these flags. Needs no daemon
    MobileNode(mobile_node::MobileNodeArgs),
    /// List addresses of VMs: their VMs, owners and where they are reached
    Addresses {
        /// On the home agent: release the prefix of this VM, whose owner is gone for good
        #[arg(long, value_name = "VM")]
        release: Option<String>,
    },
    /// Show this platform's name and fingerprint; creates its key if it has none
    Identity,
    /// Peers: the platforms that this one trusts
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Base images in the chunk store
    #[command(subcommand)]
    Base(BaseCommand),
    /// Copy single images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Run one replication pass of a VM's disks to a peer, for cron
    Replicate {
        /// The VM
        vm: String,
        /// The peer
        #[arg(long)]
        to: String,
    },
    /// Replicas kept on this platform
    #[command(subcommand)]
    Replica(ReplicaCommand),
    /// Move a running VM to a peer
    Migrate(MigrateArgs),
    /// Decide who owns a VM when no platform can: its source or owner is gone for good, or the records here are old or
    /// damaged. First find out where it runs: two platforms that both keep a VM both run it
    Resolve {
        /// The VM
        vm: String,
        #[command(flatten)]
        verdict: Verdict,
        /// With --keep: this peer has an unrelated VM of the same name. Only if this VM never ran there
        #[arg(long, value_name = "PEER", conflicts_with = "give_up")]
        distinct_from: Vec<String>,
    },
    /// Jobs
    #[command(subcommand)]
    Job(JobCommand),
    /// Print the report of a job
    Report {
        /// The job's id
        job: String,
    },
    /// The chunk store
    #[command(subcommand)]
    Store(StoreCommand),
    /// Measure gaps, losses, latency and jitter of a packet stream
    #[command(subcommand)]
    Probe(probe::ProbeCommand),
    /// Print every setting of longhaul.toml with its default
    ExampleConfig,
    /// Transport of `xl migrate`
    #[command(hide = true)]
    XlTransport {
        /// The domain's directory
        dir: PathBuf,
    },
    /// Runs `xl save` for a cold migration
    #[command(hide = true)]
    XlSave {
        /// The domain's directory
        dir: PathBuf,
    },
    /// Runs `xl migrate-receive`
    #[command(hide = true)]
    XlReceive {
        /// The domain's directory
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
enum PeerCommand {
    /// Add a peer, or replace its address and key
    Add {
        /// The peer's name on this platform
        name: String,
        /// HOST:PORT
        address: String,
        /// What `longhaul identity` prints there: 64 hexadecimal digits
        fingerprint: String,
    },
    /// List peers
    List,
    /// Ask a peer for its status
    Ask {
        /// The peer
        name: String,
    },
    /// Remove a peer and close its connections
    Remove {
        /// The peer
        name: String,
    },
}

#[derive(Subcommand)]
enum BaseCommand {
    /// Add a raw image or block device as a base, or replace the base of that name
    Add {
        /// The base's name
        name: String,
        /// The image
        image: PathBuf,
    },
    /// List bases
    List,
    /// Copy a base to peers; chunks that they hold are not sent
    Push {
        /// The base
        name: String,
        /// The peers
        #[arg(required = true)]
        peers: Vec<String>,
    },
    /// Write a base to a new file
    Restore {
        /// The base
        name: String,
        /// The new file; with --in-place an existing image or block device of the base's size
        path: PathBuf,
        /// Write only the blocks that differ into an existing image
        #[arg(long, conflicts_with = "like")]
        in_place: bool,
        /// Share equal blocks with this image, on a file system with reflinks
        #[arg(long, value_name = "IMAGE")]
        like: Option<PathBuf>,
    },
    /// Remove a base; `store gc` frees the space
    Remove {
        /// The base
        name: String,
    },
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Copy an image to a peer, incrementally and verified
    Send {
        /// A raw image or block device that is not in use
        image: PathBuf,
        /// PEER or PEER:NAME
        target: String,
    },
}

#[derive(Subcommand)]
enum VmCommand {
    /// Define a VM from a TOML file, or replace its definition
    Define {
        /// The definition file
        file: PathBuf,
    },
    /// Adopt a running guest: on Xen, a domain started by xl
    Adopt {
        /// The guest's name
        name: String,
    },
    /// List VMs
    List,
    /// Start a VM, or resume one that is paused by a disk error
    Start {
        /// The VM
        name: String,
    },
    /// Power a VM down
    Stop {
        /// The VM
        name: String,
        /// At once, without shutting the guest down
        #[arg(long)]
        kill: bool,
    },
    /// Remove a stopped VM from this platform; its images stay
    Remove {
        /// The VM
        name: String,
        /// Also delete its images in this platform's own image directory
        #[arg(long)]
        disks: bool,
    },
}

#[derive(Args)]
struct MigrateArgs {
    /// The VM
    vm: String,
    /// The peer
    #[arg(long)]
    to: String,
    /// Switch over when the predicted downtime is at most this: `300ms`, `2s` [default: 300ms]
    #[arg(long, value_name = "DURATION", value_parser = milliseconds)]
    max_downtime: Option<u64>,
    /// Stop the guest, then send its memory once; for guests that cannot migrate live
    #[arg(long)]
    cold: bool,
    /// Check the migration and estimate what would be sent; changes nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Verdict {
    /// This platform owns the VM: an incoming one is started, one whose owner is gone can be started. Refused while a peer
    /// answers that it owns the VM
    #[arg(long)]
    keep: bool,
    /// The other platform owns the VM: an incoming one is discarded, one owned here is given up to the peer that answers
    /// that it owns the VM
    #[arg(long)]
    give_up: bool,
}

#[derive(Subcommand)]
enum ReplicaCommand {
    /// List replicas
    List,
    /// Compare replicas with the hashes of their generations; the next pass repairs a damaged one
    Verify {
        /// The VM, or the image's name; without it all replicas
        name: Option<String>,
    },
    /// Copy a replica to a new file, or all disks of a VM as of one moment to a new directory
    Restore {
        /// The VM, or the image's name
        name: String,
        /// The new file; the new directory for a VM with several disks
        path: PathBuf,
        /// Only this disk
        #[arg(long)]
        disk: Option<String>,
        /// The replica of this peer, if several have a VM of that name
        #[arg(long)]
        from: Option<String>,
        /// Overwrite the block device at PATH
        #[arg(long)]
        in_place: bool,
    },
}

#[derive(Subcommand)]
enum JobCommand {
    /// List jobs
    List,
    /// Show a job
    Show {
        /// The job's id
        job: String,
    },
    /// Follow a job until it ends
    Watch {
        /// The job's id
        job: String,
    },
    /// Cancel a job; everything is as before
    Cancel {
        /// The job's id
        job: String,
    },
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Print chunks, bytes and packs
    Stats,
    /// Read chunks and check their hashes; exit code 1 if any is damaged
    Verify {
        /// Check one chunk of this many, others each day
        #[arg(long, value_name = "ONE_IN")]
        sample: Option<u32>,
        /// Check only the chunks of this base
        #[arg(long, value_name = "NAME", conflicts_with = "sample")]
        base: Option<String>,
        /// Read at most this many MiB/s
        #[arg(long, value_name = "MIB")]
        limit_mib_s: Option<u32>,
        /// Restore damaged chunks from replicas here, then from peers
        #[arg(long)]
        heal: bool,
    },
    /// Free the space of chunks that no base needs; other work goes on
    Gc {
        /// Print the plan; changes nothing
        #[arg(long)]
        dry_run: bool,
        /// Rewrite packs of which at least this much is not needed [default: 25]
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
        waste_percent: Option<u8>,
    },
    /// Write bases with all their chunks into one file, to carry to another site
    Export {
        /// The new file
        file: PathBuf,
        /// The bases; all if none is named
        names: Vec<String>,
    },
    /// Import a file of `store export`; every chunk is verified
    Import {
        /// The file
        file: PathBuf,
        /// Replace bases of the same name
        #[arg(long)]
        replace: bool,
    },
}

fn milliseconds(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let factor = match unit {
        "ms" => 1.0,
        "s" => 1000.0,
        _ => return Err("write it as 300ms or 2s".to_owned()),
    };
    match number.parse::<f64>() {
        Ok(number) if (1.0..=60_000.0).contains(&(number * factor)) => Ok((number * factor) as u64),
        _ => Err("it must be within 1ms and 60s".to_owned()),
    }
}

/// Parses the command line, does it, and gives the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            crate::complain!("longhaul: {error:#}");
            if error.downcast_ref::<UsageError>().is_some() {
                return ExitCode::from(EXIT_USAGE);
            }
            ExitCode::from(match error.downcast_ref::<ClientError>() {
                Some(ClientError::NoDaemon { .. }) => EXIT_NO_DAEMON,
                Some(ClientError::Refused { status, kind, .. }) => refused(*status, *kind),
                Some(ClientError::Http(_)) | None => EXIT_FAILED,
            })
        }
    }
}

/// The exit code of a request that the daemon refused. One of an older version gives no kind, and a status that counts
/// only where another job is in the way.
fn refused(status: u16, kind: Option<Kind>) -> u8 {
    match kind {
        Some(kind) => kind.exit_code(),
        None if status == Kind::Busy.status().as_u16() => Kind::Busy.exit_code(),
        None => EXIT_FAILED,
    }
}

/// The exit code; of a job that failed too, which has then been shown.
fn run(cli: Cli) -> anyhow::Result<u8> {
    let layout = layout(cli.root.as_deref())?;
    let json = cli.json;
    match cli.command {
        command @ (Command::Daemon | Command::HomeAgent) => {
            let log = log()?;
            let ended = daemon::run(layout, matches!(command, Command::HomeAgent));
            log.flush();
            ended.map(|()| EXIT_DONE)
        }
        Command::Identity => {
            let config = Config::load(&layout.config())?;
            let identity = Identity::load_or_create(&layout.identity())?;
            let value = json!({ "name": config.name, "fingerprint": identity.fingerprint() });
            show::value(&value, json);
            Ok(EXIT_DONE)
        }
        Command::XlTransport { dir } => Ok(keeper(Role::Transport, &dir)),
        Command::XlSave { dir } => Ok(keeper(Role::Save, &dir)),
        Command::XlReceive { dir } => Ok(keeper(Role::Receive, &dir)),
        Command::ExampleConfig => {
            crate::service::output::text(format_args!("{}", crate::service::config::EXAMPLE));
            Ok(EXIT_DONE)
        }
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                if let Command::Probe(probe) = command {
                    let done = probe::run(probe, json).await?;
                    return Ok(if done { EXIT_DONE } else { EXIT_FAILED });
                }
                if let Command::MobileNode(node) = command {
                    let log = log()?;
                    let ended = mobile_node::run(node, &layout.config(), json).await;
                    log.flush();
                    return ended.map(|()| EXIT_DONE);
                }
                let mut client = Client::connect(&layout.control_socket()).await?;
                talk(&mut client, command, json).await
            })
        }
    }
}

/// Definitions, hypervisors and the interface name files below the root.
fn layout(root: Option<&Path>) -> anyhow::Result<Layout> {
    let absolute = root.map(std::path::absolute).transpose().context("--root")?;
    match absolute {
        Some(root) if root.to_str().is_none() => Err(UsageError::NotUtf8(root).into()),
        root => Ok(Layout::new(root.as_deref())),
    }
}

/// To standard error; how much of it, LONGHAUL_LOG says.
fn log() -> anyhow::Result<Log> {
    let log = Log::start(std::io::stderr())?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("LONGHAUL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,quinn=warn"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone());
    subscriber.log_internal_errors(false).init();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}\n{}", std::backtrace::Backtrace::capture());
    }));
    Ok(log)
}

/// xl and the daemon hear from a keeper by its streams and its socket; its exit code only says whether all went well.
fn keeper(role: Role, dir: &Path) -> u8 {
    match migrate_driver::xen::keeper::run(role, dir) {
        Ok(()) => EXIT_DONE,
        Err(error) => {
            crate::complain!("longhaul: {error}");
            EXIT_FAILED
        }
    }
}

async fn talk(client: &mut Client, command: Command, json: bool) -> anyhow::Result<u8> {
    match request(command)? {
        Request::Get(path) => show::value(&client.get(&path).await?, json),
        Request::Delete(path) => show::value(&client.delete(&path).await?, json),
        Request::Post(path, body) => show::value(&client.post(&path, &body).await?, json),
        Request::Pass(path, body) => {
            let answer = client.post(&path, &body).await?;
            let id = answer["job"].as_str().context("the daemon named no job")?.to_owned();
            return watch(client, &id, json, Shown::Line).await;
        }
        Request::Job(path, body) => {
            let answer = client.post(&path, &body).await?;
            let id = answer["job"].as_str().context("the daemon named no job")?.to_owned();
            return watch(client, &id, json, Shown::Progress).await;
        }
        Request::Watch(id) => return watch(client, &id, json, Shown::Report).await,
        Request::Report(id) => {
            let report = client.get(&at("/v1/jobs", &id, "")?).await?;
            if json { show::value(&report, true) } else { show::report(&serde_json::from_value(report)?) }
        }
    }
    Ok(EXIT_DONE)
}

/// What is shown of a job besides its outcome.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// Nothing but on a terminal: cron mails whatever is said.
    Line,
    /// How it goes.
    Progress,
    /// How it goes, then the whole report.
    Report,
}

async fn watch(client: &mut Client, id: &str, json: bool, shown: Shown) -> anyhow::Result<u8> {
    let mut progress = show::Progress::new(shown != Shown::Line);
    let last = client.watch(id, |report| progress.report(report)).await?;
    progress.end();
    let code = match last.state {
        crate::service::jobs::JobState::Done => EXIT_DONE,
        _ => match last.error_kind {
            Some(kind) => kind.exit_code(),
            // A daemon of an older version.
            None if last.busy => Kind::Busy.exit_code(),
            None => EXIT_FAILED,
        },
    };
    if json {
        show::value(&serde_json::to_value(&last)?, true);
    } else if shown == Shown::Report || last.downtime_ms.is_some() {
        show::report(&last);
    } else {
        show::outcome(&last);
    }
    Ok(code)
}

#[cfg(test)]
mod tests;
