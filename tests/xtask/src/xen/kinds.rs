//! Other domains than the one of the figures: paravirtual, with an emulated machine, with several processors and disks, on
//! qcow2 images. Each is taken up and moved as a person would, or refused before anything is touched.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Collector, XenPair};

use super::live::names;
use super::machine::Machine;
use super::{disk_of, product, step};

const BOOT: Duration = Duration::from_secs(240);

/// One kind of domain.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    /// What makes it one, in xl's configuration.
    lines: &'static str,
    disks: &'static [Disk],
    /// What `longhaul migrate` says to it; none when it moves alive.
    refused: Option<&'static str>,
    /// Whether `longhaul migrate --cold` moves it.
    cold: bool,
    /// Whether it is replicated before it moves.
    warm: bool,
}

/// As xl has it: device, format, image.
type Disk = [&'static str; 3];

const FIRST: Disk = ["xvda", "raw", "/lab/kind.raw"];

/// What the second disk holds from first to last, apart from the domain's own images.
const SECOND: &str = "/lab/second.bytes";

const KINDS: [Kind; 4] = [
    Kind {
        name: "several",
        lines: "type = \"pvh\"\nkernel = \"/lab/vmlinux\"\nmemory = 80\nvcpus = 2\n",
        disks: &[FIRST, ["xvdb", "raw", "/lab/second.raw"]],
        refused: None,
        cold: false,
        warm: true,
    },
    Kind {
        name: "para",
        lines: "type = \"pv\"\nkernel = \"/lab/vmlinux\"\nmemory = 80\nvcpus = 1\n",
        disks: &[FIRST],
        refused: Some("longhaul migrate --cold"),
        cold: true,
        warm: false,
    },
    Kind {
        name: "emulated",
        lines: "type = \"hvm\"\nkernel = \"/lab/vmlinuz\"\nmemory = 112\nvcpus = 1\nvga = \"none\"\nvnc = 0\nusb = 0\n",
        disks: &[FIRST],
        refused: None,
        cold: true,
        warm: true,
    },
    Kind {
        name: "qcow",
        lines: "type = \"pvh\"\nkernel = \"/lab/vmlinux\"\nmemory = 80\nvcpus = 1\n",
        disks: &[["xvda", "qcow2", "/lab/kind.qcow2"], ["xvdb", "qcow2", "/lab/second.qcow2"]],
        refused: None,
        cold: true,
        warm: false,
    },
];

/// Runs them all, each on a and then on b.
pub(super) fn run(pair: &XenPair) -> Result<()> {
    // For the emulated machine's network card.
    for host in [&pair.a, &pair.b] {
        host.run("modprobe tun")?;
    }
    product::start(pair)?;
    product::seed(pair)?;
    for kind in &KINDS {
        step(&format!("a domain of another kind: {}", kind.name));
        one(pair, kind).with_context(|| {
            let logs = [&pair.a, &pair.b].map(|host| {
                let qemu = host.run(&format!("tail -n 20 /var/log/xen/*{}*", kind.name)).unwrap_or_default();
                format!("--- {}\n{}\n{qemu}", host.name(), product::trouble(host, kind.name))
            });
            format!("{}\n{}", kind.name, logs.join("\n"))
        })?;
    }
    Ok(())
}

fn one(pair: &XenPair, kind: &Kind) -> Result<()> {
    let (a, b, name) = (&pair.a, &pair.b, kind.name);
    let collector = pair.collector()?;
    a.run(
        "cd /lab; cp --sparse=always base.raw kind.raw; rm -f second.raw; head -c 3000000 longhaul >second.raw\n\
         truncate -s 16M second.raw; cp second.raw second.bytes; for name in base second; do qemu-img convert -O qcow2 $name.raw $name.qcow2; done\n\
         mv base.qcow2 kind.qcow2",
    )?;
    let configuration = configuration(kind, collector.port());
    a.run(&format!("cat > /tmp/{name}.cfg <<'END'\n{configuration}END\nxl create -q /tmp/{name}.cfg"))?;
    collector.wait_acked(3, BOOT).context("the guest on a")?;
    product::json(a, &format!("vm adopt {name}"))?;
    if kind.warm {
        replicated(pair, kind)?;
    }
    if let Some(why) = kind.refused {
        refused(a, name, why)?;
    } else {
        moved(pair, &collector, kind, "")?;
    }
    if kind.cold {
        // One that has moved alive comes back, one that cannot goes.
        moved(pair, &collector, kind, "--cold")?;
    }
    for host in [a, b] {
        host.run(&format!("xl destroy {name} 2>/dev/null; true"))?;
    }
    Ok(())
}

/// Nothing is begun, and the guest runs on.
fn refused(host: &harness::XenHost, name: &str, why: &str) -> Result<()> {
    let (status, said) = host.status_within(&format!("/lab/longhaul migrate {name} --to b"), BOOT)?;
    println!("    {}", said.trim());
    ensure!(status != 0 && said.contains(why), "it is not refused for {why:?}: {said}");
    ensure!(names(host)? == [name], "the guest does not run on");
    Ok(())
}

/// Two warm passes to b, the second of what the guest has written since the first; then what is there is what is here.
fn replicated(pair: &XenPair, kind: &Kind) -> Result<()> {
    let (a, b, name) = (&pair.a, &pair.b, kind.name);
    let pass = |way: &str| -> Result<()> {
        let report = product::json(a, &format!("replicate {name} --to b"))?;
        let summary = report["summary"].as_str().unwrap_or("?");
        println!("    {summary}");
        ensure!(summary.contains(way), "it is not {way:?}: {report}");
        Ok(())
    };
    pass("first copy")?;
    a.run(&format!("xl pause {name}"))?;
    pass("dirty blocks")?;
    for [device, _, image] in kind.disks {
        let here = a.run(&format!("sync; sha256sum < {image}"))?;
        let there = b.run(&format!("sha256sum < /lab/var/replicas/{name}/{device}/image.raw"))?;
        ensure!(here == there, "the replica of {device} is another disk");
    }
    a.run(&format!("xl unpause {name}")).map(drop)
}

fn moved(pair: &XenPair, collector: &Collector, kind: &Kind, how: &str) -> Result<()> {
    let (a, b, name) = (&pair.a, &pair.b, kind.name);
    let (from, to) = if names(a)?.is_empty() { (b, a) } else { (a, b) };
    collector.mark();
    let report = product::json(from, &format!("migrate {name} --to {} {how}", to.name()))?;
    collector.wait_progress(3, BOOT).with_context(|| format!("the guest on {}", to.name()))?;
    println!(
        "    {how} to {}: not heard for {:.0} ms; {}",
        to.name(),
        collector.longest_since_mark().as_secs_f64() * 1e3,
        report["summary"].as_str().unwrap_or("?")
    );
    ensure!(collector.duplicates() == 0 && collector.instances().len() == 1, "the guest ran twice");
    ensure!(names(from)?.is_empty() && names(to)? == [name], "it is not on {} alone", to.name());
    if kind.disks.len() > 1 {
        let sum = |host: &harness::XenHost, path: &str| host.run(&format!("sha256sum < {path}"));
        let (left, right) = (sum(a, SECOND)?, sum(to, &disk_of(to, name, "xvdb")?)?);
        ensure!(left == right, "the second disk is another one");
    }
    Ok(())
}

fn configuration(kind: &Kind, port: u16) -> String {
    let disks = kind.disks.iter().map(|[device, format, image]| {
        format!("\"format={format},vdev={device},access=rw,backendtype=qdisk,target={image}\"")
    });
    format!(
        "name = \"{}\"\n{}ramdisk = \"/lab/initrd\"\nextra = \"{}\"\ndisk = [ {} ]\n\
         vif = [ \"mac=00:16:3e:00:00:51,bridge=xenbr0,script=vif-bridge\" ]\n",
        kind.name,
        kind.lines,
        Machine::append(port),
        disks.collect::<Vec<_>>().join(", ")
    )
}
