//! Values as a person reads them.

use serde_json::json;

use super::*;

#[test]
fn a_cell_is_short_and_never_json() {
    let cases = [
        (json!(null), "-"),
        (json!("web"), "web"),
        (json!(4096), "4096"),
        (json!(true), "true"),
        (json!(["a", "b"]), "a, b"),
        (json!([{ "name": "root", "size": 1 }]), "name root, size 1"),
    ];
    for (value, shown) in cases {
        assert_eq!(cell(&value), shown);
    }
}

#[test]
fn sizes_are_in_binary_megabytes() {
    assert!((mib(3 << 19) - 1.5).abs() < 1e-9);
}
