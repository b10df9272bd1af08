//! What follows from the peers' answers.

use super::*;

fn asked(answers: &[(&str, u64, Relation)], silent: &[&str]) -> Asked {
    let answer = |&(peer, epoch, relation): &(&str, u64, Relation)| {
        (peer.to_owned(), ClaimAnswer { epoch: Epoch(epoch), relation })
    };
    Asked {
        answers: answers.iter().map(answer).collect(),
        silent: silent.iter().map(|&peer| peer.to_owned()).collect(),
    }
}

fn ours(epoch: u64) -> Claim {
    Claim::Ours(Epoch(epoch))
}

fn in_doubt(epoch: u64) -> Claim {
    Claim::Unknown(Epoch(epoch), "x.journal".into())
}

fn judged(claim: &Claim, asked: &Asked) -> Result<Judged, OwnershipError> {
    judge("web", Some(claim), asked)
}

#[test]
fn a_peer_that_owns_it_at_a_higher_or_the_same_epoch_is_believed() {
    for theirs in [4, 3] {
        let error = judged(&ours(3), &asked(&[("b", theirs, Relation::Owner)], &[])).unwrap_err();
        assert!(matches!(error, OwnershipError::OwnedElsewhere { .. }), "{error}");
        assert!(error.to_string().contains("longhaul resolve web --give-up"), "{error}");
    }
    assert_eq!(judged(&ours(3), &asked(&[("b", 2, Relation::Owner)], &[])).unwrap(), Judged::default());
}

#[test]
fn a_peer_that_knows_a_higher_epoch_is_believed_whoever_owns_it() {
    for relation in [Relation::Elsewhere, Relation::Undecided] {
        let error = judged(&ours(3), &asked(&[("b", 4, relation)], &[])).unwrap_err();
        assert!(matches!(error, OwnershipError::Newer { .. }), "{error}");
        // It came back from there.
        assert_eq!(judged(&ours(3), &asked(&[("b", 3, relation)], &[])).unwrap(), Judged::default());
    }
}

#[test]
fn silent_peers_and_strangers_keep_no_vm_from_starting() {
    let asked = asked(&[("b", 0, Relation::Stranger)], &["c", "d"]);
    for claim in [ours(1), ours(7)] {
        assert_eq!(judged(&claim, &asked).unwrap(), Judged::default());
    }
}

#[test]
fn two_vms_of_one_name_that_never_moved_are_two_vms() {
    let found = judged(&ours(1), &asked(&[("b", 1, Relation::Owner)], &[])).unwrap();
    assert_eq!(found, Judged { namesakes: vec!["b".to_owned()], ..Judged::default() });
}

#[test]
fn a_removed_vm_is_outdone_so_that_its_successor_can_move() {
    let asked = asked(&[("b", 2, Relation::Removed), ("c", 5, Relation::Removed)], &[]);
    assert_eq!(judged(&ours(1), &asked).unwrap().raise_to, Some(Epoch(6)));
    assert_eq!(judged(&ours(3), &asked).unwrap().removed_by, ["c"]);
    assert_eq!(judged(&ours(6), &asked).unwrap().raise_to, None);
}

#[test]
fn a_doubt_ends_only_when_all_answer() {
    let error = judged(&in_doubt(4), &asked(&[("b", 0, Relation::Stranger)], &["c"])).unwrap_err();
    assert!(
        error.to_string().contains("x.journal") && error.to_string().contains("longhaul resolve web --keep")
    );
    assert!(judged(&in_doubt(4), &asked(&[("b", 5, Relation::Owner)], &[])).is_err());
    let all = asked(&[("b", 0, Relation::Stranger), ("c", 3, Relation::Elsewhere)], &[]);
    assert_eq!(judged(&in_doubt(4), &all).unwrap().raise_to, Some(Epoch(6)));
}

#[test]
fn a_vm_is_taken_above_everything_known_and_never_from_a_peer_that_answers() {
    let theirs = Claim::Theirs(Epoch(2), "b".into());
    assert_eq!(judge_keep("web", &theirs, &asked(&[], &["b"])).unwrap(), Epoch(4));
    assert_eq!(
        judge_keep("web", &theirs, &asked(&[("c", 5, Relation::Elsewhere)], &["b"])).unwrap(),
        Epoch(7)
    );
    assert_eq!(judge_keep("web", &in_doubt(3), &asked(&[], &[])).unwrap(), Epoch(5));
    for relation in [Relation::Owner, Relation::Undecided] {
        assert!(judge_keep("web", &theirs, &asked(&[("b", 2, relation)], &[])).is_err());
    }
    let error = judge_keep("web", &ours(2), &asked(&[("b", 2, Relation::Elsewhere)], &[])).unwrap_err();
    assert!(matches!(error, OwnershipError::NothingToKeep { .. }), "{error}");
    assert_eq!(judge_keep("web", &ours(1), &asked(&[("b", 3, Relation::Elsewhere)], &[])).unwrap(), Epoch(5));
}
