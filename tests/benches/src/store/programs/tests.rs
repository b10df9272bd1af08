use harness::shell;

use super::*;

fn line(command: Result<Command>) -> String {
    shell::line(&command.unwrap())
}

#[test]
fn commands_name_store_image_and_settings() {
    let (store, image, dir) = (Path::new("/w/store"), Path::new("/lab/a.raw"), Path::new("/w/out"));
    let borg = Program::Borg { chunker: BorgChunker::Fixed, compression: "zstd,3" };
    assert_eq!(
        line(borg.ingest(store, image, "new")),
        "borg create --files-cache disabled --sparse --chunker-params fixed,4194304 --compression zstd,3 \
         /w/store::new a.raw"
    );
    assert_eq!(borg.ingest(store, image, "new").unwrap().get_current_dir(), Some(Path::new("/lab")));
    assert!(line(Program::Restic.ingest(store, image, "new")).contains("--repo /w/store backup --force"));
    assert!(line(Program::Restic.restore(store, image, "new", dir)).ends_with("--tag new --target /w/out"));
    let casync = line(Program::Casync.restore(store, image, "new", dir));
    assert!(casync.ends_with("--store=/w/store/chunks.castr /w/store/new.caibx /w/out/a.raw"), "{casync}");
    assert!(
        line(Program::Ours { level: -5 }.ingest(store, image, "new"))
            .ends_with("worker ingest /w/store /lab/a.raw new -5")
    );
}

#[test]
fn only_stores_that_want_it_are_initialised() {
    let store = Path::new("/w/store");
    let with: Vec<String> =
        ALL.into_iter().filter(|program| program.init(store).unwrap().is_some()).map(Program::name).collect();
    assert_eq!(with, ["restic auto", "borg lz4", "borg zstd,3", "borg rolling lz4"]);
}

#[test]
fn every_peer_has_a_package_with_a_purpose() {
    for program in ALL.into_iter().filter(|program| program.package().is_some()) {
        let name = program.package().unwrap();
        assert!(PACKAGES.iter().any(|package| package.name == name && !package.purpose.is_empty()), "{name}");
    }
}
