//! What a destination must offer for a guest that runs: travels in a migration's plan as JSON. Every part may be missing, and
//! a reader ignores what it does not know. Pure.

use serde::{Deserialize, Serialize};

use crate::definition::VmDefinition;

/// More than any QEMU has.
const MAX_FEATURE_WORDS: usize = 256;
/// Longest name of a machine type.
const MAX_MACHINE_BYTES: usize = 64;

/// The guest's machine, as it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestFacts {
    /// The versioned machine type: `pc-q35-7.2` where the definition says `q35`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// What its first CPU offers to the guest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpu: Vec<FeatureWord>,
    /// The version of its hypervisor: `7.2.22`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// One register of one CPUID leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FeatureWord {
    /// The leaf.
    pub cpuid_input_eax: u64,
    /// The sub-leaf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuid_input_ecx: Option<u64>,
    /// `EAX`, `EBX`, `ECX` or `EDX`.
    pub cpuid_register: String,
    /// Its bits.
    pub features: u64,
}

impl FeatureWord {
    fn place(&self) -> (u64, u64, &str) {
        (self.cpuid_input_eax, self.cpuid_input_ecx.unwrap_or(0), &self.cpuid_register)
    }

    fn name_of(&self, bit: u32) -> String {
        let table: &[&str] = match self.place() {
            (1, _, "ECX") => &LEAF_1_ECX,
            (7, 0, "EBX") => &LEAF_7_EBX,
            (0x8000_0001, _, "ECX") => &LEAF_80000001_ECX,
            _ => &[],
        };
        match table.get(bit as usize) {
            Some(name) if !name.is_empty() => (*name).into(),
            _ => format!("CPUID {:#x} {} bit {bit}", self.cpuid_input_eax, self.cpuid_register),
        }
    }
}

impl GuestFacts {
    /// The definition with the machine type as it runs at the source: an alias like `q35` stands for another machine in
    /// another version of QEMU. Options behind the type stay.
    #[must_use]
    pub fn pinned(&self, def: &VmDefinition) -> VmDefinition {
        let mut def = def.clone();
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let machine = self
            .machine
            .as_deref()
            .filter(|machine| (1..=MAX_MACHINE_BYTES).contains(&machine.len()) && machine.bytes().all(named));
        if let Some(machine) = machine {
            let (first, options) = match def.qemu.machine.split_once(',') {
                Some((first, options)) => (first, format!(",{options}")),
                None => (def.qemu.machine.as_str(), String::new()),
            };
            // Where the type stands among the options it is not ours to find.
            if !first.contains('=') {
                def.qemu.machine = format!("{machine}{options}");
            }
        }
        def
    }

    /// What the guest's CPU offers and `here` does not.
    #[must_use]
    pub fn missing_in(&self, here: &GuestFacts) -> Vec<String> {
        let mut missing = Vec::new();
        for word in self.cpu.iter().take(MAX_FEATURE_WORDS) {
            let offered = here.cpu.iter().find(|other| other.place() == word.place());
            let lacking = word.features & !offered.map_or(0, |offered| offered.features);
            missing.extend((0..u64::BITS).filter(|bit| lacking >> bit & 1 == 1).map(|bit| word.name_of(bit)));
        }
        missing
    }
}

