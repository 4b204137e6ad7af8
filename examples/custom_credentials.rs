//! A credential source of your own: a token that is minted on the host, anew for every request.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use sandbox::core::credential::{Credential, CredentialError, CredentialRequest, CredentialSource, Issued};
use sandbox::{Rules, Sandbox, Service, Size};
use stand_in::StandIn;

/// Mints a new bearer token for each request, as a token server would.
#[derive(Debug, Default)]
struct TokenMint {
    minted: AtomicU32,
}

#[async_trait]
impl CredentialSource for TokenMint {
    fn describe(&self) -> String {
        "the token mint of this example".into()
    }

    async fn fetch(&self, request: &CredentialRequest<'_>) -> Result<Issued, CredentialError> {
        let number = self.minted.fetch_add(1, Ordering::Relaxed);
        let token = format!("token-{}-for-{}", number, request.sandbox);
        // Asked again for the next request. With `.until(time)` here and `sources::Kept` around the source, it is kept
        // until shortly before that.
        Ok(Issued::new(Credential::Bearer(token.into())))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let workspace = tempfile::tempdir()?;
    let api = StandIn::start("api.example.com", "").await?;
    let target = format!("api.example.com:{}", api.port());
    let sandbox = Sandbox::builder()
        .name("minted")
        .workspace(workspace.path())
        .memory(Size::mib(256))
        .policy(Rules::locked_down().allow(&format!("{target} special-ranges")))
        .credential(Service::custom("example").bearer(&target), TokenMint::default())
        .resolve("api.example.com", api.ip())
        .trust(api.root_pem())
        .launch()
        .await?;
    // The API echoes what it got; the guest sees the token blanked out.
    let script = format!("for i in 1 2; do curl -sS https://{target}/echo | grep -i authorization; done");
    println!(
        "in the guest:\n{}",
        sandbox.command("sh").args(["-c", &script]).output().await?.text()
    );
    sandbox.shutdown().await?;
    println!("at the API:");
    for seen in api.seen() {
        println!("authorization: {:?}", seen.headers["authorization"]);
    }
    Ok(())
}
