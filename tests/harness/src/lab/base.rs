//! Base images: a Debian root file system, unpacked by mmdebstrap and turned into a sparse raw ext4 image by
//! `mke2fs -d`. No loop device, no mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{apt, say};
use crate::{files, shell};

/// Raise when the way an image is made changes.
const RECIPE: u32 = 1;
/// A fixed identity and time, so that the same packages give nearly the same bytes.
const UUID: &str = "6c6f6e67-6861-756c-8000-000000000001";
const TIME: &str = "1700000000";

/// What is in a base image and how large its disk is.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// The first part of the file's name.
    pub name: &'static str,
    /// The packages in it, or apt's patterns for them.
    pub packages: &'static [&'static str],
    /// The size of the disk in MiB.
    pub disk_mib: u32,
    /// Which versions of the packages.
    pub age: Age,
}

/// Which versions of its packages an image has. The two ages of one recipe differ as a host does before and after its
/// upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// As the last point release had them.
    Released,
    /// With all updates since.
    Updated,
}

impl BaseImage {
    /// A host as one would run it: kernel, languages, compilers, tools.
    #[must_use]
    pub fn full() -> Self {
        Self {
            name: "debian",
            packages: &["?essential", "linux-image-amd64", "python3", "perl", "gcc", "git", "vim"],
            disk_mib: 4096,
            age: Age::Updated,
        }
    }

    /// The essential packages and apt.
    #[must_use]
    pub fn small() -> Self {
        Self { name: "small", packages: &["?essential", "apt"], disk_mib: 1024, age: Age::Updated }
    }

    /// More than 4 GiB of data: kernels, compilers, interpreters with their libraries, an office, a browser, a
    /// database.
    #[must_use]
    pub fn large() -> Self {
        #[rustfmt::skip]
        let packages = &[
            "?essential", "linux-image-amd64", "linux-image-cloud-amd64", "gcc", "g++", "gdb", "cmake", "git", "vim",
            "clang-14", "llvm-14", "rustc", "rust-src", "golang-1.19-go", "golang-1.19-src", "openjdk-17-jdk-headless",
            "perl", "python3", "python3-scipy", "nodejs", "emacs-nox", "libreoffice-writer", "libreoffice-calc",
            "texlive-latex-recommended", "fonts-noto-core", "firefox-esr", "postgresql-15",
        ];
        Self { name: "large", packages, disk_mib: 5120, age: Age::Updated }
    }

    /// The same image before its packages were updated.
    #[must_use]
    pub fn released(self) -> Self {
        Self { age: Age::Released, ..self }
    }

    pub(super) fn key(&self) -> String {
        let age = if self.age == Age::Released { " released" } else { "" };
        let recipe = format!("{RECIPE} {} {:?}{age}", self.disk_mib, self.packages);
        blake3::hash(recipe.as_bytes()).to_hex()[..8].to_owned()
    }

    /// The image, made on first use.
    pub(super) fn build(&self, lab: &Path) -> Result<PathBuf> {
        let path = lab.join(format!("{}-{}.raw", self.name, self.key()));
        files::build_once(&path, |partial| {
            self.make(lab, partial).with_context(|| format!("making the base image {}", self.name))
        })?;
        Ok(path)
    }

    fn make(&self, lab: &Path, image: &Path) -> Result<()> {
        let tree = lab.join(format!("{}.tree", self.name));
        files::remove(&tree)?;
        let made = self.unpack(&tree).and_then(|()| self.format(&tree, image));
        files::remove(&tree)?;
        made
    }

    pub(super) fn unpack(&self, tree: &Path) -> Result<()> {
        if !apt::is_root() {
            bail!(
                "this needs root once: the files of a Debian root file system belong to root and other users, and only \
                 root can unpack them so; run the command with sudo, or point LONGHAUL_LAB to a lab built before"
            );
        }
        let (suite, mut sources) = apt::sources()?;
        if self.age == Age::Released {
            sources.retain(|line| line.contains(&format!(" {suite} ")));
        }
        say(&format!(
            "unpacking a Debian {suite} root file system for the base image {} ({:?})",
            self.name, self.age
        ));
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--mode=root", "--variant=extract", "--format=directory"]);
        command.arg("--aptopt=APT::Install-Recommends \"false\"");
        command.arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr");
        // One option for each: mmdebstrap would take a list that starts with a pattern for one pattern.
        command.args(self.packages.iter().map(|package| format!("--include={package}")));
        shell::run(command.arg(suite).arg(tree).args(sources))?;
        for directory in ["dev", "proc", "sys", "run", "tmp", "longhaul"] {
            files::create_dir(&tree.join(directory))?;
        }
        Ok(())
    }

    pub(super) fn format(&self, tree: &Path, image: &Path) -> Result<()> {
        // Nothing lazy: a guest would spend its first minutes writing the tables that mke2fs left out.
        let extended = format!("lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed={UUID}");
        shell::run(
            Command::new("mke2fs")
                .args(["-q", "-F", "-t", "ext4", "-m", "0", "-U", UUID, "-E", &extended, "-d"])
                .arg(tree)
                .arg(image)
                .arg(format!("{}M", self.disk_mib))
                .env("E2FSPROGS_FAKE_TIME", TIME),
        )?;
        // mke2fs has written zeros where a hole does: make them holes again.
        shell::run(Command::new("fallocate").arg("--dig-holes").arg(image)).map(drop)
    }
}
