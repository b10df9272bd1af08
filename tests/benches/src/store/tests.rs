use super::*;

fn measured(program: Program, factor: f64) -> Measured {
    let mut compared: [Samples; COMPARED.len()] = Default::default();
    for (at, samples) in compared.iter_mut().enumerate() {
        samples.push(factor * (at + 1) as f64 * f64::from(1 << 20));
    }
    Measured { program, version: "1".to_owned(), compared }
}

fn images() -> Images {
    let path = |name: &str| PathBuf::from(name);
    Images {
        image: path("/lab/large-1234.raw"),
        changed: path("/lab/large-5678.raw"),
        data_bytes: 1 << 20,
        changed_bytes: 1 << 20,
    }
}

#[test]
fn every_metric_of_every_peer_is_a_figure() {
    let both = [measured(programs::OURS, 2.0), measured(Program::Restic, 1.0)];
    let own = Own {
        samples: [Samples::from(1.0), Samples::from(2.0), Samples::from(3.0), Samples::default()],
        large: vec![(64, Samples::from(4.0))],
    };
    let figures = figures(&images(), &both, &own);
    assert_eq!(figures.len(), COMPARED.len() + 4, "what was not run has no figure");
    let text = json_lines(&figures).unwrap();
    let line = |metric: &str| {
        let start = format!("{{\"bench\":\"store\",\"case\":\"large\",\"metric\":\"{metric}\"");
        text.lines().find(|line| line.starts_with(&start)).unwrap_or_default().to_owned()
    };
    assert!(line("ingest_new").contains("\"peer\":\"restic auto 1\""), "{text}");
    assert!(line("ingest_new").contains("\"ratio\":2.0"), "{text}");
    assert!(line("stored_bytes").contains("\"ratio\":0.5"), "{text}");
    assert!(line("chunk_hash").contains("\"peer\":null"), "{text}");
    assert!(text.contains("\"case\":\"64 GiB in short chunks\",\"metric\":\"rss_ingest\""), "{text}");
}

#[test]
fn without_peers_ours_is_still_a_figure() {
    let figures = figures(&images(), &[measured(programs::OURS, 2.0)], &Default::default());
    assert_eq!(figures.len(), COMPARED.len());
}

#[test]
fn the_table_names_machine_versions_and_ratios() {
    let both = [measured(Program::Casync.rival(), 2.0), measured(Program::Casync, 1.0)];
    let text = report(&images(), &both, &Default::default()).unwrap();
    for part in [" cores (", "casync zstd 1", "ours to ", "2.00 x", "0.500 x", "rss_index"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
