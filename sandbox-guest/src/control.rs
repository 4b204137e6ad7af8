//! The control stream: greet the host, then do what it asks, one request at a time.

use std::{io, rc::Rc, time::Duration};

use sandbox_protocol::{
    CONTROL_PORT, EXEC_PORT, PROTOCOL_VERSION,
    control::{AgentMessage, Call, Configure, Export, Hello, Request, Response},
    frame::{self, Decoder},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    BUILD_HASH, Guest, diagnostics::Failed, exec, init, init::Surroundings, network, transport::Stream,
};

/// How long the host may take to close the stream after the answer to a shutdown.
const GOODBYE: Duration = Duration::from_secs(2);

/// Bytes read at once; a request longer than this takes several reads.
const READ: usize = 4096;

/// Serves the host until it asks for the end, or is gone.
///
/// # Errors
/// When the host cannot be reached at the start, or breaks the protocol.
pub(crate) async fn serve(guest: Rc<Guest>) -> Result<(), Failed> {
    guest.children.watch()?;
    // Before the greeting, so that the host may dial as soon as it has heard from us.
    let listener = guest
        .transport
        .listen(EXEC_PORT)
        .map_err(Failed::when("listen for commands"))?;
    tokio::task::spawn_local(exec::accept(Rc::clone(&guest), listener));
    let mut stream = guest
        .transport
        .connect(CONTROL_PORT)
        .await
        .map_err(Failed::when("reach the host's control port"))?;
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        build: BUILD_HASH.to_owned(),
        kernel,
    };
    send(&mut stream, &AgentMessage::Hello(hello)).await?;

    let mut requests = Decoder::<Request>::new();
    let mut buffer = vec![0; READ];
    loop {
        while let Some(Request { id, call }) = requests.next().map_err(broken)? {
            let last = matches!(call, Call::Shutdown);
            let result = answer(&guest, call).await.map_err(Into::into);
            send(&mut stream, &AgentMessage::Response(Response { id, result })).await?;
            if last {
                // What was sent has arrived once the host closes; a reset before that might lose it.
                let _ = tokio::time::timeout(GOODBYE, stream.read(&mut buffer)).await;
                return Ok(());
            }
        }
        let count = stream
            .read(&mut buffer)
            .await
            .map_err(Failed::when("read from the host"))?;
        if count == 0 {
            return Ok(());
        }
        requests.push(buffer.get(..count).unwrap_or_default());
    }
}

async fn answer(guest: &Rc<Guest>, call: Call) -> Result<(), Failed> {
    match call {
        Call::Configure(configure) => configured(guest, *configure).await,
        Call::AddExport(export) => add_export(guest, &export),
        Call::Ping => Ok(()),
        Call::Shutdown => {
            if guest.options.is_machine() {
                init::quiesce();
            }
            Ok(())
        }
    }
}

async fn configured(guest: &Rc<Guest>, configure: Configure) -> Result<(), Failed> {
    if guest.surroundings.borrow().is_some() {
        return Err(Failed::because(
            "configure the guest",
            "it has been configured before",
        ));
    }
    let proxy_port = network::start(guest, &configure).await?;
    let surroundings = Surroundings::prepare(&guest.options, configure, proxy_port)?;
    *guest.surroundings.borrow_mut() = Some(Rc::new(surroundings));
    Ok(())
}

fn add_export(guest: &Guest, export: &Export) -> Result<(), Failed> {
    let mut current = guest.surroundings.borrow_mut();
    let Some(surroundings) = current.as_ref() else {
        return Err(Failed::because(
            "add an export",
            "the guest has not been configured",
        ));
    };
    let grown = surroundings.with_export(&guest.options, export)?;
    *current = Some(Rc::new(grown));
    Ok(())
}

async fn send(stream: &mut Stream, message: &AgentMessage) -> Result<(), Failed> {
    let bytes =
        frame::encode(message).map_err(|error| Failed::because("answer the host", error.to_string()))?;
    stream
        .write_all(&bytes)
        .await
        .map_err(Failed::when("write to the host"))
}

fn broken(error: frame::FrameError) -> Failed {
    Failed::when("understand the host")(io::Error::new(io::ErrorKind::InvalidData, error))
}
