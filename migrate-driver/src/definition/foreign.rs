//! What a definition that comes from elsewhere may ask of this host's QEMU. Its command line can run programs, read and
//! write files and open sockets as the user that starts it, so what is free text there is this platform's to allow.

use super::VmDefinition;

/// Stands for any argument in a list of those that are allowed.
pub const ANY_ARGUMENT: &str = "*";

/// Properties of a machine that name no file and no object of the host.
const MACHINE_PROPERTIES: [&str; 13] = [
    "acpi",
    "dump-guest-core",
    "graphics",
    "hpet",
    "kernel-irqchip",
    "mem-merge",
    "pic",
    "pit",
    "sata",
    "smbus",
    "smm",
    "usb",
    "vmport",
];
/// The same of accelerators.
const ACCEL_PROPERTIES: [&str; 3] = ["kernel-irqchip", "thread", "tb-size"];
const ACCELERATORS: [&str; 2] = ["kvm", "tcg"];

/// What a definition from elsewhere asks that is not allowed here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForeignError {
    /// A further argument.
    #[error("it brings the QEMU argument `{0}`")]
    Argument(String),
    /// Machine, accelerator or processor with more than a name and plain switches.
    #[error("its {field} is `{given}`, which is more than a name and switches that are known to be harmless")]
    Setting {
        /// Which.
        field: &'static str,
        /// What it is.
        given: String,
    },
}

/// Whether `def` asks QEMU for nothing but what is typed, what the VM has here already (`known`), and what `allowed` has: each of
/// that is an option and its value, as in `-device virtio-rng-pci`, compared as it stands, or [`ANY_ARGUMENT`].
///
/// # Errors
/// The first thing that is not allowed.
pub fn check_foreign(
    def: &VmDefinition,
    known: Option<&VmDefinition>,
    allowed: &[String],
) -> Result<(), ForeignError> {
    if allowed.iter().any(|allowed| allowed == ANY_ARGUMENT) {
        return Ok(());
    }
    let (qemu, known) = (&def.qemu, known.map(|known| &known.qemu));
    // It travels with the version of its machine, which a definition need not name.
    let is_same_machine = known.is_some_and(|known| {
        let (name, options) = first(&qemu.machine);
        options == first(&known.machine).1 && name.bytes().all(is_plain)
    });
    if !is_same_machine && !is_harmless(&qemu.machine, None, &MACHINE_PROPERTIES) {
        return Err(ForeignError::Setting { field: "machine", given: qemu.machine.clone() });
    }
    if known.is_none_or(|known| known.accel != qemu.accel)
        && !is_harmless(&qemu.accel, Some(&ACCELERATORS), &ACCEL_PROPERTIES)
    {
        return Err(ForeignError::Setting { field: "accel", given: qemu.accel.clone() });
    }
    // Features of a processor are switches, whatever they are called.
    if !qemu.cpu.bytes().all(|byte| is_plain(byte) || b",+=".contains(&byte)) {
        return Err(ForeignError::Setting { field: "cpu", given: qemu.cpu.clone() });
    }
    if known.is_some_and(|known| known.args == qemu.args) {
        return Ok(());
    }
    let mut rest = qemu.args.as_slice();
    while let [option, after @ ..] = rest {
        // An option and its value in one would pass for two.
        if option.contains(' ') {
            return Err(ForeignError::Argument(option.clone()));
        }
        let alone = allowed.contains(option);
        let (argument, after) = match after {
            [value, after @ ..] if !alone && !value.starts_with('-') => (format!("{option} {value}"), after),
            _ => (option.clone(), after),
        };
        if !allowed.contains(&argument) {
            return Err(ForeignError::Argument(argument));
        }
        rest = after;
    }
    Ok(())
}

/// A setting's first part, and the options behind it.
fn first(setting: &str) -> (&str, Option<&str>) {
    setting.split_once(',').map_or((setting, None), |(name, options)| (name, Some(options)))
}

