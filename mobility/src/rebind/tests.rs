use super::*;

#[tokio::test]
async fn without_mobility_it_says_what_it_leaves_out() {
    let rebind = Rebind { vm: "web".into(), from: "a".into(), to: "b".into(), epoch: 2 };
    let rebound = Unconfigured.rebind(&rebind).await.unwrap();
    assert!(!rebound.moved);
    assert!(rebound.note.contains("address of web was not moved"), "{}", rebound.note);
}
