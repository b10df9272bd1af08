use super::*;

#[test]
fn fields_come_out_of_proc() {
    let text = "processor\t: 0\nmodel name\t: AMD EPYC\nMemTotal:       24683520 kB\n";
    assert_eq!(field(text, "model name").as_deref(), Some("AMD EPYC"));
    assert_eq!(field(text, "flags"), None);
    assert_eq!(field(text, "MemTotal").and_then(|kib| gib(&kib)), Some(24_683_520.0 / 1_048_576.0));
    assert_eq!(gib("12 MB"), None);
}

#[test]
fn this_machine_has_a_description() {
    let text = describe().unwrap();
    assert!(text.contains(" cores (") && text.contains("Linux "), "{text}");
}
