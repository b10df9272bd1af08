use std::sync::mpsc;

use super::*;

/// Says what it is given, and does what it is told.
#[derive(Debug)]
struct Disk {
    given: mpsc::Sender<Vec<(String, u64)>>,
    answers: mpsc::Receiver<io::Result<()>>,
}

impl Keeper for Disk {
    fn keep(&mut self, changes: &[Change]) -> io::Result<()> {
        let given = changes.iter().map(|change| (change.node.clone(), change.floor)).collect();
        let _ = self.given.send(given);
        self.answers.recv().unwrap_or(Ok(()))
    }
}

fn change(node: &str, floor: u64) -> Change {
    let prefix = Ipv6Prefix::new("2001:db8:f::".parse().unwrap(), 64).unwrap();
    Change { node: node.to_owned(), prefix, floor, binding: None }
}

fn packet(number: u8) -> Outgoing {
    Outgoing::Whole(vec![number])
}

fn pairs(changes: &[(&str, u64)]) -> Vec<(String, u64)> {
    changes.iter().map(|(node, floor)| ((*node).to_owned(), *floor)).collect()
}

#[tokio::test]
async fn packets_wait_for_the_disk_and_changes_are_written_together() {
    let ((given, heard), (answer, answers)) = (mpsc::channel(), mpsc::channel());
    let mut keeping = Keeping::start(Box::new(Disk { given, answers })).unwrap();
    assert_eq!(keeping.send(packet(0)), Some(packet(0)));
    keeping.keep(change("a", 1));
    assert_eq!(heard.recv().unwrap(), pairs(&[("a", 1)]));
    assert_eq!(keeping.send(packet(1)), None);
    // While that is written.
    keeping.keep(change("b", 1));
    keeping.keep(change("c", 1));
    keeping.keep(change("b", 2));
    assert_eq!(keeping.send(packet(2)), None);
    assert_eq!(keeping.released().count(), 0);
    answer.send(Ok(())).unwrap();
    assert_eq!(heard.recv().unwrap(), pairs(&[("b", 2), ("c", 1)]));
    keeping.done.changed().await.unwrap();
    assert_eq!(keeping.released().collect::<Vec<_>>(), [packet(1)]);
    // A disk that refuses is asked again, with what is true by then.
    answer.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
    keeping.keep(change("c", 3));
    assert_eq!(heard.recv().unwrap(), pairs(&[("b", 2), ("c", 3)]));
    assert_eq!(keeping.released().count(), 0);
    answer.send(Ok(())).unwrap();
    keeping.done.changed().await.unwrap();
    assert_eq!(keeping.released().collect::<Vec<_>>(), [packet(2)]);
    assert_eq!(keeping.send(packet(3)), Some(packet(3)));
    drop(keeping);
    // The thread ends, and the disk with it.
    assert!(heard.recv().is_err());
}
