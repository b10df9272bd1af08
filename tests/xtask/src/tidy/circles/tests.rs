use super::*;

/// What the rule says of a crate of these files.
fn circles(files: &[(&str, &str)]) -> Vec<String> {
    let files = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned()));
    check("c/src", &files.collect())
}

/// Three modules in a row, `a` first, whose files hold these texts.
fn three(a: &str, b: &str, c: &str) -> Vec<String> {
    circles(&[("lib.rs", "mod a;\nmod b;\nmod c;\n"), ("a.rs", a), ("b.rs", b), ("c/mod.rs", c)])
}

#[test]
fn a_circle_is_reported_once_with_its_files() {
    let broken = three(
        "use crate::b::B;\n",
        "use std::fmt;\nuse super::c::{self, C};\n",
        "fn f() { crate::a::f() }\n",
    );
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert!(broken[0].starts_with("c/src/a.rs -> b.rs -> c/mod.rs -> a.rs: "), "{broken:?}");
    assert!(
        three("use crate::b::B;\nuse crate::c::C;\n", "use crate::c::C;\n", "use std::a::f;\n").is_empty()
    );
}

#[test]
fn imports_are_read_as_trees_and_items_where_they_are_defined() {
    let uses_a = "use crate::a::A as Z;\n";
    assert_eq!(three("use crate::{\n    b::{self, B},\n};\n", uses_a, "").len(), 1);
    assert_eq!(three("use super::b;\nfn f() { b::f() }\n", uses_a, "").len(), 1);
    assert_eq!(three("use crate::b::*;\nuse crate::c::*;\n", uses_a, "").len(), 1);
    assert_eq!(three("use crate::b::B as _;\nuse crate::c::C as _;\n", uses_a, "").len(), 1);
    // The module alone is no item of it.
    assert!(three("use super::b;\n", uses_a, "").is_empty());
    let root = "mod a;\nmod b;\npub use a::A;\npub use b::B;\n";
    let through_the_root = [("lib.rs", root), ("a.rs", "use crate::B;\n"), ("b.rs", "use crate::A;\n")];
    assert_eq!(circles(&through_the_root).len(), 1);
    // An item of the root itself.
    assert!(
        circles(&[("lib.rs", root), ("a.rs", "use crate::B;\n"), ("b.rs", "use crate::SIZE;\n")]).is_empty()
    );
}

#[test]
fn a_parent_may_declare_and_re_export_its_children_but_not_use_what_uses_it() {
    let child = "use super::Item;\n";
    let parent = |text: &str| circles(&[("lib.rs", "mod p;\n"), ("p.rs", text), ("p/child.rs", child)]);
    assert!(parent("mod child;\npub use child::Child;\npub struct Item;\n").is_empty());
    assert!(parent("mod child;\npub struct Item;\n").is_empty());
    for code in
        ["use child::Child;\n", "fn f() { child::g() }\n", "pub(crate) use child::Child;\nstruct A(Child);\n"]
    {
        assert_eq!(parent(&format!("mod child;\npub struct Item;\n{code}")).len(), 1, "{code}");
    }
}

#[test]
fn tests_fuzzing_and_comments_do_not_count() {
    let uses_a = "use crate::a::A;\n";
    for text in [
        "//! See [`b`](crate::b::B).\n",
        "#[cfg(test)]\nmod tests {\n    use crate::b::B;\n\n    fn f() {}\n}\n",
        "impl A {\n    #[cfg(any(test, fuzzing))]\n    fn f(\n        a: u8,\n    ) {\n        crate::b::f();\n    }\n}\n",
    ] {
        assert!(three(text, uses_a, "").is_empty(), "{text}");
        assert_eq!(three(&format!("{text}use crate::b::B;\n"), uses_a, "").len(), 1, "{text}");
    }
    let (b, tests) = ("#[cfg(test)]\nmod tests;\n", "use crate::a::A;\n");
    assert!(
        circles(&[
            ("lib.rs", "mod a;\nmod b;\n"),
            ("a.rs", "use crate::b::B;\n"),
            ("b.rs", b),
            ("b/tests.rs", tests)
        ])
        .is_empty()
    );
}
