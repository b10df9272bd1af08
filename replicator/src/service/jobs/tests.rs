//! Jobs from their beginning to the report that outlives the daemon.

use super::*;

fn jobs(dir: &Path) -> Arc<Jobs> {
    Arc::new(Jobs::load(dir).unwrap())
}

/// Without its times: serde_json's decimal fractions may come back a last bit away.
fn timeless(mut report: Report) -> Report {
    report.total_ms = 0.0;
    report.phases.iter_mut().for_each(|phase| phase.ms = 0.0);
    report
}

#[test]
fn ids_differ() {
    assert_ne!(new_id(), new_id());
}

#[test]
fn a_report_is_kept_beyond_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let job = jobs.begin(new_id(), JobKind::Replicate, "web", Some("b"));
    assert_eq!(jobs.report(job.id()).unwrap().state, JobState::Running);
    job.phase("scan");
    job.update(|report| report.image_bytes = 4096);
    Counters::add(&job.counters().wire, 100);
    job.add_memory(11);
    let report = job.finish(Ok("all sent".to_owned()));
    assert_eq!((report.state, report.summary.as_deref()), (JobState::Done, Some("all sent")));
    assert_eq!((report.wire_bytes_disk, report.wire_bytes_memory, report.image_bytes), (100, 11, 4096));
    assert_eq!(jobs.report(job.id()).unwrap(), report);
    let again = self::jobs(dir.path());
    assert_eq!(timeless(again.report(job.id()).unwrap()), timeless(report.clone()));
    assert_eq!(again.list().into_iter().map(timeless).collect::<Vec<_>>(), [timeless(report)]);
}

#[test]
fn a_phase_has_the_bytes_that_moved_while_it_lasted() {
    let dir = tempfile::tempdir().unwrap();
    let job = jobs(dir.path()).begin(new_id(), JobKind::MigrateOut, "web", Some("b"));
    job.phase("bulk");
    Counters::add(&job.counters().wire, 1000);
    job.phase("memory");
    Counters::add(&job.counters().wire, 20);
    job.add_memory(300);
    let report = job.finish(Ok(String::new()));
    let phases: Vec<_> = report.phases.iter().map(|phase| (phase.name.as_str(), phase.wire_bytes)).collect();
    assert_eq!(phases, [("bulk", 1000), ("memory", 320)]);
    assert!(report.phases.iter().map(|phase| phase.ms).sum::<f64>() <= report.total_ms + 1.0);
}

#[test]
fn what_was_saved_follows_from_the_counters() {
    let dir = tempfile::tempdir().unwrap();
    let job = jobs(dir.path()).begin(new_id(), JobKind::ImageSend, "web", None);
    let counters = job.counters();
    Counters::add(&counters.data, 900);
    Counters::add(&counters.dedup, 500);
    Counters::add(&counters.sent_plain, 400);
    Counters::add(&counters.sent_packed, 150);
    let report = job.finish(Ok(String::new()));
    let saved = (report.data_bytes, report.dedup_saved_bytes, report.compression_saved_bytes);
    assert_eq!(saved, (900, 500, 250));
}

#[test]
fn a_failure_is_kept_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let job = jobs.begin(new_id(), JobKind::BasePush, "debian", Some("b"));
    let report = job.finish(Err(Failure::new(Kind::Space, "no room")));
    assert_eq!(
        (report.state, report.error.as_deref(), report.summary),
        (JobState::Failed, Some("no room"), None)
    );
    assert_eq!((report.error_kind, report.busy), (Some(Kind::Space), false));
}

#[test]
fn a_report_says_busy_in_both_ways_and_nothing_of_errors_when_done() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let finished = |outcome: Result<String, Failure>| {
        let job = jobs.begin(new_id(), JobKind::StoreGc, "store", None);
        serde_json::to_value(job.finish(outcome)).unwrap()
    };
    let busy = finished(Err(Failure::new(Kind::Busy, "collecting")));
    assert_eq!((&busy["error_kind"], &busy["busy"]), (&"busy".into(), &true.into()));
    let done = finished(Ok(String::new()));
    assert_eq!((done.get("error_kind"), &done["busy"]), (None, &false.into()));
}

