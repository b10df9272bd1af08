//! The matrix of lines: an image over each of them, whatever the line loses. What is asked is that it arrives.

use std::io::Read;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use harness::lines::{self, Line};

use crate::tasks;

/// What the command line chose.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    mib: usize,
    congestion: Option<String>,
    rate_mb_s: Option<u64>,
}

impl Options {
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { mib: 32, congestion: None, rate_mb_s: None };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match *word {
                "--mib" => options.mib = value()?.parse().context("--mib")?,
                "--congestion" => options.congestion = Some((*value()?).to_owned()),
                "--rate" => options.rate_mb_s = Some(value()?.parse().context("--rate")?),
                _ => bail!("`lab lines` knows no `{word}`"),
            }
        }
        Ok(options)
    }

    fn chooses(&self, line: &Line) -> bool {
        self.congestion.as_ref().is_none_or(|congestion| congestion == line.congestion)
            && self.rate_mb_s.is_none_or(|rate| rate == line.rate_mb_s)
    }
}

/// Sends an image of noise over each chosen line; an error when one did not arrive.
pub(crate) fn run(options: &Options) -> Result<()> {
    // Unless it is told which program to try.
    if std::env::var_os("LONGHAUL_BIN").is_none() {
        tasks::build()?;
    }
    let mut noise = vec![0; options.mib << 20];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
    let image = tempfile::NamedTempFile::new()?;
    std::fs::write(image.path(), &noise)?;
    let chosen: Vec<Line> = lines::all().into_iter().filter(|line| options.chooses(line)).collect();
    ensure!(!chosen.is_empty(), "there is no such line");
    let (started, mut lost) = (Instant::now(), 0);
    for line in &chosen {
        match line.cross(image.path()) {
            Ok(crossing) => {
                let seconds = crossing.took.as_secs_f64();
                let rate = noise.len() as f64 * 8.0 / seconds / 1e6;
                println!("{line}: {seconds:>6.1} s {rate:>6.1} Mb/s, {} frames lost", crossing.overflowed);
            }
            Err(error) => {
                lost += 1;
                println!("{line}: NOT ARRIVED: {error:#}");
            }
        }
    }
    let (count, seconds) = (chosen.len(), started.elapsed().as_secs());
    println!("{} of {count} transfers of {} MiB arrived, {seconds} s", count - lost, options.mib);
    ensure!(lost == 0, "{lost} transfers did not arrive; why stands above");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_choose_lines() {
        let options = Options::parse(&["--mib", "64", "--rate", "500", "--congestion", "bbr"]).unwrap();
        assert_eq!(options, Options { mib: 64, congestion: Some("bbr".to_owned()), rate_mb_s: Some(500) });
        assert_eq!(lines::all().iter().filter(|line| options.chooses(line)).count(), 12);
        assert_eq!(lines::all().len(), 96);
        assert!(Options::parse(&["--queue"]).is_err() && Options::parse(&["--mib"]).is_err());
    }
}
