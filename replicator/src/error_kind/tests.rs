//! What each kind decides, and which kind what is nested in an error has.

use axum::response::IntoResponse;
use chunkstore::{IngestError, StoreError};
use longhaul_proto::wire::Refusal;
use serde_json::{Value, json};

use super::*;
use crate::images::bases::BaseError;
use crate::migration::outgoing::OutgoingError;
use crate::migration::source::MigrateError;
use crate::migration::{destination::OfferError, incoming::IncomingError, landing::LandingError};
use crate::replication::{replicas::ReplicasError, warm::WarmError};
use crate::service::net::NetError;
use crate::service::peers::PeersError;
use crate::service::vms::VmError;
use crate::transfer::{TransferError, memory::RelayError};

/// All of them, with the status, the exit code and the name in JSON.
const KINDS: [(Kind, u16, u8, &str); 8] = [
    (Kind::NotFound, 404, 1, "not_found"),
    (Kind::Busy, 423, 4, "busy"),
    (Kind::Invalid, 400, 1, "invalid"),
    (Kind::Denied, 403, 1, "denied"),
    (Kind::Peer, 502, 1, "peer"),
    (Kind::Space, 507, 1, "space"),
    (Kind::Io, 500, 1, "io"),
    (Kind::Bug, 500, 1, "bug"),
];

/// ENOSPC or EDQUOT.
fn full(errno: rustix::io::Errno) -> io::Error {
    errno.into()
}

fn enospc() -> io::Error {
    full(rustix::io::Errno::NOSPC)
}

#[test]
fn a_kind_decides_status_exit_code_and_name() {
    for (kind, status, exit, name) in KINDS {
        assert_eq!((kind.status().as_u16(), kind.exit_code()), (status, exit), "{kind:?}");
        assert_eq!(serde_json::to_value(kind).unwrap(), json!(name));
        assert_eq!(serde_json::from_value::<Kind>(json!(name)).unwrap(), kind);
    }
}

/// The operator's table is the one of the code.
#[test]
fn the_documentation_has_every_kind() {
    let text = include_str!("../../docs/operations.md");
    for (_, status, exit, name) in KINDS {
        let row = format!("| `{name}` | {status} | {exit} |");
        assert!(text.contains(&row), "operations.md lacks {row}");
    }
}

#[tokio::test]
async fn an_answer_has_the_kind_beside_the_text() {
    let answer = Failure::new(Kind::Space, "no room").into_response();
    assert_eq!(answer.status().as_u16(), 507);
    let body = axum::body::to_bytes(answer.into_body(), 4096).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body, json!({ "error": "no room", "kind": "space" }));
}

#[test]
fn a_full_file_system_is_space_however_deep_it_is_nested() {
    let transfer = |source| TransferError::Image { image: "x".into(), source };
    let landing = |source| LandingError::Io { doing: "create", path: "x".into(), source };
    let vm = |source| VmError::Io { path: "x".into(), source };
    let io = |source| WarmError::Io { what: "x".into(), source };
    let kinds = |error: fn(rustix::io::Errno) -> io::Error, errno| -> Vec<Kind> {
        let made = || error(errno);
        vec![
            BaseError::Ingest { path: "x".into(), source: IngestError::Read(made()) }.kind(),
            BaseError::Origin(made()).kind(),
            WarmError::Transfer { disk: "root".into(), source: transfer(made()) }.kind(),
            io(made()).kind(),
            WarmError::from(vm(made())).kind(),
            OutgoingError::from(RelayError::Hypervisor(made())).kind(),
            OfferError::from(IncomingError::from(landing(made()))).kind(),
            MigrateError::from(vm(made())).kind(),
            ReplicasError::Io { what: "x", path: "x".into(), source: made() }.kind(),
        ]
    };
    for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
        assert_eq!(kinds(full, errno), [Kind::Space; 9]);
    }
    assert_eq!(kinds(full, rustix::io::Errno::IO), [Kind::Io; 9]);
    assert_eq!(io(io::Error::new(io::ErrorKind::StorageFull, enospc())).kind(), Kind::Space);
}

#[test]
fn a_path_that_a_person_named_is_theirs_to_mend() {
    use rustix::io::Errno;
    for (errno, kind) in [
        (Errno::NOENT, Kind::NotFound),
        (Errno::ACCESS, Kind::Denied),
        (Errno::EXIST, Kind::Denied),
        (Errno::ISDIR, Kind::Invalid),
        (Errno::NOSPC, Kind::Space),
        (Errno::IO, Kind::Io),
    ] {
        assert_eq!(Kind::of_named_path(&errno.into()), kind, "{errno}");
    }
    assert_eq!(Kind::of_io(&Errno::NOENT.into()), Kind::Io, "a file of this platform that is gone");
}

#[test]
fn a_peers_refusal_keeps_its_kind_and_a_lost_peer_has_one() {
    let refused = |kind| WarmError::Transfer {
        disk: "root".into(),
        source: Refusal { kind, reason: "busy".into() }.into(),
    };
    for (told, kind) in [
        (RefusalKind::Busy, Kind::Busy),
        (RefusalKind::Unknown, Kind::NotFound),
        (RefusalKind::NoSpace, Kind::Space),
        (RefusalKind::Protocol, Kind::Peer),
        (RefusalKind::Diverged, Kind::Peer),
        (RefusalKind::Failed, Kind::Peer),
    ] {
        assert_eq!(refused(told).kind(), kind, "{told:?}");
    }
    assert_eq!(WarmError::from(NetError::Ended).kind(), Kind::Peer);
    let unknown = PeersError::Unknown { name: "b".into(), known: "none".into() };
    assert_eq!(WarmError::from(NetError::from(unknown)).kind(), Kind::NotFound, "nobody was asked");
    for (kind, ..) in KINDS {
        let told = Refusal { kind: kind.refusal(), reason: String::new() }.kind();
        let kept = matches!(kind, Kind::Busy | Kind::Space);
        assert_eq!(told, if kept { kind } else { Kind::Peer }, "as the peer hears it");
    }
}

#[test]
fn a_store_that_is_busy_or_lacks_a_name_says_so_at_any_depth() {
    assert_eq!(BaseError::from(StoreError::Collecting).kind(), Kind::Busy);
    let unknown = || StoreError::UnknownName { name: "debian".into() };
    assert_eq!(BaseError::from(unknown()).kind(), Kind::NotFound);
    let nested = StoreError::CannotCollect { name: "x".into(), source: Box::new(unknown()) };
    assert_eq!(nested.kind(), Kind::NotFound);
}
