use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::{Place, Places, SeedImage, Seeds, prefix};
use crate::testing::scratch;
use crate::{ChunkId, ImageRoot, Manifest, ManifestExtent};

fn manifest_of(chunks: &[&[u8]]) -> Manifest {
    of(chunks.iter().map(|c| data(c)))
}

fn data(chunk: &[u8]) -> ManifestExtent {
    ManifestExtent::Data { len: chunk.len() as u32, id: ChunkId::of(chunk) }
}

fn of(extents: impl IntoIterator<Item = ManifestExtent>) -> Manifest {
    Manifest::of(ImageRoot::from_bytes([0; 32]), extents).unwrap()
}

#[test]
fn adding_again_replaces_and_lies_are_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, b"onetwo").unwrap();
    let seeds = Seeds::new();
    seeds.add_image(&path, &manifest_of(&[b"one", b"two"])).unwrap();
    assert_eq!(seeds.get(&ChunkId::of(b"two")).unwrap(), &b"two"[..]);
    seeds.add_image(&path, &manifest_of(&[b"three", b"behind the end"])).unwrap();
    for chunk in [&b"one"[..], b"two", b"three", b"behind the end"] {
        assert_eq!(seeds.get(&ChunkId::of(chunk)), None);
    }
    assert!(seeds.add_image(dir.path().join("none"), &manifest_of(&[])).is_err());
}

#[test]
fn chunks_that_lie_too_far_out_are_left_out() {
    let dir = scratch();
    let path = dir.path().join("a");
    fs::write(&path, b"one").unwrap();
    let manifest = of([data(b"one"), ManifestExtent::Hole { len: 1 << 46 }, data(b"two")]);
    let seeds = Seeds::new();
    seeds.add_image(&path, &manifest).unwrap();
    assert_eq!(seeds.get(&ChunkId::of(b"one")).unwrap(), &b"one"[..]);
    assert!(!seeds.contains(&ChunkId::of(b"two")));
}

#[test]
fn a_name_that_begins_like_another_costs_a_miss() {
    let dir = scratch();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    fs::write(&first, b"one").unwrap();
    fs::write(&second, b"two").unwrap();
    let (one, two) = (ChunkId::of(b"one"), ChunkId::of(b"two"));
    let seeds = Seeds::new();
    // As if both names began with the 8 bytes of the second.
    let places = Places::new([(prefix(&two), Place::new(0, 3).unwrap())].into_iter());
    seeds.add(SeedImage { path: first.clone(), places });
    assert!(seeds.contains(&two) && !seeds.contains(&one));
    assert_eq!(seeds.get(&two), None);
    assert!(!seeds.contains(&two), "it is not looked for in the same place again");

    let places = Places::new([(prefix(&two), Place::new(0, 3).unwrap())].into_iter());
    seeds.add(SeedImage { path: first.clone(), places });
    seeds.add_image(&second, &manifest_of(&[b"two"])).unwrap();
    assert_eq!(seeds.get(&two).unwrap(), &b"two"[..], "another image has it");
}

/// Chunks are numbers; each has its own bytes and length.
fn chunk(number: u8) -> Vec<u8> {
    vec![number; 1 + usize::from(number)]
}

#[derive(Debug, Clone)]
enum Step {
    /// An image of these chunks, 0 for a hole, at one of a few paths.
    Add(u8, Vec<u8>),
    /// One byte of a file becomes another.
    Change(u8, prop::sample::Index),
    Forget(u8),
    Get(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..4_u8, prop::collection::vec(0..12_u8, 0..20)).prop_map(|(path, chunks)| Step::Add(path, chunks)),
        (0..4_u8, any::<prop::sample::Index>()).prop_map(|(path, at)| Step::Change(path, at)),
        (0..4_u8).prop_map(Step::Forget),
        (1..12_u8).prop_map(Step::Get),
        (1..12_u8).prop_map(Step::Get),
    ];
    prop::collection::vec(step, 1..60)
}

/// What an image was said to hold: for every chunk its first place.
struct Model {
    path: PathBuf,
    places: HashMap<u8, usize>,
}

fn add(seeds: &Seeds, model: &mut Vec<Model>, path: PathBuf, chunks: &[u8]) {
    let (mut bytes, mut extents, mut places) = (Vec::new(), Vec::new(), HashMap::new());
    for number in chunks {
        let content = chunk(*number);
        if *number == 0 {
            extents.push(ManifestExtent::Hole { len: 1 });
        } else {
            extents.push(data(&content));
            places.entry(*number).or_insert(bytes.len());
        }
        bytes.extend(content);
    }
    let _ = fs::remove_file(&path);
    fs::write(&path, &bytes).unwrap();
    seeds.add_image(&path, &of(extents)).unwrap();
    model.retain(|image| image.path != path);
    model.push(Model { path, places });
}

/// The chunk as the first image has it whose copy is intact; copies that are not are forgotten.
fn get(model: &mut [Model], number: u8) -> Option<Vec<u8>> {
    let wanted = chunk(number);
    model.iter_mut().find_map(|image| {
        let at = *image.places.get(&number)?;
        let bytes = fs::read(&image.path).unwrap();
        if bytes[at..].starts_with(&wanted) {
            return Some(wanted.clone());
        }
        image.places.remove(&number);
        None
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn seeds_are_maps_of_first_places(steps in steps()) {
        let dir = scratch();
        let path = |number: u8| dir.path().join(number.to_string());
        let (seeds, mut model) = (Seeds::new(), Vec::new());
        for step in steps {
            match step {
                Step::Add(at, chunks) => add(&seeds, &mut model, path(at), &chunks),
                Step::Change(at, byte) => {
                    let mut bytes = fs::read(path(at)).unwrap_or_default();
                    if !bytes.is_empty() {
                        let at = byte.index(bytes.len());
                        bytes[at] ^= 0xff;
                    }
                    fs::write(path(at), bytes).unwrap();
                }
                Step::Forget(at) => {
                    seeds.forget(path(at));
                    model.retain(|image| image.path != path(at));
                }
                Step::Get(number) => {
                    let found = seeds.get(&ChunkId::of(&chunk(number)));
                    let expected = get(&mut model, number);
                    prop_assert_eq!(found.as_deref(), expected.as_deref());
                }
            }
            for number in 1..12 {
                let known = model.iter().any(|image| image.places.contains_key(&number));
                prop_assert_eq!(seeds.contains(&ChunkId::of(&chunk(number))), known);
            }
        }
    }
}
