//! What the guest's kernel is told on its command line, besides where its devices are.

use sandbox_core::backend::Virtualisation;

/// For every host: a serial console that says what is wrong and nothing else; a reset, which ends the machine, as
/// the end of everything including a panic; the agent as the first process.
const ALWAYS: &str = "console=ttyS0 quiet reboot=k panic=-1 \
                      root=/dev/vda rootfstype=erofs ro init=/sandbox-agent";

/// For processors: timers as KVM provides them; locked instructions left as they are, also on a single processor, since
/// to patch thousands of them takes longer than they ever cost a short life. The kernel for hosts that interpret ring 0 has these built in, with
/// all else that it needs there, and reading options twice takes it a tenth of a second each.
const HARDWARE: &str = "no_timer_check tsc=reliable noreplace-smp";

/// All options, `extra` last so that it wins.
pub(super) fn for_host(virtualisation: Virtualisation, extra: &str) -> String {
    let mut options = ALWAYS.to_owned();
    let more = match virtualisation {
        Virtualisation::Interpreted => "",
        Virtualisation::Hardware | Virtualisation::None => HARDWARE,
    };
    for part in [more, extra] {
        if !part.is_empty() {
            options.push(' ');
            options.push_str(part);
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_caller_come_last() {
        let normal = for_host(Virtualisation::Hardware, "ignore_loglevel");
        assert!(normal.contains(" tsc=reliable"));
        assert!(normal.ends_with(" ignore_loglevel"));
        let interpreted = for_host(Virtualisation::Interpreted, "ignore_loglevel");
        assert!(!interpreted.contains("tsc=reliable"));
        assert!(interpreted.ends_with(" init=/sandbox-agent ignore_loglevel"));
    }
}