/// QEMU's names of the bits.
const LEAF_1_ECX: [&str; 32] = [
    "sse3",
    "pclmulqdq",
    "dtes64",
    "monitor",
    "ds-cpl",
    "vmx",
    "smx",
    "est",
    "tm2",
    "ssse3",
    "cid",
    "",
    "fma",
    "cx16",
    "xtpr",
    "pdcm",
    "",
    "pcid",
    "dca",
    "sse4.1",
    "sse4.2",
    "x2apic",
    "movbe",
    "popcnt",
    "tsc-deadline",
    "aes",
    "xsave",
    "osxsave",
    "avx",
    "f16c",
    "rdrand",
    "hypervisor",
];
const LEAF_7_EBX: [&str; 32] = [
    "fsgsbase",
    "tsc-adjust",
    "sgx",
    "bmi1",
    "hle",
    "avx2",
    "fdp-excptn-only",
    "smep",
    "bmi2",
    "erms",
    "invpcid",
    "rtm",
    "",
    "zero-fcs-fds",
    "mpx",
    "",
    "avx512f",
    "avx512dq",
    "rdseed",
    "adx",
    "smap",
    "avx512ifma",
    "pcommit",
    "clflushopt",
    "clwb",
    "intel-pt",
    "avx512pf",
    "avx512er",
    "avx512cd",
    "sha-ni",
    "avx512bw",
    "avx512vl",
];
const LEAF_80000001_ECX: [&str; 32] = [
    "lahf-lm",
    "cmp-legacy",
    "svm",
    "extapic",
    "cr8legacy",
    "abm",
    "sse4a",
    "misalignsse",
    "3dnowprefetch",
    "osvw",
    "ibs",
    "xop",
    "skinit",
    "wdt",
    "",
    "lwp",
    "fma4",
    "tce",
    "",
    "nodeid-msr",
    "",
    "tbm",
    "topoext",
    "perfctr-core",
    "perfctr-nb",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn word(eax: u64, register: &str, features: u64) -> FeatureWord {
        FeatureWord { cpuid_input_eax: eax, cpuid_input_ecx: None, cpuid_register: register.into(), features }
    }

    fn facts(cpu: Vec<FeatureWord>) -> GuestFacts {
        GuestFacts { cpu, ..GuestFacts::default() }
    }

    #[test]
    fn what_the_destination_lacks_is_named() {
        let guest = facts(vec![word(1, "ECX", 1 | 1 << 13 | 1 << 23), word(0x1234, "EAX", 1 << 40)]);
        assert_eq!(guest.missing_in(&guest), Vec::<String>::new());
        let here = facts(vec![word(1, "EDX", u64::MAX), word(1, "ECX", 1 | 1 << 5)]);
        assert_eq!(guest.missing_in(&here), ["cx16", "popcnt", "CPUID 0x1234 EAX bit 40"]);
        assert!(facts(vec![]).missing_in(&here).is_empty(), "a source that does not tell asks for nothing");
    }

    #[test]
    fn the_machine_is_pinned_and_its_options_stay() {
        let text = "name = 'web'\nmemory_mib = 96\n";
        let mut def = VmDefinition::parse(text, Path::new("t")).unwrap();
        let mut pin = |machine: &str, pinned: &str| {
            def.qemu.machine = machine.into();
            let facts = GuestFacts { machine: Some(pinned.into()), ..GuestFacts::default() };
            facts.pinned(&def).qemu.machine
        };
        assert_eq!(pin("q35", "pc-q35-7.2"), "pc-q35-7.2");
        assert_eq!(pin("q35,smm=off", "pc-q35-7.2"), "pc-q35-7.2,smm=off");
        assert_eq!(pin("accel=kvm,type=q35", "pc-q35-7.2"), "accel=kvm,type=q35");
        for bad in ["", "q35,dumpdtb=/etc/passwd", "q35 x", &"x".repeat(65)] {
            assert_eq!(pin("q35", bad), "q35", "{bad:?}");
        }
    }

    #[test]
    fn a_reader_takes_what_it_knows() {
        let text = r#"{"machine": "pc-q35-9.0", "numa": [1], "cpu": [{"cpuid-input-eax": 1, "cpuid-register": "ECX",
            "features": 5, "new": true}]}"#;
        let facts: GuestFacts = serde_json::from_str(text).unwrap();
        assert_eq!((facts.machine.as_deref(), facts.cpu[0].features), (Some("pc-q35-9.0"), 5));
        assert_eq!(serde_json::from_str::<GuestFacts>("{}").unwrap(), GuestFacts::default());
        assert_eq!(serde_json::to_string(&GuestFacts::default()).unwrap(), "{}");
    }
}
