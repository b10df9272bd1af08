use super::*;

#[test]
fn words_become_options() {
    let plain = Options::parse(&["store"]).unwrap();
    let entries = 10_000_000;
    let points = vec![0, 25, 50, 100, 200, 300];
    let (json, plane, part) = (None, None, None);
    assert_eq!(
        plain,
        Options { bench: Bench::Store, json, quick: false, runs: 3, entries, points, plane, part }
    );
    let all = Options::parse(&["chunking", "--quick", "--json", "f", "--runs", "5"]).unwrap();
    let entries = 500_000;
    let points = vec![0, 100];
    assert_eq!(
        all,
        Options {
            bench: Bench::Chunking,
            json: Some("f".into()),
            quick: true,
            runs: 5,
            entries,
            points,
            plane,
            part
        }
    );
    assert_eq!(Options::parse(&["store", "--quick"]).unwrap().runs, 1);
    let index = Options::parse(&["index", "--quick", "--entries", "64000000"]).unwrap();
    assert_eq!((index.bench, index.runs, index.entries), (Bench::Index, 1, 64_000_000));
    assert_eq!(Options::parse(&["mobility"]).unwrap().runs, 20);
    assert_eq!(Options::parse(&["mobility", "--points", "0,40"]).unwrap().points, [0, 40]);
    assert_eq!(Options::parse(&["mobility", "--plane", "tun"]).unwrap().plane, Some(DataPlane::Tun));
    assert_eq!(Options::parse(&["mobility", "--part", "guest"]).unwrap().part, Some(Part::Guest));
}

#[test]
fn what_is_wrong_is_named() {
    for (words, named) in [
        (&[][..], "name a benchmark"),
        (&["disk"], "`disk`"),
        (&["store", "--fast"], "`--fast`"),
        (&["store", "--json"], "--json needs"),
        (&["store", "--runs", "0"], "\"0\""),
        (&["store", "--entries", "1000000"], "`--entries`"),
        (&["index", "--entries", "99999"], "\"99999\""),
        (&["index", "--entries", "many"], "\"many\""),
        (&["index", "--entries"], "--entries needs"),
        (&["index", "--points", "0"], "`--points`"),
        (&["mobility", "--points", "0,2001"], "\"0,2001\""),
        (&["mobility", "--plane", "ip6"], "\"ip6\""),
        (&["store", "--plane", "tun"], "`--plane`"),
        (&["mobility", "--part", "all"], "\"all\""),
    ] {
        let error = Options::parse(words).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
