use super::super::entries::{entry, other, value};
use super::*;

#[test]
fn every_database_holds_what_it_is_given() {
    let entries = 1000;
    for database in ALL {
        let dir = tempfile::tempdir().unwrap();
        let candidate = database.candidate();
        candidate.fill(dir.path(), &mut (0..entries).map(|number| entry(number, entries))).unwrap();
        let mut batches = (0..3_u64).map(|batch| {
            let mut added: Vec<_> =
                (0..100).map(|at| (other(100 * batch + at), value(100 * batch + at))).collect();
            added.sort_unstable();
            added
        });
        candidate.insert(dir.path(), &mut batches).unwrap();
        let mut asked = 0;
        let mut ask = |get: &mut Get<'_>| {
            for number in 0..entries {
                assert_eq!(get(&entry(number, entries).0)?, Some(value(number)), "{database:?}");
                assert_eq!(get(&other(number))?, (number < 300).then(|| value(number)), "{database:?}");
                asked += 1;
            }
            Ok(())
        };
        candidate.ask(dir.path(), &mut ask).unwrap();
        assert_eq!(asked, entries);
    }
}

#[test]
fn databases_have_names() {
    for database in ALL {
        assert_eq!(Database::parse(database.name()).unwrap(), database);
    }
    assert!(Database::parse("paper").unwrap_err().to_string().contains("paper"));
}
