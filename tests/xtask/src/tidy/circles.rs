//! No circles among the modules of a crate: what two modules need of each other belongs in a third. Pure: takes the texts.
//!
//! A scan over formatted text, not a compiler. A module uses another when it imports an item of it or names one in its
//! code. An item counts where it is defined, not where it is re-exported, so declaring a child or re-exporting its items
//! is no use of it; what comes by a glob counts as the module's that the glob names. Code for tests and fuzz targets does
//! not count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The folders of the crates that have no circles. `replicator/src` is the one exception.
pub(super) const CRATES: [&str; 5] =
    ["chunkstore/src", "migrate-driver/src", "mobility/src", "mobility/proto/src", "replicator/proto/src"];

/// Names from the root of the crate, which is empty; or as one module writes them.
type Path = Vec<String>;
type Modules = BTreeMap<Path, Source>;
type Uses = BTreeMap<Path, BTreeSet<Path>>;

/// The circles in the crate in `folder`, one a line; `files` are the paths below `folder` and their texts.
pub(super) fn check(folder: &str, files: &BTreeMap<String, String>) -> Vec<String> {
    let files = || files.iter().filter(|(file, _)| !file.contains("tests"));
    let names: BTreeMap<Path, &String> = files().map(|(file, _)| (module_of(file), file)).collect();
    let modules = files().map(|(file, text)| (module_of(file), Source::parse(text))).collect();
    let uses: Uses = names.keys().map(|module| (module.clone(), used_by(module, &modules))).collect();
    let mut seen = BTreeSet::new();
    let circles = uses.keys().filter_map(|module| circle(module, &uses));
    let fresh = circles.filter(|circle| circle.iter().all(|module| seen.insert(*module)));
    fresh
        .map(|circle| {
            let chain: String = circle.iter().map(|module| format!("{} -> ", names[*module])).collect();
            let first = names[circle[0]];
            format!("{folder}/{chain}{first}: modules in a circle; move what they share to one that uses none of them")
        })
        .collect()
}

/// The modules on the shortest way from `start` back to itself, `start` first.
fn circle<'a>(start: &'a Path, uses: &'a Uses) -> Option<Vec<&'a Path>> {
    let mut seen = BTreeSet::new();
    let mut queue = VecDeque::from([vec![start]]);
    while let Some(way) = queue.pop_front() {
        let used = &uses[way[way.len() - 1]];
        if used.contains(start) {
            return Some(way);
        }
        let fresh = used.iter().filter(|used| seen.insert(*used));
        queue.extend(fresh.map(|used| [&way[..], &[used]].concat()));
    }
    None
}

/// `a/mod.rs` and `a.rs` are module `a`, `lib.rs` is the root.
fn module_of(file: &str) -> Path {
    let stem = file.trim_end_matches(".rs").trim_end_matches("/mod");
    stem.split('/').filter(|name| *name != "lib").map(str::to_owned).collect()
}

fn used_by(module: &Path, modules: &Modules) -> BTreeSet<Path> {
    let source = &modules[module];
    let is_named = |name: &String| source.named.contains(std::slice::from_ref(name));
    let imports = source.imports.iter().filter(|(name, (_, is_public))| !is_public || is_named(name));
    let paths = imports.map(|(_, (path, _))| path).chain(source.named.iter().filter(|path| path.len() > 1));
    let used = paths.filter_map(|path| defining(absolute(module, path, modules)?, modules));
    used.filter(|used| used != module).collect()
}

/// `path` as module `at` writes it, from the root of the crate; `None` when it leads to another crate.
fn absolute(at: &[String], path: &[String], modules: &Modules) -> Option<Path> {
    let (head, rest) = path.split_first()?;
    let is_import = modules[at].imports.get(head).is_some_and(|(path, _)| path[0] != *head);
    let below = [at, path].concat();
    match head.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => Some([at, rest].concat()),
        "super" => Some([&at[..at.len().saturating_sub(1)], rest].concat()),
        _ => (is_import || modules.contains_key(&below[..=at.len()])).then_some(below),
    }
}

/// The module that defines the item at `path`; `None` for a module itself, and for an item of another crate.
fn defining(mut path: Path, modules: &Modules) -> Option<Path> {
    const MAX_STEPS: usize = 16;
    for _ in 0..MAX_STEPS {
        if let Some(at) = path.iter().position(|name| name == "super") {
            path.drain(at.saturating_sub(1)..=at);
            continue;
        }
        let item = (0..path.len()).find(|item| !modules.contains_key(&path[..=*item]))?;
        let (at, rest) = path.split_at(item);
        let Some((import, _)) = modules[at].imports.get(&rest[0]) else { return Some(at.to_vec()) };
        path = [absolute(at, import, modules)?, rest[1..].to_vec()].concat();
    }
    None
}

/// What one file imports and names.
#[derive(Default)]
struct Source {
    /// By the name here: the path, and whether it is re-exported.
    imports: BTreeMap<String, (Path, bool)>,
    named: BTreeSet<Path>,
}

impl Source {
    fn parse(text: &str) -> Self {
        let (mut source, words) = (Self::default(), words(text));
        let mut words = words.iter().map(String::as_str);
        let mut last = "";
        while let Some(word) = words.next() {
            match word {
                "mod" => drop(words.next()),
                // Behind another word it stands in a text.
                "use" if ["", "use", ";", "{", "}", "]", ")", "pub"].contains(&last) => source
                    .import(words.by_ref().take_while(|word| *word != ";"), ["pub", ")"].contains(&last)),
                _ => drop(source.named.insert(split(word).collect())),
            }
            last = word;
        }
        source
    }

    /// Takes a whole tree of imports.
    fn import<'a>(&mut self, tree: impl Iterator<Item = &'a str>, is_public: bool) {
        let (mut above, mut path, mut name) = (vec![Path::new()], Path::new(), None);
        let mut last = "";
        for word in tree.chain([","]) {
            match word {
                "{" => above.push(path.clone()),
                "," | "}" => {
                    if path.len() > above.last().map_or(0, Vec::len) {
                        path.truncate(path.len() - usize::from(path.ends_with(&["self".to_owned()])));
                        let last = path.last().filter(|last| *last != "*").cloned();
                        let name = name.take().filter(|name| name != "_").or(last);
                        // One without a name must not take the place of another.
                        let name = name.unwrap_or_else(|| path.join("::"));
                        self.imports.insert(name, (path, is_public));
                    }
                    above.truncate(above.len().saturating_sub((word == "}").into()));
                    path = above.last().cloned().unwrap_or_default();
                }
                _ if last == "as" => name = Some(word.to_owned()),
                "as" => {}
                _ => path.extend(split(word)),
            }
            last = word;
        }
    }
}

fn split(word: &str) -> impl Iterator<Item = String> {
    word.split(':').filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The paths and marks of the code, without comments and without the items under `#[cfg(..)]` for tests or fuzz targets.
fn words(text: &str) -> Vec<String> {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let is_test =
            line[indent..].starts_with("#[cfg(") && (line.contains("test") || line.contains("fuzzing"));
        if is_test && !line.contains("not(") {
            let is_last = |line: &str| !line.starts_with(' ') && line.ends_with([';', ',', '}']);
            lines.find(|line| line.get(indent..).is_some_and(is_last));
            continue;
        }
        for c in line.split("//").next().unwrap_or_default().chars().chain(['\n']) {
            let is_part = c.is_alphanumeric() || c == '_' || c == ':';
            if is_part { code.push(c) } else { code.extend([' ', c, ' ']) }
        }
    }
    code.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
