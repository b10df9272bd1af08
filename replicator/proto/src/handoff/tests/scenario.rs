//! What happens in one run: the platforms and their VMs, what the operator does, what goes wrong, and which flaw the
//! shell around the machines has, if any.

use std::time::Duration;

use super::node::Side;
use super::rng::Rng;

/// What goes wrong. Sides are those of the job that is at work, or else of the one begun last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The daemon ends, and is started again later.
    Crash(Side),
    /// The task that owns the job there panics; the process lives.
    Panic(Side),
    Cut,
    HypervisorDeath,
    Cancel,
    /// A record cannot be written, and certainly is not.
    JournalFails,
    /// A record cannot be written, and nobody can say whether it was.
    JournalDoubt,
}

/// Where in an output a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Before,
    /// A record is written in part; other outputs as `Before`.
    Within,
    After,
}

/// What the operator does. What the daemon does not allow at that moment is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// From wherever it runs; to the next platform but `skip`.
    Migrate {
        vm: usize,
        skip: usize,
    },
    Stop {
        vm: usize,
        at: usize,
    },
    Start {
        vm: usize,
        at: usize,
    },
    /// `Stop`, then `Start`.
    Bounce {
        vm: usize,
        at: usize,
    },
    Cancel {
        vm: usize,
    },
    RestartDaemon {
        at: usize,
    },
    /// A warm pass to another platform.
    Replicate {
        vm: usize,
        to: usize,
    },
}

/// A fault of the shell that drives the machines: each breaks something that they rely on, or leaves out what they offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Copying a replica goes on after `Discard` began.
    CopyOutlivesDiscard,
    /// Blocks that wait to be written are written after `Discard` began.
    QueueOutlivesDiscard,
    /// What was asked of the source's hypervisor happens after `RollBack` began.
    CallsOutliveRollBack,
    /// A job with a doubtful record gives its VM back.
    DoubtDropsHold,
    /// The machine does not hear that the disks get ahead.
    PreparingUntold,
    /// Memory that gets nowhere is waited for.
    NoMemoryLimit,
    /// A switchover that gets nowhere is waited for.
    NoSwitchoverLimit,
    /// A job whose owner panicked is left alone.
    PanicIsNobodys,
    /// After a panic before the first record is durable the same machine goes on, with its next output.
    PanicSkipsFirstRecord,
    /// A panic or a failed record loosens the work of the job: it goes on, and nobody waits for it.
    RecoveryLoosensWork,
    /// Several jobs may work on a VM at once.
    NoHold,
    /// Of several claims to a VM the first one counts.
    FirstClaimCounts,
    /// The last record may be lost in a crash.
    RecordsAreWrittenLater,
    /// Machines do not hear that a connection is lost.
    LossIsUntold,
}

