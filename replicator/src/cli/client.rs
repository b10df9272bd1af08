//! The command line's side of the control API: HTTP over the unix socket.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use crate::error_kind::Kind;
use crate::service::jobs::Report;

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers on {path} ({cause}); start it with `longhaul daemon`, with the same --root")]
    NoDaemon { path: PathBuf, cause: std::io::Error },
    /// The daemon ended, or something else lives there.
    #[error("talking to the daemon: {0}")]
    Http(String),
    /// The daemon will not.
    #[error("{message}")]
    Refused { status: u16, kind: Option<Kind>, message: String },
}

impl From<hyper::Error> for ClientError {
    fn from(error: hyper::Error) -> Self {
        ClientError::Http(error.to_string())
    }
}

/// A connection to the daemon.
pub(super) struct Client {
    sender: SendRequest<Full<Bytes>>,
    _connection: AbortOnDropHandle<Result<(), hyper::Error>>,
}

impl Client {
    /// Connects to the control socket.
    pub(super) async fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|cause| ClientError::NoDaemon { path: path.to_owned(), cause })?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        Ok(Client { sender, _connection })
    }

    /// GET
    pub(super) async fn get(&mut self, path: &str) -> Result<Value, ClientError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// DELETE
    pub(super) async fn delete(&mut self, path: &str) -> Result<Value, ClientError> {
        self.call(Method::DELETE, path, Bytes::new()).await
    }

    /// POST
    pub(super) async fn post(&mut self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.call(Method::POST, path, body.to_string().into()).await
    }

    /// Follows a job until it has ended. Gives its last report.
    pub(super) async fn watch(
        &mut self,
        id: &str,
        mut seen: impl FnMut(&Report),
    ) -> Result<Report, ClientError> {
        let mut response = self.send(Method::GET, &format!("/v1/jobs/{id}/watch"), Bytes::new()).await?;
        let mut pending = Vec::new();
        let mut last = None;
        while let Some(frame) = response.frame().await {
            if let Ok(data) = frame?.into_data() {
                pending.extend_from_slice(&data);
            }
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let report: Report =
                    serde_json::from_slice(&line).map_err(|error| ClientError::Http(error.to_string()))?;
                seen(&report);
                last = Some(report);
            }
        }
        match last {
            Some(report) if report.state != crate::service::jobs::JobState::Running => Ok(report),
            _ => Err(ClientError::Http(format!(
                "the daemon ended while job {id} ran; started again it goes on from its journal (`longhaul job list`)"
            ))),
        }
    }

    async fn call(&mut self, method: Method, path: &str, body: Bytes) -> Result<Value, ClientError> {
        let body = self.send(method, path, body).await?.collect().await?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| ClientError::Http(error.to_string()))
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<hyper::body::Incoming>, ClientError> {
        self.sender.ready().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "longhaul")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Http(error.to_string()))?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.collect().await?.to_bytes();
        let told: Option<Value> = serde_json::from_slice(&body).ok();
        // A newer daemon may know more kinds, an older one none.
        let kind = told.as_ref().and_then(|value| Kind::deserialize(&value["kind"]).ok());
        let message = told.and_then(|value| Some(value["error"].as_str()?.to_owned()));
        let message = message.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        Err(ClientError::Refused { status: status.as_u16(), kind, message })
    }
}
