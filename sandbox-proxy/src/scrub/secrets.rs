//! What was put into a sandbox's requests lately, and so must not come back.

use std::sync::{Arc, Mutex, PoisonError};

use sandbox_core::credential::{Credential, ExposeSecret, SecretString};

use super::patterns::Patterns;
use crate::defence::holds;

/// How many values of one service are recognised: after a rotation, a host may still know the one before. Bounds
/// the memory of a source that gives a new value each time.
const REMEMBERED: usize = 8;

/// The secrets that a sandbox's requests went out with, whatever their service: a host that knows one may tell it in
/// answer to any request, on another port or a stream that was open before.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    /// With the service of each, oldest first.
    secrets: Vec<(Arc<str>, SecretString)>,
    patterns: Arc<Patterns>,
}

impl Secrets {
    /// What to look for from now on.
    pub(crate) fn patterns(&self) -> Arc<Patterns> {
        Arc::clone(&self.lock().patterns)
    }

    /// Looks for what this credential of a service holds, too. Call before the credential goes out.
    pub(crate) fn remember(&self, service: &Arc<str>, credential: &Credential) {
        self.remember_all(service, credential.secrets());
    }

    /// The same for single secrets.
    pub(crate) fn remember_all<'a>(
        &self,
        service: &Arc<str>,
        secrets: impl IntoIterator<Item = &'a SecretString>,
    ) {
        let mut recent = self.lock();
        let recent = &mut *recent;
        let mut grown = false;
        for secret in secrets {
            let known = |(of, s): &(Arc<str>, SecretString)| {
                of == service && s.expose_secret() == secret.expose_secret()
            };
            if let Some(at) = recent.secrets.iter().position(known) {
                // In use, so not the next to be forgotten: a long-lived key beside tokens that change.
                let in_use = recent.secrets.remove(at);
                recent.secrets.push(in_use);
                continue;
            }
            let own = recent.secrets.iter().filter(|(of, _)| of == service).count();
            if own >= REMEMBERED
                && let Some(oldest) = recent.secrets.iter().position(|(of, _)| of == service)
            {
                recent.secrets.remove(oldest);
            }
            if !holds("old-secrets") {
                recent.secrets.retain(|(of, _)| of != service);
            }
            recent.secrets.push((Arc::clone(service), secret.clone()));
            grown = true;
        }
        if grown {
            let secrets = recent.secrets.iter().map(|(_, secret)| secret.expose_secret());
            recent.patterns = Arc::new(Patterns::new(secrets));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_in_use_is_not_forgotten_for_those_that_change_beside_it() {
        let (secrets, service) = (Secrets::default(), Arc::from("aws"));
        for round in 0..3 * REMEMBERED {
            let keys = Credential::Aws {
                access_key_id: "AKIA".into(),
                secret_access_key: "the-long-lived-key".to_owned().into(),
                session_token: Some(format!("token-of-round-{round}").into()),
            };
            secrets.remember(&service, &keys);
            for secret in keys.secrets() {
                let text = secret.expose_secret().as_bytes();
                assert!(secrets.patterns().is_in(text), "round {round}");
            }
        }
    }
}
