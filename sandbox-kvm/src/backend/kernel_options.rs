//! What the guest's kernel is told on its command line, besides where its devices are.

use sandbox_core::backend::Virtualisation;

/// For every host: a serial console that says what is wrong and nothing else; a reset, which ends the machine, as
/// the end of everything including a panic; timers as KVM provides them; the agent as the first process.
const ALWAYS: &str = "console=ttyS0 quiet reboot=k panic=-1 no_timer_check tsc=reliable \
                      root=/dev/vda rootfstype=erofs ro init=/sandbox-agent";

/// For hosts that interpret ring 0: their interpreter lacks these instructions, and masking CPUID does not reach the
/// guest kernel there.
const INTERPRETED: &str =
    "noxsave clearcpuid=popcnt,smap,smep,fsgsbase,pcid,invpcid,rdrand,rdseed,umip,cx16,avx,erms,fsrm,la57";

/// All options, `extra` last so that it wins.
pub(super) fn for_host(virtualisation: Virtualisation, extra: &str) -> String {
    let mut options = ALWAYS.to_owned();
    let more = match virtualisation {
        Virtualisation::Interpreted => INTERPRETED,
        Virtualisation::Hardware | Virtualisation::None => "",
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
    fn only_interpreting_hosts_lose_processor_features() {
        assert!(for_host(Virtualisation::Interpreted, "").contains("noxsave"));
        let normal = for_host(Virtualisation::Hardware, "ignore_loglevel");
        assert!(!normal.contains("clearcpuid"));
        assert!(normal.ends_with(" ignore_loglevel"));
    }
}
