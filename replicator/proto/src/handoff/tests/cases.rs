//! What the simulation cannot tell from luck, on the machines themselves.

use std::time::Duration;

use crate::handoff::*;
use crate::{journal, wire};

const NOW: Duration = Duration::from_secs(1);

fn source_records(rest: &[Record]) -> Vec<Record> {
    let mut records = vec![Record::Started { vm: "web".into(), peer: "b".into(), epoch: Epoch(3) }];
    records.extend_from_slice(rest);
    records
}

fn destination_records(rest: &[Record]) -> Vec<Record> {
    let plan = vec![1, 2, 3];
    let mut records = vec![Record::Accepted { vm: "web".into(), peer: "a".into(), epoch: Epoch(3), plan }];
    records.extend_from_slice(rest);
    records
}

fn source(rest: &[Record]) -> Source {
    Source::recover(&source_records(rest), Limits::default()).unwrap()
}

fn destination(rest: &[Record]) -> Destination {
    Destination::recover(&destination_records(rest)).unwrap()
}

fn told(outputs: impl Iterator<Item = Output<impl Sized>>) -> Vec<Message> {
    outputs
        .filter_map(|output| if let Output::Transmit(message) = output { Some(message) } else { None })
        .collect()
}

fn hear(source: &mut Source, message: Message) -> Vec<Message> {
    source.handle_input(NOW, SourceInput::Message(message));
    told(std::iter::from_fn(|| source.poll_output()))
}

fn hear_there(destination: &mut Destination, message: Message) -> Vec<Message> {
    destination.handle_input(NOW, DestinationInput::Message(message));
    told(std::iter::from_fn(|| destination.poll_output()))
}

fn abort() -> Message {
    Message::Abort { reason: "because".into() }
}

fn every_message() -> Vec<Message> {
    vec![
        Message::Offer { vm: "web".into(), epoch: Epoch(3), plan: Vec::new() },
        Message::Accepted,
        Message::StartMemory,
        Message::MemoryReady,
        Message::Final { roots: Vec::new() },
        Message::Ready { sealed_us: 0 },
        Message::Release { epoch: Epoch(4) },
        Message::Resumed,
        abort(),
        Message::Query,
        Message::Unknown,
        Message::Preparing,
    ]
}

#[test]
fn answers_about_unknown_jobs_end() {
    for message in every_message() {
        let answer = message.answer_for_unknown_job();
        assert_eq!(answer.and_then(|answer| answer.answer_for_unknown_job()), None, "{message:?}");
    }
    assert_eq!(Message::Query.answer_for_unknown_job(), Some(Message::Unknown));
    assert_eq!(Message::Ready { sealed_us: 0 }.answer_for_unknown_job(), Some(Message::Unknown));
}

#[test]
fn no_two_ended_machines_talk_for_ever() {
    let released = Record::Released { epoch: Epoch(4) };
    let rolled_back = Record::RolledBack { reason: String::new() };
    let owned = [Record::Ready, Record::Owned { epoch: Epoch(4) }, Record::Resumed, Record::Rebound];
    let discarded = Record::Discarded { reason: String::new() };
    for ours in [vec![released, Record::Retired], vec![rolled_back]] {
        for theirs in [owned.to_vec(), vec![discarded.clone()]] {
            for first in every_message() {
                let (mut source, mut destination) = (source(&ours), destination(&theirs));
                let mut said = hear(&mut source, first.clone());
                said.extend(hear_there(&mut destination, first.clone()));
                for _ in 0..4 {
                    let there: Vec<_> =
                        said.drain(..).flat_map(|m| hear_there(&mut destination, m)).collect();
                    said = there.into_iter().flat_map(|m| hear(&mut source, m)).collect();
                }
                assert_eq!(said, [], "{ours:?} {theirs:?} {first:?}");
            }
        }
    }
}

