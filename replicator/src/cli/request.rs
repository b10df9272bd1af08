//! A parsed command as a request to the daemon.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use super::{
    BaseCommand, Command, ImageCommand, JobCommand, MigrateArgs, PeerCommand, ReplicaCommand, StoreCommand,
    VmCommand,
};
use crate::service::control;

/// What the daemon is asked, and how its answer is taken.
pub(super) enum Request {
    Get(String),
    Delete(String),
    Post(String, Value),
    /// Begins a job, which is then watched.
    Job(String, Value),
    /// The same, for cron.
    Pass(String, Value),
    Watch(String),
    Report(String),
}

/// A command line that is wrong in a way its grammar does not show.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
    #[error(
        "cannot use the path {}: it is not UTF-8, as the daemon and its hypervisor need it; rename it or name it by a link",
        .0.display()
    )]
    NotUtf8(PathBuf),
}

/// A resource's path. Its name must not change what the path says.
pub(super) fn at(collection: &str, name: &str, rest: &str) -> anyhow::Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:@+-".contains(c);
    anyhow::ensure!(
        !name.is_empty() && name.chars().all(plain) && !name.starts_with('.'),
        "'{name}' is no name: names are made of letters, digits and . _ : @ + -"
    );
    Ok(format!("{collection}/{name}{rest}"))
}

pub(super) fn request(command: Command) -> anyhow::Result<Request> {
    use Request::{Delete, Get, Job, Pass, Post, Report, Watch};
    let absolute = |path: PathBuf| -> anyhow::Result<String> {
        let absolute = std::path::absolute(&path).with_context(|| path.display().to_string())?;
        absolute.into_os_string().into_string().map_err(|_| UsageError::NotUtf8(path).into())
    };
    Ok(match command {
        Command::Peer(PeerCommand::Add { name, address, fingerprint }) => {
            Post("/v1/peers".into(), json!({ "name": name, "address": address, "fingerprint": fingerprint }))
        }
        Command::Peer(PeerCommand::List) => Get("/v1/peers".into()),
        Command::Peer(PeerCommand::Ask { name }) => Get(at("/v1/peers", &name, "")?),
        Command::Peer(PeerCommand::Remove { name }) => Delete(at("/v1/peers", &name, "")?),
        Command::Base(BaseCommand::Add { name, image }) => {
            Job("/v1/bases".into(), json!({ "name": name, "image": absolute(image)? }))
        }
        Command::Base(BaseCommand::List) => Get("/v1/bases".into()),
        Command::Base(BaseCommand::Push { name, peers }) => {
            Job(at("/v1/bases", &name, "/push")?, json!({ "peers": peers }))
        }
        Command::Base(BaseCommand::Restore { name, path, in_place, like }) => {
            let (path, like) = (absolute(path)?, like.map(absolute).transpose()?);
            let body = json!({ "path": path, "in_place": in_place, "like": like });
            Job(at("/v1/bases", &name, "/restore")?, body)
        }
        Command::Base(BaseCommand::Remove { name }) => Delete(at("/v1/bases", &name, "")?),
        Command::Image(ImageCommand::Send { image, target }) => {
            let image = absolute(image)?;
            let stem = Path::new(&image)
                .file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or("image")
                .to_lowercase();
            let (peer, name) = target.split_once(':').unwrap_or((&target, &stem));
            Job("/v1/images/send".into(), json!({ "image": image, "peer": peer, "name": name }))
        }
        Command::Vm(VmCommand::Define { file }) => {
            Post("/v1/vms".into(), control::definition_request(absolute(file)?.as_ref())?)
        }
        Command::Vm(VmCommand::Adopt { name }) => Post(at("/v1/vms", &name, "/adopt")?, json!({})),
        Command::Vm(VmCommand::List) => Get("/v1/vms".into()),
        Command::Vm(VmCommand::Start { name }) => Post(at("/v1/vms", &name, "/start")?, json!({})),
        Command::Vm(VmCommand::Stop { name, kill }) => {
            Post(at("/v1/vms", &name, "/stop")?, json!({ "kill": kill }))
        }
        Command::Vm(VmCommand::Remove { name, disks }) => {
            Delete(at("/v1/vms", &name, if disks { "?disks=true" } else { "" })?)
        }
        Command::Replicate { vm, to } => Pass(at("/v1/vms", &vm, "/replicate")?, json!({ "to": to })),
        Command::Migrate(MigrateArgs { vm, to, max_downtime, cold, dry_run }) => {
            let body = json!({ "to": to, "max_downtime_ms": max_downtime, "cold": cold, "dry_run": dry_run });
            let path = at("/v1/vms", &vm, "/migrate")?;
            if dry_run { Post(path, body) } else { Job(path, body) }
        }
        Command::Resolve { vm, verdict, distinct_from } => {
            let keep = verdict.keep && !verdict.give_up;
            Post(at("/v1/vms", &vm, "/resolve")?, json!({ "keep": keep, "distinct_from": distinct_from }))
        }
        Command::Replica(ReplicaCommand::List) => Get("/v1/replicas".into()),
        Command::Replica(ReplicaCommand::Verify { name }) => {
            Job("/v1/replicas/verify".into(), json!({ "name": name }))
        }
        Command::Replica(ReplicaCommand::Restore { name, path, disk, from, in_place }) => {
            let body = json!({ "path": absolute(path)?, "disk": disk, "from": from, "in_place": in_place });
            Post(at("/v1/replicas", &name, "/restore")?, body)
        }
        Command::Job(JobCommand::List) => Get("/v1/jobs".into()),
        Command::Job(JobCommand::Show { job }) => Get(at("/v1/jobs", &job, "")?),
        Command::Job(JobCommand::Watch { job }) => Watch(job),
        Command::Job(JobCommand::Cancel { job }) => Post(at("/v1/jobs", &job, "/cancel")?, json!({})),
        Command::Report { job } => Report(job),
        Command::Store(StoreCommand::Stats) => Get("/v1/store".into()),
        Command::Store(StoreCommand::Verify { sample, base, limit_mib_s, heal }) => {
            let body = json!({ "sample": sample, "base": base, "limit_mib_s": limit_mib_s, "heal": heal });
            Job("/v1/store/verify".into(), body)
        }
        Command::Store(StoreCommand::Gc { dry_run, waste_percent }) => {
            Job("/v1/store/gc".into(), json!({ "dry_run": dry_run, "waste_percent": waste_percent }))
        }
        Command::Store(StoreCommand::Export { file, names }) => {
            Job("/v1/store/export".into(), json!({ "path": absolute(file)?, "names": names }))
        }
        Command::Addresses { release: None } => Get("/v1/addresses".into()),
        Command::Addresses { release: Some(vm) } => Delete(at("/v1/addresses", &vm, "")?),
        Command::Store(StoreCommand::Import { file, replace }) => {
            Job("/v1/store/import".into(), json!({ "path": absolute(file)?, "replace": replace }))
        }
        Command::Daemon
        | Command::HomeAgent
        | Command::MobileNode(_)
        | Command::Identity
        | Command::ExampleConfig
        | Command::XlTransport { .. }
        | Command::XlSave { .. }
        | Command::XlReceive { .. }
        | Command::Probe(_) => {
            anyhow::bail!("this command needs no daemon")
        }
    })
}
