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
    broken
}
