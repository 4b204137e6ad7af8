//! The host's end of the control stream: one request at a time, each answered by the guest's agent.
//!
//! Hostile: what the agent says. A wrong answer ends the stream; it never reaches a caller as an answer.

use std::time::Duration;

use sandbox_core::stream::BoxStream;
use sandbox_protocol::control::{AgentMessage, Call, Failure, Hello, Request, Response};
use sandbox_protocol::frame::{self, Decoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

/// An agent that takes longer for an answer is taken for dead. Generous: a shutdown syncs a disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the agent did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("the guest's control stream ended")]
    Ended,
    #[error("the guest broke the control protocol: {0}")]
    Protocol(String),
    #[error("the guest did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    #[error("{0}")]
    Refused(Failure),
}

/// A control stream whose agent has said hello.
pub(crate) struct Control {
    calls: mpsc::Sender<(Call, oneshot::Sender<Result<(), ControlError>>)>,
    task: tokio::task::JoinHandle<()>,
}

impl Control {
    /// Takes the agent's greeting from a fresh stream.
    pub(crate) async fn open(stream: BoxStream) -> Result<(Self, Hello), ControlError> {
        let mut wire = Wire {
            stream,
            decoder: Decoder::new(),
        };
        let AgentMessage::Hello(hello) = wire.receive().await? else {
            return Err(ControlError::Protocol("an answer before the greeting".into()));
        };
        let (calls, queue) = mpsc::channel(1);
        Ok((
            Self {
                calls,
                task: tokio::spawn(serve(wire, queue)),
            },
            hello,
        ))
    }

    /// Asks for one thing. Dropping the future leaves the request to be answered and forgotten.
    pub(crate) async fn call(&self, call: Call) -> Result<(), ControlError> {
        let (answer, answered) = oneshot::channel();
        self.calls
            .send((call, answer))
            .await
            .map_err(|_| ControlError::Ended)?;
        answered.await.map_err(|_| ControlError::Ended)?
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut wire: Wire, mut queue: mpsc::Receiver<(Call, oneshot::Sender<Result<(), ControlError>>)>) {
    let mut id = 0u32;
    while let Some((call, answer)) = queue.recv().await {
        id = id.wrapping_add(1);
        let result = tokio::time::timeout(ANSWER_TIMEOUT, wire.ask(Request { id, call })).await;
        let result = result.unwrap_or(Err(ControlError::Silent));
        let usable = matches!(result, Ok(()) | Err(ControlError::Refused(_)));
        // The caller may have gone away; the answer is then nobody's.
        let _ = answer.send(result);
        if !usable {
            return;
        }
    }
}

struct Wire {
    stream: BoxStream,
    decoder: Decoder<AgentMessage>,
}

impl Wire {
    async fn ask(&mut self, request: Request) -> Result<(), ControlError> {
        let frame = frame::encode(&request).map_err(|error| ControlError::Protocol(error.to_string()))?;
        self.stream
            .write_all(&frame)
            .await
            .map_err(|_| ControlError::Ended)?;
        match self.receive().await? {
            AgentMessage::Response(Response { id, result }) if id == request.id => {
                result.map_err(ControlError::Refused)
            }
            _ => Err(ControlError::Protocol(
                "an answer to nothing that was asked".into(),
            )),
        }
    }

    async fn receive(&mut self) -> Result<AgentMessage, ControlError> {
        let mut buffer = [0; 1024];
        loop {
            let protocol = |error: frame::FrameError| ControlError::Protocol(error.to_string());
            if let Some(message) = self.decoder.next().map_err(protocol)? {
                return Ok(message);
            }
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return Err(ControlError::Ended),
                Ok(count) => self.decoder.push(buffer.get(..count).unwrap_or_default()),
            }
        }
    }
}
