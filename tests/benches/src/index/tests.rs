use super::*;

#[test]
fn every_step_answers_with_its_figures() {
    for database in databases::ALL {
        let dir = tempfile::tempdir().unwrap();
        let run = |step: &str| {
            let words = ["index", step, database.name(), dir.path().to_str().unwrap(), "20000"];
            crate::Task::parse(&words).unwrap().run().unwrap()
        };
        assert!(run("fill")["per_s"].as_f64().unwrap() > 0.0);
        let asked = run("ask");
        for field in ["hits_per_s", "misses_per_s", "rss_anon", "rss"] {
            assert!(asked[field].as_f64().unwrap() > 0.0, "{field}: {asked}");
        }
        assert!(run("insert")["per_s"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_wrong_answer_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let task = |step: &str, entries: &str| {
        Task::parse(&[step, "redb", dir.path().to_str().unwrap(), entries]).unwrap()
    };
    task("fill", "1000").run().unwrap();
    // Of that many entries it was not filled with.
    assert!(task("ask", "1001").run().unwrap_err().to_string().contains("entry"));
}

#[test]
fn no_task_is_an_error() {
    for words in [&["fill", "redb", "/x"][..], &["sing", "redb", "/x", "1"], &["fill", "paper", "/x", "1"]] {
        assert!(Task::parse(words).is_err());
    }
    assert!(Task::parse(&["fill", "redb", "/x", "many"]).is_err());
}

#[test]
fn figures_compare_redb_with_lmdb() {
    let mut measured: [Measured; 2] = Default::default();
    measured[0].iter_mut().for_each(|samples| samples.push(2.0));
    measured[1].iter_mut().for_each(|samples| samples.push(1.0));
    let lines = json_lines(&figures(10_000_000, &measured)).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), METRICS.len());
    let hit = &lines[1];
    assert_eq!(
        (&hit["bench"], &hit["case"], &hit["metric"]),
        (&json!("index"), &json!("10M"), &json!("index_hit"))
    );
    assert_eq!((&hit["peer"], &hit["ratio"]), (&json!("LMDB"), &json!(2.0)));
    assert_eq!(lines[4]["ratio"], 0.5, "less is better");
    assert!(report(500_000, &measured).unwrap().contains("500k entries"));
}
