//! After a restart: every hand-off goes on from its journal, and a peer that asks about an ended one is answered from
//! its journal.

use std::sync::Arc;
use std::time::Duration;

use longhaul_proto::JobId;
use longhaul_proto::handoff::{
    Destination, DestinationInput, Limits, Message, Output, Record, Source, SourceInput,
};
use longhaul_proto::wire::Open;
use migrate_driver::VmName;
use quinn::Connection;

use super::{destination, source};
use crate::migration::journal::{self, JournalFileError};
use crate::service::net;
use crate::service::platform::MigrationCx;

/// Takes note of every journal's claim and goes on with what has not ended. Nothing may be started before this returns.
pub(crate) async fn recover_all(cx: &Arc<MigrationCx>) -> Result<(), JournalFileError> {
    for (job, journal) in cx.guests.vms.claims().take_up_journals()? {
        let outcome = match journal.records().first().cloned() {
            Some(Record::Started { vm, peer, .. }) => {
                tracing::info!(%job, "VM '{vm}': going on with its migration to '{peer}'");
                match VmName::new(vm) {
                    Ok(vm) => source::resume(cx, job, journal, vm, &peer).map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                }
            }
            Some(Record::Accepted { vm, peer, .. }) => {
                tracing::info!(%job, "VM '{vm}': going on with its migration from '{peer}'");
                destination::resume(cx, job, journal).map_err(|error| error.to_string())
            }
            // A crash before the first record: nothing had been touched.
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::error!(%job, "cannot go on with it: {error}");
        }
    }
    Ok(())
}

/// Answers a message of a job that is not running, as its journal has it.
pub(crate) async fn answer_from_journal(
    cx: &MigrationCx,
    job: JobId,
    peer: &str,
    message: Message,
    connection: &Connection,
) {
    if cx.handoffs.is_left(job) {
        return;
    }
    let path = cx.guests.layout.journal().join(format!("{job}.journal"));
    let folded = cx.guests.vms.claims().ended(job).map(|ended| ended.records());
    let answers = match folded.map_or_else(|| journal::read(&path), Ok) {
        Ok(records) if with_peer(&records, peer) => answers(&records, message),
        _ => message.answer_for_unknown_job().into_iter().collect(),
    };
    for message in answers {
        reply(connection, job, message).await;
    }
}

/// Sends a message of a hand-off that no owner task runs.
pub(crate) async fn reply(connection: &Connection, job: JobId, message: Message) {
    let Ok(mut stream) = connection.open_uni().await else { return };
    if net::send(&mut stream, &Open::Handoff { job, message }).await.is_ok() {
        let _ = stream.finish();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.stopped()).await;
    }
}

fn with_peer(records: &[Record], peer: &str) -> bool {
    match records.first() {
        Some(Record::Started { peer: other, .. } | Record::Accepted { peer: other, .. }) => other == peer,
        _ => false,
    }
}

/// What the ended machine has to say; it does nothing else any more.
fn answers(records: &[Record], message: Message) -> Vec<Message> {
    let mut answers = Vec::new();
    if let Some(mut machine) = Source::recover(records, Limits::default()) {
        machine.handle_input(Duration::ZERO, SourceInput::Message(message));
        while let Some(output) = machine.poll_output() {
            if let Output::Transmit(message) = output {
                answers.push(message);
            }
        }
    } else if let Some(mut machine) = Destination::recover(records) {
        machine.handle_input(Duration::ZERO, DestinationInput::Message(message));
        while let Some(output) = machine.poll_output() {
            if let Output::Transmit(message) = output {
                answers.push(message);
            }
        }
    }
    answers
}
