use super::*;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";
/// What QEMU may still have had to say to somebody else.
const STALE: &[u8] = b"data\": {}}\r\n{\"event\": \"RESUME\"}\r\n{\"return\": {}, \"id\": 0}\r\n";
const SHORT: Duration = Duration::from_millis(200);

/// A monitor that runs `script` after the negotiation.
async fn serve<F, R>(script: F) -> (tempfile::TempDir, Result<Qmp, QmpError>)
where
    F: FnOnce(BufReader<UnixStream>) -> R + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(STALE).await.unwrap();
        stream.write_all(GREETING).await.unwrap();
        let mut stream = BufReader::new(stream);
        let request = read(&mut stream).await;
        assert_eq!(request["execute"], "qmp_capabilities");
        answer(&mut stream, json!({"return": {}, "id": request["id"]})).await;
        script(stream).await;
    });
    let qmp = Qmp::connect(&path, SHORT, SHORT).await;
    (dir, qmp)
}

async fn read(stream: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    serde_json::from_str(&line).unwrap()
}

async fn answer(stream: &mut BufReader<UnixStream>, value: Value) {
    stream.get_mut().write_all(format!("{value}\r\n").as_bytes()).await.unwrap();
}

#[tokio::test]
async fn answers_find_their_commands_and_events_everybody() {
    let (_dir, qmp) = serve(|mut stream| async move {
        let first = read(&mut stream).await;
        let second = read(&mut stream).await;
        answer(&mut stream, json!({"event": "STOP", "data": {"x": "y"}, "timestamp": {}})).await;
        answer(&mut stream, json!({"return": "for another", "id": 0})).await;
        answer(&mut stream, json!({"return": second["execute"], "id": second["id"]})).await;
        answer(&mut stream, json!({"error": {"class": "C", "desc": "no"}, "id": first["id"]})).await;
        read(&mut stream).await;
    })
    .await;
    let qmp = qmp.unwrap();
    let (mut one, mut two) = (qmp.events(), qmp.events());
    let (a, b) = tokio::join!(qmp.execute("a", None), qmp.execute("b", Some(json!({"k": 1}))));
    assert_eq!(a, Err(QmpError::Refused { command: "a".into(), class: "C".into(), message: "no".into() }));
    assert_eq!(b, Ok(json!("b")));
    for events in [&mut one, &mut two] {
        let Ok(Heard::Event(event)) = events.next().await else { panic!("no event") };
        assert_eq!((event.name.as_str(), event.text("x")), ("STOP", "y"));
    }
}

#[tokio::test]
async fn the_end_of_qemu_ends_commands_and_listeners() {
    let (_dir, qmp) = serve(|mut stream| async move {
        read(&mut stream).await;
    })
    .await;
    let qmp = qmp.unwrap();
    let mut events = qmp.events();
    assert_eq!(qmp.execute("quit", None).await, Err(QmpError::Closed));
    assert_eq!(events.next().await, Err(QmpError::Closed));
    assert!(qmp.is_closed());
    assert_eq!(qmp.execute("again", None).await, Err(QmpError::Closed));
    assert_eq!(qmp.events().next().await, Err(QmpError::Closed));
}

#[tokio::test]
async fn a_silent_qemu_is_a_timeout() {
    let (_dir, qmp) = serve(|mut stream| async move {
        read(&mut stream).await;
        read(&mut stream).await;
    })
    .await;
    let error = qmp.unwrap().execute("stop", None).await.unwrap_err();
    assert_eq!(error, QmpError::Timeout { command: "stop".into(), after: SHORT });
}

#[tokio::test]
async fn nobody_there_and_nobody_greeting_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let error = Qmp::connect(&path, SHORT, SHORT).await.unwrap_err();
    assert!(matches!(error, QmpError::NotListening { .. }), "{error}");
    let listener = UnixListener::bind(&path).unwrap();
    let error = Qmp::connect(&path, SHORT, SHORT).await.unwrap_err();
    assert!(matches!(error, QmpError::NoGreeting { .. }), "{error}");
    drop(listener);
    let error = Qmp::connect(&path, SHORT, SHORT).await.unwrap_err();
    assert!(matches!(error, QmpError::NotListening { .. }), "{error}");
}

#[tokio::test]
async fn an_endless_line_is_refused() {
    let (_dir, qmp) = serve(|mut stream| async move {
        read(&mut stream).await;
        let junk = vec![b'x'; 1 << 20];
        for _ in 0..10 {
            if stream.get_mut().write_all(&junk).await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    })
    .await;
    let mut qmp = qmp.unwrap();
    qmp.command_timeout = Duration::from_secs(10);
    let error = qmp.execute("x", None).await.unwrap_err();
    assert!(matches!(error, QmpError::Protocol(_)), "{error}");
}

#[tokio::test]
async fn a_listener_that_is_behind_is_told() {
    let (_dir, qmp) = serve(|mut stream| async move {
        let request = read(&mut stream).await;
        for n in 0..EVENT_BACKLOG + 10 {
            answer(&mut stream, json!({"event": "E", "data": {"n": n}})).await;
        }
        answer(&mut stream, json!({"return": {}, "id": request["id"]})).await;
        read(&mut stream).await;
    })
    .await;
    let mut qmp = qmp.unwrap();
    qmp.command_timeout = Duration::from_secs(10);
    let mut events = qmp.events();
    qmp.execute("x", None).await.unwrap();
    assert_eq!(events.next().await, Ok(Heard::Missed));
    assert!(matches!(events.next().await, Ok(Heard::Event(_))));
}