#[test]
fn a_destination_that_lost_its_records_gets_no_storm() {
    let mut source = source(&[Record::Released { epoch: Epoch(4) }]);
    source.restart(NOW);
    assert_eq!(told(std::iter::from_fn(|| source.poll_output())), [Message::Release { epoch: Epoch(4) }]);
    assert_eq!(hear(&mut source, abort()), [], "the timer repeats it");
    assert_eq!(source.deadline(), Some(NOW + Limits::default().resend));
}

#[test]
fn a_source_that_lost_its_records_leaves_a_promise_undecided() {
    let mut waiting = destination(&[Record::Ready]);
    assert_eq!(hear_there(&mut waiting, Message::Unknown), []);
    assert!(!waiting.owns() && !waiting.is_ended() && waiting.deadline().is_some());
    // Before the promise nothing is at stake.
    let mut receiving = destination(&[]);
    hear_there(&mut receiving, Message::Unknown);
    assert!(receiving.failure().is_some());
}

#[test]
fn a_loss_that_only_the_destination_saw_is_told() {
    let mut destination = destination(&[]);
    destination.handle_input(NOW, DestinationInput::LinkLost);
    assert!(matches!(told(std::iter::from_fn(|| destination.poll_output()))[..], [Message::Abort { .. }]));
    for late in [Message::StartMemory, Message::Final { roots: Vec::new() }] {
        assert!(matches!(hear_there(&mut destination, late)[..], [Message::Abort { .. }]));
    }
}

#[test]
fn a_source_that_was_rolled_back_says_so_again_when_its_owner_was_lost() {
    // The lost owner may have been about to answer a destination that waits for this and asks no more.
    let mut source = source(&[Record::RolledBack { reason: "because".into() }]);
    source.restart(NOW);
    assert_eq!(told(std::iter::from_fn(|| source.poll_output())), [abort()]);
    assert!(source.is_ended() && source.deadline().is_none());
}

#[test]
fn a_released_vm_is_never_taken_back() {
    let inputs = [
        SourceInput::LinkLost,
        SourceInput::Cancel,
        SourceInput::Message(abort()),
        SourceInput::Message(Message::Unknown),
        SourceInput::Failed { action: SourceAction::SendFinal, reason: String::new() },
        SourceInput::RolledBack,
    ];
    for input in inputs {
        let mut source = source(&[Record::Released { epoch: Epoch(4) }]);
        source.handle_input(NOW, input.clone());
        assert!(!source.owns(), "{input:?}");
        let rest: Vec<_> = std::iter::from_fn(|| source.poll_output()).collect();
        assert!(!rest.contains(&Output::Action(SourceAction::RollBack)), "{input:?}: {rest:?}");
    }
}

#[test]
fn a_promise_is_only_ended_by_the_source() {
    let inputs = [
        DestinationInput::LinkLost,
        DestinationInput::Failed { reason: String::new() },
        DestinationInput::Discarded,
        DestinationInput::Message(Message::Unknown),
        DestinationInput::Message(Message::Final { roots: Vec::new() }),
        DestinationInput::MemoryLoaded,
        DestinationInput::Resumed,
        DestinationInput::Preparing,
    ];
    for input in inputs {
        let mut destination = destination(&[Record::Ready]);
        destination.handle_input(NOW, input.clone());
        assert!(destination.failure().is_none() && !destination.owns(), "{input:?}");
    }
}

#[test]
fn nothing_is_written_of_what_was_never_begun() {
    let new = |plan| Source::new("web".into(), "b".into(), Epoch::FIRST, plan, Limits::default());
    let journals = |mut source: Source, input| {
        source.handle_input(NOW, input);
        source.handle_input(NOW, SourceInput::Start);
        let wrote = std::iter::from_fn(|| source.poll_output()).any(|o| matches!(o, Output::Journal(_)));
        (wrote, source.is_ended())
    };
    assert_eq!(journals(new(Vec::new()), SourceInput::Cancel), (false, true));
    assert_eq!(journals(new(vec![0; wire::MAX_PLAN_BYTES + 1]), SourceInput::Start), (false, true));
    assert_eq!(journals(new(vec![0; wire::MAX_PLAN_BYTES]), SourceInput::Start), (true, false));
    assert_eq!(journals(new(Vec::new()), SourceInput::LinkLost), (true, false), "no connection was used yet");
}