/// Every record by its name.
const RECORDS: [&str; 10] = [
    "started",
    "released",
    "retired",
    "rolled_back",
    "accepted",
    "ready",
    "owned",
    "resumed",
    "discarded",
    "rebound",
];

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) platforms: usize,
    pub(super) vms: usize,
    /// Faults strike, the operator acts and guests write until then.
    pub(super) quiet_at: Duration,
    pub(super) operations: Vec<(Duration, Operation)>,
    /// Of a hundred failed migrations so many are tried again at once.
    pub(super) retry_percent: u64,
    /// Of a hundred failed migrations so many VMs are then stopped and started.
    pub(super) bounce_percent: u64,
    /// At a side's output of this number, over all jobs.
    pub(super) at_output: Vec<(Side, usize, Moment, Fault)>,
    pub(super) at: Vec<(Duration, Fault)>,
    /// Within the first record of this name.
    pub(super) at_record: Vec<(&'static str, Fault)>,
    /// Of a hundred actions so many fail.
    pub(super) failing_percent: u64,
    /// Of a hundred actions so many hang until they are cancelled.
    pub(super) hanging_percent: u64,
    /// Of a hundred messages so many arrive twice.
    pub(super) twice_percent: u64,
    /// Of a hundred messages in flight when the connection is cut so many arrive.
    pub(super) escape_percent: u64,
    /// Of a hundred transfers so many lose a block without a word.
    pub(super) losing_percent: u64,
    /// Replicas are copied so slowly that it takes longer than an answer may.
    pub(super) slow_copies: bool,
    /// Blocks that came wait long before they are written.
    pub(super) slow_writes: bool,
    /// The first migration has to succeed.
    pub(super) must_move: bool,
    pub(super) flaw: Option<Flaw>,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Scenario {
    /// One VM that is moved once from platform 0 to platform 1, and nothing goes wrong.
    pub(super) fn one_move(seed: u64) -> Self {
        let start = ms(Rng(seed ^ 0x57a7).between(3, 1_000));
        Scenario {
            platforms: 2,
            vms: 1,
            quiet_at: Duration::from_secs(8),
            operations: vec![(start, Operation::Migrate { vm: 0, skip: 0 })],
            retry_percent: 0,
            bounce_percent: 0,
            at_output: Vec::new(),
            at: Vec::new(),
            at_record: Vec::new(),
            failing_percent: 0,
            hanging_percent: 0,
            twice_percent: 0,
            escape_percent: 0,
            losing_percent: 0,
            slow_copies: false,
            slow_writes: false,
            must_move: false,
            flaw: None,
        }
    }

    /// One VM that is moved once from a platform to one that has a replica of it, and copies that too slowly for an answer.
    pub(super) fn slow_move(seed: u64) -> Self {
        let mut scenario = Scenario::one_move(seed);
        scenario.operations.push((Duration::ZERO, Operation::Replicate { vm: 0, to: 1 }));
        (scenario.slow_copies, scenario.must_move) = (true, true);
        scenario
    }

    /// One VM that is moved once, and anything that may go wrong.
    pub(super) fn one_move_with_faults(seed: u64) -> Self {
        let mut scenario = Scenario::one_move(seed);
        scenario.add_faults(&mut Rng(seed ^ 0x5eed), 4, 60);
        scenario
    }

    /// Several VMs, several platforms, an operator who does not wait, and anything that may go wrong.
    pub(super) fn fleet(seed: u64) -> Self {
        let mut rng = Rng(seed ^ 0xf1ee7);
        let mut scenario = Scenario::one_move(seed);
        scenario.platforms = 2 + rng.below(2) as usize;
        scenario.vms = 1 + rng.below(3) as usize;
        scenario.quiet_at = Duration::from_secs(16);
        scenario.operations.clear();
        scenario.retry_percent = rng.below(101);
        scenario.bounce_percent = if rng.percent(50) { rng.below(101) } else { 0 };
        scenario.slow_copies = rng.percent(40);
        scenario.slow_writes = rng.percent(20);
        let end = scenario.quiet_at.as_millis() as u64;
        for _ in 0..rng.between(2, 5) * scenario.vms as u64 {
            let vm = rng.below(scenario.vms as u64) as usize;
            let place = rng.below(scenario.platforms as u64) as usize;
            let operation = match rng.below(20) {
                0 | 1 => Operation::Stop { vm, at: place },
                2 | 3 => Operation::Start { vm, at: place },
                4 => Operation::Bounce { vm, at: place },
                5 | 6 => Operation::Cancel { vm },
                7 => Operation::RestartDaemon { at: place },
                8..11 => Operation::Replicate { vm, to: place },
                _ => Operation::Migrate { vm, skip: rng.below(2) as usize },
            };
            scenario.operations.push((ms(rng.below(end)), operation));
        }
        for vm in 0..scenario.vms {
            if rng.percent(50) {
                let to = rng.below(scenario.platforms as u64) as usize;
                scenario.operations.push((ms(rng.below(1_000)), Operation::Replicate { vm, to }));
            }
            let skip = rng.below(2) as usize;
            scenario.operations.push((ms(rng.below(3_000)), Operation::Migrate { vm, skip }));
        }
        scenario.add_faults(&mut rng, 6, 160);
        scenario
    }

    fn add_faults(&mut self, rng: &mut Rng, most: u64, outputs: u64) {
        self.escape_percent = rng.below(100);
        if rng.percent(50) {
            self.failing_percent = rng.below(12);
        }
        if rng.percent(30) {
            self.hanging_percent = rng.below(6);
        }
        if rng.percent(50) {
            self.twice_percent = rng.below(40);
        }
        if rng.percent(20) {
            self.losing_percent = 20;
        }
        let end = self.quiet_at.as_millis() as u64 / 2;
        for _ in 0..rng.below(most) {
            let side = if rng.percent(50) { Side::Source } else { Side::Destination };
            let fault = match rng.below(14) {
                0 | 1 => Fault::Crash(Side::Source),
                2 | 3 => Fault::Crash(Side::Destination),
                4 => Fault::Panic(Side::Source),
                5 => Fault::Panic(Side::Destination),
                6 | 7 => Fault::Cut,
                8 => Fault::HypervisorDeath,
                9 | 10 => Fault::Cancel,
                11 => Fault::JournalFails,
                _ => Fault::JournalDoubt,
            };
            let journal = matches!(fault, Fault::JournalFails | Fault::JournalDoubt);
            if journal || rng.percent(10) {
                self.at_record.push((RECORDS[rng.below(RECORDS.len() as u64) as usize], fault));
            } else if rng.percent(50) {
                self.at.push((ms(rng.below(end)), fault));
            } else {
                let moments = [Moment::Before, Moment::Within, Moment::After];
                let moment = moments[rng.below(3) as usize];
                self.at_output.push((side, rng.below(outputs) as usize, moment, fault));
            }
        }
    }

    pub(super) fn with(mut self, flaw: Flaw) -> Self {
        self.flaw = Some(flaw);
        self
    }
}
