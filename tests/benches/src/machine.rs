//! What the figures were measured on, in one line.

use anyhow::{Context, Result};

/// Cores, processor, memory, kernel.
pub(crate) fn describe() -> Result<String> {
    let read = |file: &str| std::fs::read_to_string(file).with_context(|| format!("reading {file}"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model =
        field(&read("/proc/cpuinfo")?, "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory = field(&read("/proc/meminfo")?, "MemTotal").and_then(|kib| gib(&kib)).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease")?;
    Ok(format!("{cores} cores ({model}), {memory:.1} GiB of memory, Linux {}", kernel.trim()))
}

/// A size in /proc/self/status, such as `RssAnon`.
pub(crate) fn status_bytes(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let value = field(&status, name).with_context(|| format!("no {name} in /proc/self/status"))?;
    let kib: u64 = value.trim_end_matches("kB").trim().parse().with_context(|| format!("reading {name}"))?;
    Ok(kib * 1024)
}

/// The value behind `name:` in a file of /proc.
pub(crate) fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// `1048576 kB` in GiB.
fn gib(kib: &str) -> Option<f64> {
    let number: f64 = kib.strip_suffix("kB")?.trim().parse().ok()?;
    Some(number / f64::from(1 << 20))
}

#[cfg(test)]
mod tests;
