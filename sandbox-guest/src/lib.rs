//! What runs inside a sandbox as PID 1: mounts, exec, egress on loopback.
//!
//! Started by the kernel from its own small read-only image, it builds the root file system
//! (`init::boot`), dials the host, and then does what the host asks: take an identity, show
//! exported directories, run commands. One thread and no timers, so that an idle guest sleeps.
//!
//! Nothing here enforces anything: the guest's root can do all that the agent can. What matters is
//! enforced on the host.

mod control;
mod diagnostics;
mod exec;
mod init;
mod network;
mod options;
mod signals;
mod transport;
mod users;

use std::{cell::RefCell, process::ExitCode, rc::Rc};

use tokio::task::LocalSet;

use crate::{diagnostics::Failed, init::Surroundings, options::Options, transport::Transport};

/// Hash of the sources this agent was built from, handed in by the build of the artefacts.
const BUILD_HASH: &str = match option_env!("SANDBOX_BUILD_HASH") {
    Some(hash) => hash,
    None => "",
};

/// What all parts of a running agent share.
pub(crate) struct Guest {
    options: Options,
    transport: Transport,
    /// Set by the host's first request; no command runs before.
    surroundings: RefCell<Option<Rc<Surroundings>>>,
    children: exec::Children,
}

/// The agent's whole life. As PID 1 it does not return: the machine ends with it.
pub fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            diagnostics::say(&error.to_string());
            return ExitCode::from(2);
        }
    };
    let machine = options.is_machine();
    let outcome = run(options);
    if let Err(error) = &outcome {
        diagnostics::say(&error.to_string());
    }
    if machine {
        init::reset();
    }
    if outcome.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(options: Options) -> Result<(), Failed> {
    if options.is_machine() {
        init::boot()?;
    } else {
        init::keep_descriptors()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failed::when("start the runtime"))?;
    let guest = Rc::new(Guest {
        transport: options.transport.clone(),
        options,
        surroundings: RefCell::new(None),
        children: exec::Children::new(),
    });
    let tasks = LocalSet::new();
    let outcome = tasks.block_on(&runtime, control::serve(guest));
    // Ends the sessions, and with them their commands.
    drop(tasks);
    outcome
}
