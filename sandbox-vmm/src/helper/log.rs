//! Diagnostics to standard error, a pipe of the orchestrator: one line each, never waiting. What does not fit is
//! lost, so that a guest that provokes warnings stops nobody.

use std::fmt::Write as _;

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

/// Longest line.
const MAX_LINE: usize = 1024;

/// Sends warnings and errors of this process to standard error.
pub(super) fn install() {
    // Other writers of this pipe would share the flag; there are none.
    if let Ok(flags) = rustix::fs::fcntl_getfl(rustix::stdio::stderr()) {
        let _ = rustix::fs::fcntl_setfl(rustix::stdio::stderr(), flags | rustix::fs::OFlags::NONBLOCK);
    }
    let _ = tracing::subscriber::set_global_default(Lines);
}

struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("{}: ", event.metadata().level()));
        event.record(&mut line);
        // Control characters could forge lines on somebody's terminal.
        let mut text: String = line
            .0
            .chars()
            .take(MAX_LINE)
            .flat_map(char::escape_debug)
            .collect();
        text.push('\n');
        let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?} "),
            name => write!(self.0, "{name}={value:?} "),
        };
    }
}
