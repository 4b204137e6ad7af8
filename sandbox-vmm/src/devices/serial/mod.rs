//! The console: a 16550 serial line whose output goes to a pipe of the orchestrator.
//!
//! Hostile: every byte and its rate. Ours: the pipe. The guest never waits for a slow reader: what does not fit is
//! dropped and counted, so a guest that prints for ever costs the host nothing but the vCPU's own time.

mod device;

pub use device::SerialConsole;
