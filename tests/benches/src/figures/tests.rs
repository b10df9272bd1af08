use super::*;

const RATE: Metric = Metric { name: "restore", unit: "GB/s", better: Better::More };
const ROOM: Metric = Metric { name: "stored_bytes", unit: "bytes", better: Better::Less };

fn samples(values: &[f64]) -> Samples {
    let mut samples = Samples::default();
    values.iter().for_each(|value| samples.push(*value));
    samples
}

#[test]
fn the_median_does_not_depend_on_the_order_of_the_runs() {
    assert_eq!(samples(&[3.0, 1.0, 2.0]).median(), Some(2.0));
    assert_eq!(samples(&[4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
    assert_eq!(samples(&[]).median(), None);
    let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
    assert_eq!(samples(&hundred).quantile(0.95), Some(95.0));
    assert_eq!(samples(&[4.0, 1.0]).quantile(0.95), Some(4.0));
    assert_eq!(samples(&[4.0, 1.0]).quantile(0.0), Some(1.0));
    assert_eq!(samples(&[]).quantile(0.5), None);
    assert_eq!(samples(&[0.5, 0.25, 2.0]).show(), "0.500 (0.250-2.00)");
    assert_eq!(samples(&[7.0, 7.0]).show(), "7.00");
    assert_eq!(samples(&[]).show(), "-");
}

#[test]
fn a_ratio_is_over_one_when_ours_is_better() {
    assert_eq!(RATE.ratio(3.0, 1.0), 3.0);
    assert_eq!(ROOM.ratio(100.0, 150.0), 1.5);
}

#[test]
fn a_figure_has_the_fields_and_the_order_of_the_architecture() {
    let ours = samples(&[2.0, 1.0, 3.0]);
    let theirs = samples(&[0.5]);
    let figure = Figure::new("store", "large", RATE, &ours, Some(("restic 0.14.0", &theirs))).unwrap();
    assert_eq!(
        json_lines(&[figure]).unwrap(),
        "{\"bench\":\"store\",\"case\":\"large\",\"metric\":\"restore\",\"value\":2.0,\"unit\":\"GB/s\",\
         \"peer\":\"restic 0.14.0\",\"peer_value\":0.5,\"ratio\":4.0,\"runs\":3,\"min\":1.0,\"max\":3.0}\n"
    );
}

#[test]
fn without_a_peer_its_fields_are_null_and_without_a_run_there_is_no_figure() {
    let alone = Figure::new("store", "large", ROOM, &samples(&[5.0]), None).unwrap();
    let text = json_lines(&[alone]).unwrap();
    assert!(text.contains("\"peer\":null,\"peer_value\":null,\"ratio\":null,\"runs\":1"), "{text}");
    let skipped = Samples::default();
    let failed = Figure::new("store", "large", ROOM, &samples(&[5.0]), Some(("borg", &skipped))).unwrap();
    assert!(json_lines(&[failed]).unwrap().contains("\"peer\":null"));
    assert_eq!(Figure::new("store", "large", ROOM, &skipped, None), None);
}

#[test]
fn columns_line_up() {
    let rows = [vec!["program".into(), "new".into()], vec!["us".into(), "0.25".into()]];
    assert_eq!(table(&rows), "program   new\nus       0.25\n");
    assert_eq!([short(0.1234), short(12.34), short(1234.5)], ["0.123", "12.3", "1234"]);
}
