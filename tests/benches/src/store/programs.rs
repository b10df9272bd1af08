//! The programs that are compared, each with its best settings for this job: one raw image, read anew every time, into
//! a local store. It says how to call them; it never runs them, but to ask for their versions.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use harness::lab::apt::Package;

/// The peers' Debian packages.
pub(crate) const PACKAGES: &[Package] = &[
    Package { name: "restic", purpose: "a peer of the store in its benchmark" },
    Package { name: "casync", purpose: "a peer of the store in its benchmark" },
    Package { name: "borgbackup", purpose: "a peer of the store in its benchmark" },
];

/// A program with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// This project's store, at a zstd level.
    Ours { level: i32 },
    /// `--compression auto`, zstd at its default level: `max` is several times slower. `--force`, since an image's
    /// modification time has always changed. No cache: the repository is as near. Larger packs: fewer syncs.
    Restic,
    /// No encryption and no files cache, `--sparse`.
    Borg { chunker: BorgChunker, compression: &'static str },
    /// SHA-256, which processors have instructions for; its default is SHA-512/256. Zstd is its default. No seed: it would
    /// hash the output once more. It never syncs.
    Casync,
}

/// Where borg cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BorgChunker {
    /// Every 4 MiB, as its manual says for disk images: faster than the other, at the same size. What moves by less than
    /// that is stored again.
    Fixed,
    /// By content, as ours and the others do: its default, as LZ4 is.
    Rolling,
}

/// Ours as it is by default.
pub(crate) const OURS: Program = Program::Ours { level: chunkstore::LEVEL };

/// Ours first: as it is, then at the fastest levels at which it takes no more room than the peers that the figures set them
/// against; see [`Program::rival`]. Then the peers.
pub(crate) const ALL: [Program; 8] = [
    OURS,
    Program::Ours { level: 3 },
    Program::Ours { level: -4 },
    Program::Restic,
    Program::Borg { chunker: BorgChunker::Fixed, compression: "lz4" },
    Program::Borg { chunker: BorgChunker::Fixed, compression: "zstd,3" },
    Program::Borg { chunker: BorgChunker::Rolling, compression: "lz4" },
    Program::Casync,
];

impl Program {
    /// The name in tables and figures.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Ours { level } => format!("longhaul {level}"),
            Self::Restic => "restic auto".to_owned(),
            Self::Borg { chunker: BorgChunker::Fixed, compression } => format!("borg {compression}"),
            Self::Borg { chunker: BorgChunker::Rolling, compression } => {
                format!("borg rolling {compression}")
            }
            Self::Casync => "casync zstd".to_owned(),
        }
    }

    /// Which of ours a peer is measured against: the fastest that takes no more room.
    pub(crate) fn rival(self) -> Program {
        let level = match self {
            Self::Borg { compression: "lz4", .. } => -4,
            Self::Borg { .. } => 3,
            Self::Restic | Self::Casync | Self::Ours { .. } => return OURS,
        };
        Program::Ours { level }
    }

    /// Its Debian package; none for ours.
    pub(crate) fn package(self) -> Option<&'static str> {
        match self {
            Self::Ours { .. } => None,
            Self::Restic => Some("restic"),
            Self::Borg { .. } => Some("borgbackup"),
            Self::Casync => Some("casync"),
        }
    }

    /// What has to be done before the first image: not measured.
    ///
    /// # Errors
    /// When this program's own path is unknown.
    pub(crate) fn init(self, store: &Path) -> Result<Option<Command>> {
        let mut command = self.command(store)?;
        match self {
            Self::Ours { .. } | Self::Casync => return Ok(None),
            Self::Restic => command.args(["init", "--repository-version", "2"]),
            Self::Borg { .. } => command.args(["init", "--encryption", "none"]).arg(store),
        };
        Ok(Some(command))
    }

    /// Brings `image` into the store under `name`.
    ///
    /// # Errors
    /// When the image has no file name, or this program's own path is unknown.
    pub(crate) fn ingest(self, store: &Path, image: &Path, name: &str) -> Result<Command> {
        let file = image.file_name().context("an image with a file name")?;
        let mut command = self.command(store)?;
        match self {
            Self::Ours { level } => {
                command.args(["worker", "ingest"]).arg(store).arg(image).arg(name).arg(level.to_string())
            }
            // By its name alone, so that it is restored under that name.
            Self::Restic => {
                command.args([
                    "backup",
                    "--force",
                    "--pack-size",
                    "64",
                    "--compression",
                    "auto",
                    "--tag",
                    name,
                ]);
                command.arg(file)
            }
            Self::Borg { chunker, compression } => {
                command.args(["create", "--files-cache", "disabled", "--sparse", "--chunker-params"]);
                command.arg(match chunker {
                    BorgChunker::Fixed => "fixed,4194304",
                    BorgChunker::Rolling => "buzhash,19,23,21,4095",
                });
                command.args(["--compression", compression]);
                command.arg(format!("{}::{name}", store.display())).arg(file)
            }
            Self::Casync => {
                command.args(["make", "--digest", "sha256", "--compression", "zstd"]);
                command.arg(casync_store(store)).arg(store.join(format!("{name}.caibx"))).arg(image)
            }
        };
        if let Some(dir) = image.parent() {
            command.current_dir(dir);
        }
        Ok(command)
    }

    /// Writes what is called `name` to a new file in `dir`, which is there and empty, called as the image was.
    ///
    /// # Errors
    /// As for [`Program::ingest`].
    pub(crate) fn restore(self, store: &Path, image: &Path, name: &str, dir: &Path) -> Result<Command> {
        let target = dir.join(image.file_name().context("an image with a file name")?);
        let mut command = self.command(store)?;
        match self {
            Self::Ours { .. } => command.args(["worker", "restore"]).arg(store).arg(name).arg(target),
            // This version cannot write sparse files.
            Self::Restic => command.args(["restore", "latest", "--tag", name, "--target"]).arg(dir),
            Self::Borg { .. } => {
                command.current_dir(dir);
                command.args(["extract", "--sparse"]).arg(format!("{}::{name}", store.display()))
            }
            Self::Casync => {
                command.args(["extract", "--seed-output=no"]).arg(casync_store(store));
                command.arg(store.join(format!("{name}.caibx"))).arg(target)
            }
        };
        Ok(command)
    }

    /// The program without arguments, with what it must find around it.
    fn command(self, store: &Path) -> Result<Command> {
        let mut command = match self {
            Self::Ours { .. } => {
                Command::new(std::env::current_exe().context("looking for this program's own file")?)
            }
            Self::Restic => Command::new("restic"),
            Self::Borg { .. } => Command::new("borg"),
            Self::Casync => Command::new("casync"),
        };
        match self {
            Self::Ours { .. } | Self::Casync => &mut command,
            Self::Restic => {
                command.env("RESTIC_PASSWORD", "not a secret");
                command.args(["--quiet", "--no-cache", "--repo"]).arg(store)
            }
            Self::Borg { .. } => {
                command.env("BORG_BASE_DIR", store.with_extension("borg"));
                command.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes")
            }
        };
        Ok(command)
    }
}

/// Casync's chunks lie beside its indices.
fn casync_store(store: &Path) -> String {
    format!("--store={}", store.join("chunks.castr").display())
}

#[cfg(test)]
mod tests;