#[test]
fn a_long_reason_fits_the_journal() {
    let reason = "ü".repeat(wire::MAX_PLAN_BYTES);
    let mut source = source(&[]);
    hear(&mut source, Message::Abort { reason: reason.clone() });
    source.handle_input(NOW, SourceInput::RolledBack);
    let mut destination = destination(&[]);
    hear_there(&mut destination, Message::Abort { reason });
    destination.handle_input(NOW, DestinationInput::Discarded);
    let ours = std::iter::from_fn(|| source.poll_output()).filter_map(record);
    let theirs = std::iter::from_fn(|| destination.poll_output()).filter_map(record);
    let records: Vec<_> = ours.chain(theirs).collect();
    assert_eq!(records.len(), 2);
    for record in records {
        assert!(journal::encode(&record).unwrap().len() < MAX_REASON_BYTES + 32);
    }
}

fn record<A>(output: Output<A>) -> Option<Record> {
    if let Output::Journal(record) = output { Some(record) } else { None }
}

#[test]
fn records_out_of_order_are_no_hand_off() {
    let some = [
        Record::Released { epoch: Epoch(4) },
        Record::Retired,
        Record::RolledBack { reason: String::new() },
        Record::Ready,
        Record::Owned { epoch: Epoch(4) },
        Record::Resumed,
        Record::Rebound,
        Record::Discarded { reason: String::new() },
    ];
    let mut sequences = vec![Vec::new()];
    for _ in 0..5 {
        let longer: Vec<Vec<Record>> = sequences
            .iter()
            .flat_map(|sequence| {
                some.iter().map(move |record| [&sequence[..], std::slice::from_ref(record)].concat())
            })
            .collect();
        sequences.extend(longer);
        sequences.sort_by_key(|sequence| format!("{sequence:?}"));
        sequences.dedup();
    }
    let labels = |kept: Vec<&Vec<Record>>| -> Vec<Vec<&str>> {
        let mut all: Vec<Vec<_>> = kept.iter().map(|one| one.iter().map(Record::label).collect()).collect();
        all.sort_by_key(|one| (one.len(), one.join(" ")));
        all
    };
    let ours =
        sequences.iter().filter(|rest| Source::recover(&source_records(rest), Limits::default()).is_some());
    let wanted: [&[&str]; 4] = [&[], &["released"], &["rolled_back"], &["released", "retired"]];
    assert_eq!(labels(ours.collect()), wanted);
    let theirs = sequences.iter().filter(|rest| Destination::recover(&destination_records(rest)).is_some());
    let wanted: [&[&str]; 7] = [
        &[],
        &["discarded"],
        &["ready"],
        &["ready", "discarded"],
        &["ready", "owned"],
        &["ready", "owned", "resumed"],
        &["ready", "owned", "resumed", "rebound"],
    ];
    assert_eq!(labels(theirs.collect()), wanted);
    assert!(Source::recover(&[], Limits::default()).is_none());
    assert!(Destination::recover(&source_records(&[])).is_none());
}

#[test]
fn a_person_may_decide_for_a_source_that_is_gone_but_only_after_the_promise() {
    for keep in [true, false] {
        let mut promised = destination(&[Record::Ready]);
        promised.handle_input(NOW, DestinationInput::Resolve { keep });
        let outputs: Vec<_> = std::iter::from_fn(|| promised.poll_output()).collect();
        let owned = outputs.contains(&Output::Journal(Record::Owned { epoch: Epoch(4) }));
        let resumed = outputs.contains(&Output::Action(DestinationAction::Resume));
        let discarded = outputs.contains(&Output::Action(DestinationAction::Discard));
        assert_eq!((owned, resumed, discarded), (keep, keep, !keep));

        let mut early = destination(&[]);
        early.handle_input(NOW, DestinationInput::Resolve { keep });
        assert_eq!(early.poll_output(), None);
    }
}
