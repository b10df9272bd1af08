//! The conformance suite of all drivers, on Xen's: an agent in each host's first domain, one disk that both see.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use harness::XenPair;

use super::machine::{Machine, VM};
use super::step;

const PORT: u16 = 7000;

/// Runs it.
pub(super) fn run(pair: &XenPair) -> Result<()> {
    step("the conformance suite of all drivers, on Xen's");
    let collector = pair.collector()?;
    for host in [&pair.a, &pair.b] {
        host.run(&format!(
            "cat > /tmp/guest.toml <<'END'\n{}END\n\
             setsid /lab/agent /tmp/guest.toml /lab/longhaul /lab/agent.d 0.0.0.0:{PORT} >/tmp/agent.log 2>&1 &",
            definition(collector.port())
        ))?;
    }
    for host in [&pair.a, &pair.b] {
        host.run(&format!("n=0; until socat -u /dev/null TCP:127.0.0.1:{PORT}; do n=$((n+1)); [ $n -lt 100 ]; sleep 0.2; done"))?;
    }
    let agents = [&pair.a, &pair.b].map(|host| SocketAddr::from((host.address(), PORT)));
    ::conformance::remote::run(pair.namespace(), agents, &collector).with_context(|| {
        let logs = [&pair.a, &pair.b].map(|host| {
            let script = format!("tail -n 20 /tmp/agent.log /lab/agent.d/run/{VM}/xl.log; xl list -v; ps ax | grep '[x]l'; true");
            format!("--- {}\n{}", host.name(), host.run(&script).unwrap_or_default())
        });
        logs.join("\n")
    })
}

fn definition(port: u16) -> String {
    format!(
        "name = \"{VM}\"\nmemory_mib = 80\nvcpus = 1\ndisks = [{{ name = \"xvda\", path = \"/dev/vdc\" }}]\n\
         [xen]\ntype = \"pvh\"\nkernel = \"/lab/vmlinux\"\nramdisk = \"/lab/initrd\"\nextra = \"{}\"\n\
         nics = [{{ mac = \"00:16:3e:00:00:50\", bridge = \"xenbr0\" }}]\n",
        Machine::append(port)
    )
}
