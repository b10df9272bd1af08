//! Rules for one source file. Pure: takes the text.

/// Past this a file has two subjects.
const MAX_LINES: usize = 800;
/// Endings of files without a module document of their own: their parent says what they are for.
const UNDOCUMENTED: [&str; 2] = ["tests.rs", "build.rs"];

/// What must not be left in a source file. Written in halves, or this file would break its own rule.
const LEFTOVERS: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("db", "g!("),
];

/// The crates whose tasks must have an owner.
const PRODUCT: [&str; 4] = ["chunkstore/src/", "migrate-driver/src/", "mobility/src/", "replicator/src/"];
/// How a task of its own begins, and what makes it somebody's: a handle that ends it, or a line above that says when it
/// ends. (A `JoinSet`, a `TaskTracker` and a lease spawn by methods of their own.)
const LOOSE_SPAWN: &str = concat!("tokio::", "spawn(");
const OWNED: [&str; 2] = ["AbortOnDropHandle::new(", "// Ends "];

/// The rules that the file `name` with this text breaks.
pub(super) fn check(name: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let file_name = name.rsplit('/').next().unwrap_or(name);
    if !UNDOCUMENTED.iter().any(|ending| file_name.ends_with(ending)) && !text.starts_with("//!") {
        broken.push(format!(
            "{name}: starts without `//!` that says what the module is for and what it never does"
        ));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        broken.push(format!("{name}: {lines} lines, more than {MAX_LINES}; split it by subject"));
    }
    for (number, line) in text.lines().enumerate() {
        for leftover in LEFTOVERS.iter().filter(|leftover| line.contains(*leftover)) {
            broken.push(format!("{name}:{}: `{leftover}` left behind", number + 1));
        }
    }
    broken.extend(loose_spawns(name, text));
    broken
}

fn loose_spawns(name: &str, text: &str) -> Vec<String> {
    let is_product = PRODUCT.iter().any(|crate_| name.starts_with(crate_));
    let is_test = name.contains("/tests") || name.contains("testing.rs") || name.contains("_tests");
    if !is_product || is_test {
        return Vec::new();
    }
    let lines: Vec<&str> = text.lines().collect();
    let is_owned = |at: usize| {
        let near = &lines[at.saturating_sub(1)..=at];
        OWNED.iter().any(|owned| near.iter().any(|line| line.contains(owned)))
    };
    let loose = (0..lines.len()).filter(|at| lines[*at].contains(LOOSE_SPAWN) && !is_owned(*at));
    let say = |at: usize| {
        format!(
            "{name}:{}: a task that nobody owns; spawn it in a JoinSet, a TaskTracker or a lease, hold it by an \
             AbortOnDropHandle, or say in a comment above when it ends (`// Ends when ...`)",
            at + 1
        )
    };
    loose.map(say).collect()
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_task_without_an_owner_is_found_and_one_with_an_owner_is_not() {
        let spawn = super::LOOSE_SPAWN;
        let text = |line: &str| format!("//! A module.\n\n{line}\n    {spawn}work());\n");
        assert_eq!(check("replicator/src/serve.rs", &text("let a = 1;")).len(), 1);
        assert!(check("replicator/src/serve.rs", &text("// Ends with its stream.")).is_empty());
        assert!(check("mobility/src/a.rs", &text("let a = AbortOnDropHandle::new(")).is_empty());
        assert!(check("tests/harness/src/a.rs", &text("let a = 1;")).is_empty());
        assert!(check("replicator/src/serve/tests.rs", &text("let a = 1;")).is_empty());
    }
}
