use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;

const THREADS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

fn count_to(end: u64) -> impl FnMut() -> Result<Option<u64>, String> + Send {
    let mut next = 0..end;
    move || Ok(next.next())
}

/// So that later ones overtake.
fn uneven(number: u64) {
    std::thread::sleep(Duration::from_micros(number * 7919 % 300));
}

#[test]
fn results_come_in_order_and_not_too_far_ahead() {
    for (threads, ahead) in [(1, 0), (1, 5), (4, 0), (4, 9)] {
        let under_way = AtomicUsize::new(0);
        let (mut taken, mut most) = (Vec::new(), 0);
        in_order(
            NonZeroUsize::new(threads).unwrap(),
            ahead,
            count_to(300),
            |number| {
                under_way.fetch_add(1, Ordering::SeqCst);
                uneven(number);
                Ok(number)
            },
            |number| {
                most = most.max(under_way.load(Ordering::SeqCst));
                under_way.fetch_sub(1, Ordering::SeqCst);
                taken.push(number);
                Ok::<_, String>(())
            },
        )
        .unwrap();
        assert!(taken.into_iter().eq(0..300));
        assert!(most <= ahead.max(threads), "{most} at once");
    }
}

#[test]
fn the_first_error_of_the_workers_is_the_callers() {
    let worked = AtomicUsize::new(0);
    let mut taken = 0;
    let error = in_order(
        THREADS,
        8,
        count_to(100_000),
        |number| {
            worked.fetch_add(1, Ordering::SeqCst);
            uneven(number);
            if number >= 50 { Err(format!("no {number}")) } else { Ok(number) }
        },
        |_| {
            taken += 1;
            Ok(())
        },
    )
    .unwrap_err();
    assert_eq!((error.as_str(), taken), ("no 50", 50));
    assert!(worked.into_inner() <= 50 + 8);
}

#[test]
fn an_error_of_the_source_comes_after_what_was_good() {
    let mut next = 0;
    let source = || {
        next += 1;
        if next > 20 { Err("source".to_owned()) } else { Ok(Some(next)) }
    };
    let mut taken = 0;
    let error = in_order(THREADS, 8, source, Ok, |_| {
        taken += 1;
        Ok(())
    })
    .unwrap_err();
    assert_eq!((error.as_str(), taken, next), ("source", 20, 21));
}

#[test]
fn an_error_of_the_sink_stops_the_source() {
    let drawn = AtomicUsize::new(0);
    let source = || {
        drawn.fetch_add(1, Ordering::SeqCst);
        Ok(Some(()))
    };
    let mut taken = 0;
    let error = in_order(THREADS, 8, source, Ok, |()| {
        taken += 1;
        if taken == 30 { Err("sink") } else { Ok(()) }
    })
    .unwrap_err();
    assert_eq!(error, "sink");
    assert!(drawn.into_inner() <= 30 + 8);
}

#[test]
fn a_panic_anywhere_reaches_the_caller() {
    for place in ["source", "work", "sink"] {
        let at = |here: &str, number: u64| assert!(here != place || number != 40, "{here} broke");
        let mut count = count_to(100_000);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            in_order(
                THREADS,
                8,
                || {
                    let number = count()?;
                    at("source", number.unwrap_or(0));
                    Ok(number)
                },
                |number| {
                    at("work", number);
                    Ok(number)
                },
                |number| {
                    at("sink", number);
                    Ok::<_, String>(())
                },
            )
        }));
        let message = outcome.unwrap_err();
        assert!(message.downcast_ref::<String>().unwrap().contains(place));
    }
}