fn is_harmless(setting: &str, names: Option<&[&str]>, properties: &[&str]) -> bool {
    let (name, options) = first(setting);
    let is_known = |property: &str| {
        let (key, value) = property.split_once('=').unwrap_or((property, ""));
        properties.contains(&key) && value.bytes().all(is_plain)
    };
    name.bytes().all(is_plain)
        && names.is_none_or(|names| names.contains(&name))
        && options.is_none_or(|options| options.split(',').all(is_known))
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn definition(qemu: &str) -> VmDefinition {
        let toml = format!("name = \"web\"\nmemory_mib = 64\ndisks = []\n[qemu]\n{qemu}\n");
        VmDefinition::parse(&toml, Path::new("test")).unwrap()
    }

    fn asks(qemu: &str, allowed: &[&str]) -> Result<(), ForeignError> {
        let allowed: Vec<_> = allowed.iter().map(|&text| text.to_owned()).collect();
        check_foreign(&definition(qemu), None, &allowed)
    }

    #[test]
    fn a_vm_brings_back_what_it_has_here() {
        const ARGS: &str = "args = [\"-drive\", \"file=/srv/x.iso\"]";
        let known =
            definition(&format!("machine = \"q35,memory-backend=m\"\naccel = \"tcg,device=x\"\n{ARGS}"));
        let asks = |qemu: String| check_foreign(&definition(&qemu), Some(&known), &[]);
        let (accel, machine) = ("accel = \"tcg,device=x\"", "machine = \"pc-q35-7.2,memory-backend=m\"");
        assert_eq!(asks(format!("{machine}\n{accel}\n{ARGS}")), Ok(()));
        for other in [
            format!("machine = \"/x,memory-backend=m\"\n{ARGS}"),
            format!("machine = \"q35,memory-backend=other\"\n{ARGS}"),
            format!("accel = \"tcg,device=y\"\n{ARGS}"),
            "args = [\"-drive\", \"file=/etc/shadow\"]".to_owned(),
        ] {
            assert!(asks(other.clone()).is_err(), "{other}");
        }
    }

    #[test]
    fn what_a_platform_gives_its_own_vms_is_harmless() {
        for qemu in [
            "",
            "machine = \"pc-q35-7.2\"",
            "machine = \"q35,usb=off,smm=on\"",
            "accel = \"tcg,thread=multi,tb-size=64\"",
            "accel = \"kvm\"",
            "cpu = \"Skylake-Client-v3,+aes,-rtm,pmu=off\"",
        ] {
            assert_eq!(asks(qemu, &[]), Ok(()), "{qemu}");
        }
    }

    #[test]
    fn files_programs_and_sockets_by_way_of_a_setting_are_refused() {
        for qemu in [
            "machine = \"q35,dumpdtb=out\"",
            "machine = \"q35,firmware=/etc/shadow\"",
            "machine = \"q35,memory-backend=mem\"",
            "machine = \"q35,usb=/dev/x\"",
            "machine = \"type=q35\"",
            "machine = \"q35,,x\"",
            "accel = \"xen\"",
            "accel = \"kvm,dirty-ring-size=4096,device=/tmp/kvm\"",
            "cpu = \"max,x=/etc/shadow\"",
        ] {
            assert!(matches!(asks(qemu, &[]), Err(ForeignError::Setting { .. })), "{qemu}");
            assert_eq!(asks(qemu, &["*"]), Ok(()), "{qemu}");
        }
    }

    #[test]
    fn an_argument_passes_only_as_it_stands_in_the_list() {
        const ARGS: &str =
            "args = [\"-no-hpet\", \"-netdev\", \"user,id=n0\", \"-device\", \"e1000,netdev=n0\"]";
        const LIST: [&str; 3] = ["-no-hpet", "-netdev user,id=n0", "-device e1000,netdev=n0"];
        assert_eq!(asks(ARGS, &LIST), Ok(()));
        assert_eq!(asks(ARGS, &["*"]), Ok(()));
        for (missing, named) in LIST.iter().enumerate() {
            let mut list = LIST.to_vec();
            list.remove(missing);
            assert_eq!(asks(ARGS, &list), Err(ForeignError::Argument((*named).to_owned())));
        }
        for args in [
            "args = [\"-netdev\", \"user,id=n0,guestfwd=tcp:10.0.2.100:80-cmd:id\"]",
            "args = [\"-netdev\", \"tap,id=n0,helper=/tmp/x\"]",
            "args = [\"--netdev\", \"user,id=n0\"]",
            "args = [\"-netdev\"]",
            "args = [\"user,id=n0\"]",
            "args = [\"-no-hpet\", \"/etc/shadow\"]",
            "args = [\"-netdev user,id=n0\"]",
            "args = [\"-netdev\", \"-netdev\", \"user,id=n0\"]",
        ] {
            assert!(matches!(asks(args, &LIST), Err(ForeignError::Argument(_))), "{args}");
        }
    }
}
