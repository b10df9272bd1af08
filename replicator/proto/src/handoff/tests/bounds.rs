//! Every wait of a source ends, and progress is what makes one longer.

use std::time::Duration;

use crate::handoff::*;

const LIMITS: Limits = super::node::LIMITS;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn outputs(source: &mut Source) -> Vec<Output<SourceAction>> {
    std::iter::from_fn(|| source.poll_output()).collect()
}

/// A source that has heard all this by `now`, one input after the other.
fn source_after(now: Duration, inputs: &[SourceInput]) -> Source {
    let mut source = Source::new("web".into(), "b".into(), Epoch::FIRST, Vec::new(), LIMITS);
    for input in inputs {
        source.handle_input(now, input.clone());
    }
    outputs(&mut source);
    source
}

fn to_memory() -> Vec<SourceInput> {
    vec![
        SourceInput::Start,
        SourceInput::Message(Message::Accepted),
        SourceInput::DisksCopied { dirty_bytes: 0 },
        SourceInput::RoundDone { sent_bytes: 0, took: ms(1), dirty_bytes: 0 },
        SourceInput::Message(Message::MemoryReady),
    ]
}

/// Feeds ticks when they are due, until then; the time at which it rolled back.
fn gives_up(source: &mut Source, until: Duration) -> Option<Duration> {
    while let Some(due) = source.deadline().filter(|due| *due <= until) {
        source.handle_input(due, SourceInput::Tick);
        if outputs(source).contains(&Output::Action(SourceAction::RollBack)) {
            return Some(due);
        }
    }
    None
}

#[test]
fn an_offer_lives_as_long_as_the_destination_gets_ahead() {
    let mut source = source_after(ms(0), &[SourceInput::Start]);
    assert_eq!(source.deadline(), Some(LIMITS.answer_timeout));
    for minutes in 0..100 {
        let now = LIMITS.answer_timeout * minutes;
        assert_eq!(gives_up(&mut source, now - ms(1).min(now)), None);
        source.handle_input(now, SourceInput::Message(Message::Preparing));
        assert_eq!(source.deadline(), Some(now + LIMITS.answer_timeout));
    }
    let last = LIMITS.answer_timeout * 99;
    assert_eq!(gives_up(&mut source, Duration::MAX), Some(last + LIMITS.answer_timeout));
    assert!(source.failure().unwrap().contains("not answered"), "{:?}", source.failure());
}

#[test]
fn the_other_answers_are_not_waited_for_longer() {
    let mut inputs = to_memory();
    inputs.pop();
    let mut source = source_after(ms(0), &inputs);
    source.handle_input(ms(900), SourceInput::Message(Message::Preparing));
    assert_eq!(source.deadline(), Some(LIMITS.answer_timeout), "only the offer's answer may take longer");
}

#[test]
fn a_destination_tells_of_progress_at_most_once_a_second_and_only_while_it_prepares() {
    let mut destination = Destination::new("web".into(), "a".into(), Epoch::FIRST, Vec::new());
    let mut told = |now, input| {
        destination.handle_input(now, input);
        let said = std::iter::from_fn(|| destination.poll_output());
        said.filter(|output| *output == Output::Transmit(Message::Preparing)).count()
    };
    assert_eq!(told(ms(0), DestinationInput::Preparing), 0, "nothing has begun");
    assert_eq!(told(ms(0), DestinationInput::Start), 0);
    let said: usize = (0..10_000).step_by(10).map(|at| told(ms(at), DestinationInput::Preparing)).sum();
    assert_eq!(said, 10);
    assert_eq!(told(ms(10_000), DestinationInput::DisksPrepared), 0);
    assert_eq!(told(ms(20_000), DestinationInput::Preparing), 0, "it has accepted");
}

#[test]
fn a_destination_that_gets_nowhere_with_its_disks_gives_up_by_itself() {
    let mut destination = Destination::new("web".into(), "a".into(), Epoch::FIRST, Vec::new());
    destination.handle_input(ms(0), DestinationInput::Start);
    destination.handle_input(ms(50_000), DestinationInput::Preparing);
    assert_eq!(destination.deadline(), Some(ms(110_000)));
    destination.handle_input(ms(110_000), DestinationInput::Tick);
    assert!(destination.failure().unwrap().contains("without progress"), "{:?}", destination.failure());
    let outputs: Vec<_> = std::iter::from_fn(|| destination.poll_output()).collect();
    assert!(outputs.contains(&Output::Action(DestinationAction::Discard)));
}

#[test]
fn memory_that_does_not_get_across_is_given_up() {
    let mut source = source_after(ms(0), &to_memory());
    // Disk rounds go on; they say nothing of the memory.
    for second in 1..60 {
        let now = ms(second * 1000);
        assert_eq!(gives_up(&mut source, now), None, "second {second}");
        source.handle_input(now, SourceInput::MemoryProgress);
        let round = SourceInput::RoundDone { sent_bytes: 1, took: ms(10), dirty_bytes: 1 };
        source.handle_input(now, round);
        outputs(&mut source);
    }
    assert_eq!(gives_up(&mut source, Duration::MAX), Some(ms(59_000) + LIMITS.memory_stall));
    assert!(source.failure().unwrap().contains("nothing of the memory"), "{:?}", source.failure());
}

#[test]
fn a_guest_that_stands_still_is_taken_back_wherever_its_switchover_hangs() {
    let round = SourceInput::RoundDone { sent_bytes: 1, took: ms(10), dirty_bytes: 1 };
    let rest = [
        SourceInput::GuestPaused,
        round,
        SourceInput::DisksDrained,
        SourceInput::FinalSent { roots: Vec::new() },
        SourceInput::MemorySent,
    ];
    for count in 1..=rest.len() {
        let paused = ms(5_000);
        let mut source = source_after(ms(0), &to_memory());
        for (at, input) in rest[..count].iter().enumerate() {
            source.handle_input(paused + ms(1_000 * at as u64), input.clone());
        }
        // Neither of these makes it longer.
        source.handle_input(paused + ms(9_000), SourceInput::MemoryProgress);
        source.handle_input(paused + ms(9_000), SourceInput::GuestPaused);
        outputs(&mut source);
        assert_eq!(gives_up(&mut source, Duration::MAX), Some(paused + LIMITS.switchover_timeout), "{count}");
        assert!(source.failure().unwrap().contains("stood still"), "{:?}", source.failure());
    }
}

#[test]
fn a_released_vm_is_waited_for_without_an_end() {
    let records = [
        Record::Started { vm: "web".into(), peer: "b".into(), epoch: Epoch(1) },
        Record::Released { epoch: Epoch(2) },
    ];
    let mut source = Source::recover(&records, LIMITS).unwrap();
    source.restart(ms(0));
    outputs(&mut source);
    assert_eq!(gives_up(&mut source, Duration::from_secs(3600)), None);
    assert!(!source.owns() && source.deadline().is_some());
}

#[test]
fn a_switchover_may_take_ten_times_the_pause_and_never_less_than_10_s() {
    let timeout = |ms| Limits::with_max_downtime(Duration::from_millis(ms)).switchover_timeout;
    assert_eq!(timeout(300), Duration::from_secs(10));
    assert_eq!(timeout(1_500), Duration::from_secs(15));
    assert_eq!(Limits::default(), Limits::with_max_downtime(ms(300)));
}
