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
    /// Where this platform keeps everything, instead of /etc/longhaul, /var/lib/longhaul and /run/longhaul
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 it failed, and what it touched is as before; 2 the command line is wrong; 3 no daemon answers;
4 the VM, replica or store is busy with another job (for cron: try again later).";

const EXIT_DONE: u8 = 0;
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_NO_DAEMON: u8 = 3;
const EXIT_BUSY: u8 = 4;
/// HTTP's Locked (RFC 4918 section 11.3): another job has hold of the VM.
const STATUS_BUSY: u16 = 423;

#[derive(Subcommand)]
enum Command {
    /// Run the service
    Daemon,
    /// Run the service on the host that is the home agent: the anchor of VMs' addresses
    HomeAgent,
    /// Keep this guest's own address on a host that is not ours; in longhaul.toml or by these flags. Needs no daemon
    MobileNode(mobile_node::MobileNodeArgs),
    /// Which VMs' addresses this platform has to do with, and where they are reached
    Addresses {
        /// On the home agent: forget this VM and its owner, a platform that is gone for good
        #[arg(long, value_name = "VM")]
        release: Option<String>,
    },
    /// Show who this platform is; makes its key when there is none
    Identity,
    /// Whom this platform trusts
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Base images in the chunk store
    #[command(subcommand)]
    Base(BaseCommand),
    /// Single images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// One warm pass of a VM's disks to a peer, for cron
    Replicate {
        /// The VM
        vm: String,
        /// The peer
        #[arg(long)]
        to: String,
    },
    /// Replicas that this platform keeps
    #[command(subcommand)]
    Replica(ReplicaCommand),
    /// Move a running VM to a peer
    Migrate(MigrateArgs),
    /// Decide who owns a VM where no platform can: its source or owner is gone for good, or this platform's records are
    /// old or damaged. Only when you know what became of it there: two platforms that both keep it both run it
    Resolve {
        /// The VM
        vm: String,
        #[command(flatten)]
        verdict: Verdict,
        /// With --keep: this peer has another VM of that name, which says nothing of ours. Only when you know that ours never
        /// ran there
        #[arg(long, value_name = "PEER", conflicts_with = "give_up")]
        distinct_from: Vec<String>,
    },
    /// Jobs
    #[command(subcommand)]
    Job(JobCommand),
    /// What a job did, beside the paper's Table 1
    Report {
        /// The job's id
        job: String,
    },
    /// The chunk store
    #[command(subcommand)]
    Store(StoreCommand),
    /// The paper's UDP tool: a stream like a call's, and what became of it: gaps, losses, latency, jitter, a picture
    #[command(subcommand)]
    Probe(probe::ProbeCommand),
    /// Print a commented configuration file
    ExampleConfig,
    /// What `xl migrate` runs as its transport
    #[command(hide = true)]
    XlTransport {
        /// The domain's directory
        dir: PathBuf,
    },
    /// What runs `xl save` for a cold migration
    #[command(hide = true)]
    XlSave {
        /// The domain's directory
        dir: PathBuf,
    },
    /// What runs `xl migrate-receive`
    #[command(hide = true)]
    XlReceive {
        /// The domain's directory
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
enum PeerCommand {
    /// Trust a platform, by the fingerprint that `longhaul identity` prints there
    Add {
        /// Its name here
        name: String,
        /// HOST:PORT
        address: String,
        /// 64 hexadecimal digits
        fingerprint: String,
    },
    /// List them
    List,
    /// Ask one how it is
    Ask {
        /// Its name
        name: String,
    },
    /// Trust it no longer
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Subcommand)]
enum BaseCommand {
    /// Add a raw image or block device as a base image
    Add {
        /// The base's name
        name: String,
        /// The image
        image: PathBuf,
    },
    /// List them
    List,
    /// Put a base on other platforms; what they hold is not sent
    Push {
        /// The base
        name: String,
        /// The peers
        #[arg(required = true)]
        peers: Vec<String>,
    },
    /// Write a base out of the store, into a new file
    Restore {
        /// The base
        name: String,
        /// The new file; with --in-place an image or block device of the base's size
        path: PathBuf,
        /// Write into what is there, and only the blocks that differ
        #[arg(long, conflicts_with = "like")]
        in_place: bool,
        /// An image on the same file system: the new file shares equal blocks with it where the file system can
        #[arg(long, value_name = "IMAGE")]
        like: Option<PathBuf>,
    },
    /// Remove one; `store gc` gives the room back
    Remove {
        /// The base
        name: String,
    },
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Copy an image to a peer, incrementally and verified
    Send {
        /// A raw image or block device that nobody writes to
        image: PathBuf,
        /// PEER or PEER:NAME
        target: String,
    },
}

#[derive(Subcommand)]
enum VmCommand {
    /// Describe a VM, from a definition file
    Define {
        /// The file
        file: PathBuf,
    },
    /// Take up a guest that runs already: on Xen, a domain that xl has started
    Adopt {
        /// The guest's name
        name: String,
    },
    /// List them
    List,
    /// Start one
    Start {
        /// The VM
        name: String,
    },
    /// Power one down
    Stop {
        /// The VM
        name: String,
        /// At once, like pulling the plug
        #[arg(long)]
        kill: bool,
    },
    /// Forget a stopped VM; its images stay
    Remove {
        /// The VM
        name: String,
        /// Delete those of its images that lie in this platform's own directory of images
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
    /// Switch over once the guest is predicted to stand still for no longer than this, as `300ms` or `2s`
    #[arg(long, value_name = "DURATION", value_parser = milliseconds)]
    max_downtime: Option<u64>,
    /// Stop the guest before its memory is sent, once; for guests that the hypervisor cannot move while they run
    #[arg(long)]
    cold: bool,
    /// Show what would be done and sent
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Verdict {
    /// It is ours: one that was on its way here is started, one whose owner is gone can be started again. Refused while a
    /// peer answers that it owns it
    #[arg(long)]
    keep: bool,
    /// It is the other platform's: what was on its way here is discarded, and what this platform owns is given up to the
    /// peer that answers that it owns it
    #[arg(long)]
    give_up: bool,
}

#[derive(Subcommand)]
enum ReplicaCommand {
    /// List them
    List,
    /// Compare replicas with the hashes of their generations; a damaged one is mended by its next pass
    Verify {
        /// The VM, or the image's name; all replicas when it is left out
        name: Option<String>,
    },
    /// Copy a replica's image to a new file, or all disks of a VM, of one moment, into a new directory
    Restore {
        /// The VM, or the image's name
        name: String,
        /// The new file; the new directory for a VM with several disks
        path: PathBuf,
        /// Only this disk
        #[arg(long)]
        disk: Option<String>,
        /// Of this peer, when several have a VM of that name
        #[arg(long)]
        from: Option<String>,
        /// Overwrite the block device at PATH
        #[arg(long)]
        in_place: bool,
    },
}

#[derive(Subcommand)]
enum JobCommand {
    /// List them
    List,
    /// Show one
    Show {
        /// Its id
        job: String,
    },
    /// Follow one until it ends
    Watch {
        /// Its id
        job: String,
    },
    /// Stop one; what it touched is as before
    Cancel {
        /// Its id
        job: String,
    },
}

#[derive(Subcommand)]
enum StoreCommand {
    /// What it holds
    Stats,
    /// Read chunks back and check them; exit code 1 when something is wrong
    Verify {
        /// Only one chunk in so many, others every day
        #[arg(long, value_name = "ONE_IN")]
        sample: Option<u32>,
        /// Only the chunks of this base
        #[arg(long, value_name = "NAME", conflicts_with = "sample")]
        base: Option<String>,
        /// Read no more than so many MiB a second
        #[arg(long, value_name = "MIB")]
        limit_mib_s: Option<u32>,
        /// Fetch what is damaged or missing: from replicas here, then from peers
        #[arg(long)]
        heal: bool,
    },
    /// Give back the room of chunks that no base needs; everything else goes on meanwhile
    Gc {
        /// Show what would be done
        #[arg(long)]
        dry_run: bool,
        /// Rewrite packs of which at least this much is not needed (25 by default)
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
        waste_percent: Option<u8>,
    },
    /// Write bases with all their chunks into one file, to carry it to another site
    Export {
        /// The new file
        file: PathBuf,
        /// The bases; all of them when none is named
        names: Vec<String>,
    },
    /// Bring in what `store export` wrote; every chunk is checked
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
                Some(ClientError::Refused { status: STATUS_BUSY, .. }) => EXIT_BUSY,
                _ => EXIT_FAILED,
            })
        }
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
        _ if last.busy => EXIT_BUSY,
        _ => EXIT_FAILED,
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
