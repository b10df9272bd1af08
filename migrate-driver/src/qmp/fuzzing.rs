//! The monitor's lines as a fuzz target sees them: however they arrive, they are the same lines. Compiled for the fuzz
//! targets only; opens no socket.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use serde_json::Value;
use tokio::io::{AsyncRead, ReadBuf};

use super::{Lines, QmpError, Said};

/// Gives at most `step` bytes at a time.
struct Trickle<'a> {
    rest: &'a [u8],
    step: usize,
}

impl AsyncRead for Trickle<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.step.min(buffer.remaining()).min(self.rest.len());
        let (now, rest) = self.rest.split_at(count);
        buffer.put_slice(now);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// Reads `bytes` as what a monitor sends. The first byte is how many bytes arrive at a time, less one.
pub fn lines(bytes: &[u8]) {
    let Some((step, text)) = bytes.split_first() else { return };
    let mut lines = Lines::new(Trickle { rest: text, step: usize::from(*step) + 1 });
    let mut whole: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    // What follows the last newline is no line.
    whole.pop();
    for line in whole {
        let expected: Option<Value> = serde_json::from_slice(line).ok();
        match (next(&mut lines), expected) {
            (Ok(value), Some(expected)) => {
                assert_eq!(value, expected);
                judge(value);
            }
            (Err(QmpError::Protocol(_)), None) => {}
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }
    assert_eq!(next(&mut lines), Err(QmpError::Closed));
}

/// A message is an event or an answer, and what is said of one that is neither is short.
fn judge(line: Value) {
    match Said::parse(line.clone()) {
        Ok(Said::Event(event)) => {
            assert_eq!(line.get("event"), Some(&Value::String(event.name.clone())));
            assert_eq!(line.get("data").unwrap_or(&Value::Null), &event.data);
            assert!(event.text("status").is_empty() || event.data.is_object());
        }
        Ok(Said::Answer { id, result }) => {
            assert_eq!(line.get("id").and_then(Value::as_u64), Some(id));
            assert_eq!(result.is_err(), line.get("error").is_some());
        }
        Err(QmpError::Protocol(reason)) => assert!(reason.len() < 4096, "{} bytes of reason", reason.len()),
        Err(error) => panic!("{error}"),
    }
}

/// The reader never waits, so nothing has to wake anybody.
fn next(lines: &mut Lines<Trickle<'_>>) -> Result<Value, QmpError> {
    match pin!(lines.next()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(line) => line,
        Poll::Pending => panic!("waits for bytes that are there"),
    }
}

/// What QEMU says.
pub fn seeds() -> Vec<Vec<u8>> {
    let said = concat!(
        r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}"#,
        "\r\n",
        r#"{"return": {}, "id": 17}"#,
        "\r\n",
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "active"}}"#,
        "\r\n",
        r#"{"id": 18, "error": {"class": "GenericError", "desc": "no such node"}}"#,
        "\r\n",
        r#"the end of a line"}"#,
        "\n",
        r#"{"event": "STOP"}"#,
        "\n",
    );
    [0, 6, 255].map(|step| [&[step], said.as_bytes()].concat()).into()
}