#[tokio::test]
async fn a_job_ends_with_the_kind_of_its_error_or_its_panic() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    for panics in [false, true] {
        let job = jobs.begin(new_id(), JobKind::BaseAdd, "debian", None);
        jobs.run(&job, (), move |_| async move {
            assert!(!panics, "a bug");
            Err(JobError::Unknown(JobId([0; 16])))
        });
        let mut watch = job.job.report.subscribe();
        let report = watch.wait_for(|report| report.state != JobState::Running).await.unwrap().clone();
        assert_eq!(report.error_kind, Some(if panics { Kind::Bug } else { Kind::NotFound }));
    }
}

#[test]
fn jobs_are_listed_oldest_first_running_ones_too() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let started = [300, 100, 200].map(|at| {
        let job = jobs.begin(new_id(), JobKind::BaseAdd, &at.to_string(), None);
        job.update(|report| report.started_unix_ms = at);
        job
    });
    started[1].finish(Ok(String::new()));
    let listed: Vec<_> = jobs.list().into_iter().map(|report| (report.subject, report.state)).collect();
    let expected = [("100", JobState::Done), ("200", JobState::Running), ("300", JobState::Running)];
    assert_eq!(listed, expected.map(|(subject, state)| (subject.to_owned(), state)));
}

#[tokio::test]
async fn a_running_job_is_cancelled_once_and_an_ended_or_unknown_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let job = jobs.begin(new_id(), JobKind::Replicate, "web", Some("b"));
    jobs.cancel(job.id()).unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(5), job.cancelled()).await.unwrap();
    job.finish(Err(Failure::new(Kind::Denied, "cancelled")));
    assert!(matches!(jobs.cancel(job.id()), Err(JobError::Ended(_))));
    let message = jobs.cancel(JobId([0; 16])).unwrap_err().to_string();
    assert!(message.contains("job list"), "{message}");
    assert!(matches!(jobs.report(JobId([0; 16])), Err(JobError::Unknown(_))));
}

#[test]
fn a_job_that_cannot_be_cancelled_says_why_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    for (kind, why) in [(JobKind::MigrateIn, "cancel it there"), (JobKind::BaseAdd, "store gc")] {
        let job = jobs.begin(new_id(), kind, "web", Some("a"));
        let error = jobs.cancel(job.id()).unwrap_err();
        assert!(matches!(error, JobError::NotCancellable { .. }));
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(jobs.report(job.id()).unwrap().state, JobState::Running);
    }
}

#[tokio::test]
async fn a_watcher_sees_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let job = jobs.begin(new_id(), JobKind::BaseAdd, "debian", None);
    let mut watch = jobs.watch(job.id()).unwrap();
    job.phase("ingest");
    job.finish(Ok("done".to_owned()));
    let last = watch.wait_for(|report| report.state != JobState::Running).await.unwrap().clone();
    assert_eq!(last.summary.as_deref(), Some("done"));
    assert!(jobs.watch(job.id()).is_none(), "nothing more comes");
}

#[test]
fn a_file_that_is_no_report_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("00000000000000000000000000000000.json");
    std::fs::write(&kept, "{}").unwrap();
    std::fs::write(dir.path().join("x.journal"), "").unwrap();
    assert!(jobs(dir.path()).list().is_empty());
    assert!(kept.exists());
}

#[test]
fn only_the_latest_reports_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = jobs(dir.path());
    let oldest = jobs.begin(new_id(), JobKind::BaseAdd, "oldest", None);
    let mut report = oldest.finish(Ok(String::new()));
    for number in 1..MAX_REPORTS {
        report.started_unix_ms += 1;
        jobs.reports().insert(JobId((number as u128).to_be_bytes()), report.clone());
    }
    let one_more = jobs.begin(new_id(), JobKind::BaseAdd, "one more", None);
    one_more.update(|now| now.started_unix_ms = report.started_unix_ms + 1);
    one_more.finish(Ok(String::new()));
    assert_eq!(jobs.list().len(), MAX_REPORTS);
    assert!(matches!(jobs.report(oldest.id()), Err(JobError::Unknown(_))));
    assert!(!dir.path().join(format!("{}.json", oldest.id())).exists());
    assert!(dir.path().join(format!("{}.json", one_more.id())).exists());
}
