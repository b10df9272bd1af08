//! The `xl` program: one place that runs it and reads its list of domains. Knows nothing of migrations.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::definition::VmName;
use crate::hypervisor::DriverError;

/// xl waits for locks and for the guest's devices; longer than this it hangs.
const TIMEOUT: Duration = Duration::from_secs(120);
const SAID_BYTES: usize = 1500;

/// How xl calls a domain that comes in, until it has GO.
const INCOMING: &str = "--incoming";
/// How it calls one that it has given up.
const AWAY: &str = "--migratedaway";

/// The reason of a shutdown that is none: SHUTDOWN_suspend of Xen's public/sched.h.
const SUSPENDED: &str = "2";

/// A domain as `xl list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Domain {
    pub(crate) id: u32,
    /// Held still by `xl pause`, or not unpaused yet.
    pub(crate) paused: bool,
    /// Suspended, by a migration: it can be resumed.
    pub(crate) suspended: bool,
    /// Shut down otherwise, crashed or dying: it cannot.
    pub(crate) dead: bool,
}

/// What there is of one VM: up to three domains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Domains {
    pub(crate) own: Option<Domain>,
    pub(crate) incoming: Option<Domain>,
    pub(crate) away: Option<Domain>,
}

impl Domains {
    /// Whether one of them has this number.
    pub(crate) fn has(&self, id: u32) -> bool {
        [&self.own, &self.incoming, &self.away].into_iter().flatten().any(|domain| domain.id == id)
    }

    /// Reads them out of `xl list -v`: name, number, memory, CPUs, state, time, UUID, reason of a shutdown.
    fn parse(vm: &VmName, list: &str) -> Domains {
        let mut domains = Domains::default();
        for line in list.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, id, _, _, state, ..] = words.as_slice() else { continue };
            let (Ok(id), Some(suffix)) = (id.parse(), name.strip_prefix(vm.as_str())) else { continue };
            let suspended = state.contains('s') && words.get(7) == Some(&SUSPENDED);
            let domain = Domain {
                id,
                paused: state.contains('p'),
                suspended,
                dead: state.contains(['c', 'd']) || (state.contains('s') && !suspended),
            };
            match suffix {
                "" => domains.own = Some(domain),
                INCOMING => domains.incoming = Some(domain),
                AWAY => domains.away = Some(domain),
                _ => {}
            }
        }
        domains
    }
}

pub(crate) fn incoming_name(vm: &VmName) -> String {
    format!("{vm}{INCOMING}")
}

pub(crate) fn away_name(vm: &VmName) -> String {
    format!("{vm}{AWAY}")
}

/// Whose domain this is, by its name, when xl was moving it.
pub(crate) fn moving_of(vm: &VmName) -> Option<&str> {
    [INCOMING, AWAY].into_iter().find_map(|suffix| vm.as_str().strip_suffix(suffix))
}

/// Runs a program to its end and returns what it printed.
pub(crate) async fn run(
    vm: &VmName,
    doing: &'static str,
    mut command: Command,
) -> Result<String, DriverError> {
    let failed = |message: String| DriverError::Xl { vm: vm.clone(), doing, message };
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(TIMEOUT, command.output()).await {
        Ok(output) => output.map_err(|error| failed(format!("nothing, it cannot be run: {error}")))?,
        Err(_) => return Err(failed(format!("nothing within {} s", TIMEOUT.as_secs()))),
    };
    if !output.status.success() {
        let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        let said = String::from_utf8_lossy(&said[said.len().saturating_sub(SAID_BYTES)..]);
        return Err(failed(said.trim().replace('\n', " | ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `xl WORDS`.
pub(crate) async fn xl(vm: &VmName, doing: &'static str, words: &[&str]) -> Result<String, DriverError> {
    let mut command = Command::new("xl");
    command.args(words);
    run(vm, doing, command).await
}

/// What there is of a VM.
pub(crate) async fn domains(vm: &VmName) -> Result<Domains, DriverError> {
    Ok(Domains::parse(vm, &xl(vm, "list the domains", &["list", "-v"]).await?))
}

/// Whether the hypervisor can follow a paravirtual domain's writes to its memory.
pub(crate) async fn has_shadow_paging(vm: &VmName) -> Result<bool, DriverError> {
    let info = xl(vm, "ask what the hypervisor can do", &["info"]).await?;
    Ok(says_shadow(&info))
}

/// Reads that out of `xl info`.
fn says_shadow(info: &str) -> bool {
    let capabilities = info.lines().find_map(|line| line.strip_prefix("virt_caps")).unwrap_or_default();
    capabilities.split_whitespace().any(|capability| capability == "shadow")
}

/// Lets a suspended domain run on where it was suspended: what xl does itself when a migration fails, and what it has no
/// command for. libxc and xenstore are reached by the bindings that come with xl.
pub(crate) async fn resume_suspended(vm: &VmName, id: u32) -> Result<(), DriverError> {
    const SCRIPT: &str = "\
import glob, sys
sys.path[:0] = glob.glob('/usr/lib/xen-*/lib/python')
from xen.lowlevel import xc, xs
domain = int(sys.argv[1])
xc.xc().domain_resume(domain, 1)
xs.xs().resume_domain(domain)
";
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT, &id.to_string()]);
    run(vm, "resume its suspended domain", command).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_with_all_three_names_of_a_vm() {
        let uuid = "4a1b3a4e-6b7c-4f0e-9d0c-3f1d4b5a6c7d";
        let list = format!(
            "Name                 ID   Mem VCPUs\tState\tTime(s)  UUID  Reason-Code\tSecurity Label\n\
             Domain-0              0   384     1     r-----       9.5 {uuid}        - none\n\
             u1--migratedaway      3    96     1     ---s--       3.0 {uuid}        2 none\n\
             u1--incoming          7    96     1     --p---       0.0 {uuid}        - none\n\
             u1                    9    96     1     -b----       3.0 {uuid}        - none\n\
             u10                  11    96     1     ---s--       3.0 {uuid}        0 none\n"
        );
        let domain = |id, paused, suspended| Some(Domain { id, paused, suspended, dead: false });
        let vm = VmName::new("u1").unwrap();
        let expected = Domains {
            own: domain(9, false, false),
            incoming: domain(7, true, false),
            away: domain(3, false, true),
        };
        assert_eq!(Domains::parse(&vm, &list), expected);
        let parse = |name: &str| Domains::parse(&VmName::new(name).unwrap(), &list);
        // Powered off and kept: nothing to be resumed.
        assert!(parse("u10").own.is_some_and(|domain| domain.dead && !domain.suspended));
        assert_eq!(parse("u2"), Domains::default());
        let left = ["u1", "u1--incoming", "u1--migratedaway"].map(|name| VmName::new(name).unwrap());
        assert_eq!(left.each_ref().map(moving_of), [None, Some("u1"), Some("u1")]);
    }

    #[test]
    fn shadow_paging_is_a_capability() {
        let info = |capabilities: &str| {
            format!(
                "xen_version            : 4.17.5\nvirt_caps              : {capabilities}\nfree_memory : 9\n"
            )
        };
        assert!(!says_shadow(&info("pv hvm hvm_directio pv_directio hap gnttab-v1 gnttab-v2")));
        assert!(says_shadow(&info("pv hvm hap shadow")));
        assert!(!says_shadow("shadow"));
    }
}
