//! The guest agent: PID 1 of a sandbox, or with `--unix DIR` an ordinary process for tests and for
//! back ends that have no machine.

fn main() -> std::process::ExitCode {
    sandbox_guest::main()
}
