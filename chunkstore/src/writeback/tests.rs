use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

#[test]
fn the_disk_is_told_now_and_then() {
    let syncs = AtomicU32::new(0);
    let sync = || {
        syncs.fetch_add(1, Ordering::SeqCst);
        Ok::<_, String>(())
    };
    let wrote = |bytes: u64| {
        beside(sync, |tell| {
            (0..10).for_each(|_| tell(bytes));
            Ok::<_, String>(())
        })
    };
    wrote(1).unwrap();
    assert_eq!(syncs.load(Ordering::SeqCst), 0);
    wrote(EVERY_BYTES).unwrap();
    assert!((1..=10).contains(&syncs.load(Ordering::SeqCst)));
}

#[test]
fn what_either_side_loses_is_told() {
    let lost = || Err("lost".to_owned());
    let write = |tell: &dyn Fn(u64)| {
        tell(EVERY_BYTES);
        Ok::<_, String>(1)
    };
    assert_eq!(beside(lost, write), Err("lost".to_owned()));
    assert_eq!(beside(|| Ok::<_, String>(()), write), Ok(1));
    assert_eq!(beside(lost, |_| Err::<(), _>("stopped".to_owned())), Err("stopped".to_owned()));
}
