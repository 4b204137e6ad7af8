//! What makes programs use the egress proxy and trust this sandbox's authority. There is no one place:
//! each language looks elsewhere, so all of them are told.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use sandbox_protocol::GATEWAY_NAME;

use super::files;
use crate::{diagnostics::Failed, options::Options, transport::Transport};

/// Bundles of certificates that programs read by default: Debian and its kin, Red Hat's, Alpine's.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// What an image made for sandboxes holds in place of its bundle, whose name is then a link: see [`super::files`].
const IMAGE_ROOTS: &str = "/usr/lib/sandbox/roots.pem";

/// Where Debian's `update-ca-certificates` looks, so that a later run of it keeps the authority.
const LOCAL_CERTIFICATE: &str = "/usr/local/share/ca-certificates/sandbox.crt";

/// Longest bundle read when a copy of it is made. Bounds the agent's memory.
const MAX_BUNDLE: u64 = 8 << 20;

/// Variables that name a bundle of all trusted certificates, each for its own programs.
const BUNDLE_VARIABLES: [&str; 12] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "NIX_SSL_CERT_FILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NPM_CONFIG_CAFILE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
];

/// Lets `sudo` hand on what this module sets; it starts programs with an empty environment otherwise.
const SUDOERS: &str = "/etc/sudoers.d/90-sandbox";

/// Names and values of environment variables.
pub(super) type Variables = Vec<(Vec<u8>, Vec<u8>)>;

/// Installs the authority and gives the variables that every command gets.
pub(super) fn environment(
    options: &Options,
    ca_pem: Option<&str>,
    proxy_port: Option<u16>,
) -> Result<Variables, Failed> {
    let mut env = Vec::new();
    if let Some(pem) = ca_pem {
        let (bundle, single) = match &options.transport {
            Transport::Vsock => install(pem)?,
            Transport::Unix(directory) => install_beside(directory, pem)?,
        };
        for name in BUNDLE_VARIABLES {
            env.push((name.to_owned(), bundle.clone()));
        }
        // Node adds these to its own roots; Deno takes the system's only if told.
        env.push(("NODE_EXTRA_CA_CERTS".to_owned(), single));
        env.push(("DENO_TLS_CA_STORE".to_owned(), "system,mozilla".to_owned()));
    }
    if let Some(port) = proxy_port {
        let host = if options.is_machine() {
            GATEWAY_NAME
        } else {
            "127.0.0.1"
        };
        env.extend(proxy_variables(host, port));
    }
    if options.setup && options.is_machine() && !env.is_empty() {
        keep_across_sudo(env.iter().map(|(name, _)| name.as_str()))?;
    }
    Ok(env
        .into_iter()
        .map(|(name, value)| (name.into_bytes(), value.into_bytes()))
        .collect())
}

fn proxy_variables(host: &str, port: u16) -> Vec<(String, String)> {
    let url = format!("http://{host}:{port}");
    let local = "localhost,127.0.0.1,::1".to_owned();
    let java = format!(
        "-Dhttp.proxyHost={host} -Dhttp.proxyPort={port} -Dhttps.proxyHost={host} -Dhttps.proxyPort={port} \
         -Dhttp.nonProxyHosts=localhost|127.*|[::1]"
    );
    [
        ("http_proxy", url.clone()),
        ("https_proxy", url.clone()),
        ("HTTP_PROXY", url.clone()),
        ("HTTPS_PROXY", url),
        ("no_proxy", local.clone()),
        ("NO_PROXY", local),
        ("NODE_USE_ENV_PROXY", "1".to_owned()),
        ("JAVA_TOOL_OPTIONS", java),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Adds the authority to the image's bundles; gives the bundle's path and that of the authority alone.
fn install(pem: &str) -> Result<(String, String), Failed> {
    let parent = |path: &str| Path::new(path).parent().unwrap_or(Path::new("/")).to_owned();
    let single_parent = parent(LOCAL_CERTIFICATE);
    fs::create_dir_all(&single_parent).map_err(Failed::when(format!("make {}", single_parent.display())))?;
    files::put(LOCAL_CERTIFICATE, pem.as_bytes())?;
    let mut done: Vec<(&str, PathBuf)> = Vec::new();
    for bundle in BUNDLES {
        // Several names of one file are common; each file gets the authority once.
        let (file, volatile) = match files::volatile_target(Path::new(bundle)) {
            Some(target) => (target, true),
            None => match fs::canonicalize(bundle) {
                Ok(file) => (file, false),
                Err(_) => continue,
            },
        };
        if done.iter().any(|(_, other)| *other == file) {
            continue;
        }
        if volatile {
            let mut all = read(IMAGE_ROOTS).map_err(Failed::when(format!("read {IMAGE_ROOTS}")))?;
            all.extend_from_slice(addition(pem).as_bytes());
            files::put(bundle, &all)?;
        } else {
            append(&file, pem).map_err(Failed::when(format!("add the sandbox's authority to {bundle}")))?;
        }
        done.push((bundle, file));
    }
    let [default, ..] = BUNDLES;
    if done.is_empty() {
        // An image without any roots: ours is then the only one.
        let parent = parent(default);
        fs::create_dir_all(&parent).map_err(Failed::when(format!("make {}", parent.display())))?;
        files::put(default, pem.as_bytes())?;
    }
    let bundle = done.first().map_or(default, |(bundle, _)| bundle);
    Ok((bundle.to_owned(), LOCAL_CERTIFICATE.to_owned()))
}

/// For an ordinary process, which leaves the system's files alone.
fn install_beside(directory: &Path, pem: &str) -> Result<(String, String), Failed> {
    let single = directory.join("sandbox-ca.crt");
    let bundle = directory.join("ca-certificates.crt");
    let mut all = BUNDLES
        .iter()
        .find_map(|bundle| read(bundle).ok())
        .unwrap_or_default();
    all.extend_from_slice(b"\n");
    all.extend_from_slice(pem.as_bytes());
    fs::write(&single, pem).map_err(Failed::when(format!("write {}", single.display())))?;
    fs::write(&bundle, all).map_err(Failed::when(format!("write {}", bundle.display())))?;
    Ok((bundle.display().to_string(), single.display().to_string()))
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_BUNDLE).read_to_end(&mut text)?;
    Ok(text)
}

fn append(file: &Path, pem: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(file)?;
    file.write_all(addition(pem).as_bytes())
}

/// The authority on lines of its own, whatever comes before.
fn addition(pem: &str) -> String {
    format!("\n{}\n", pem.trim_end())
}

fn keep_across_sudo<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), Failed> {
    if !Path::new(SUDOERS).parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    let names: Vec<&str> = names.collect();
    let line = format!("Defaults env_keep += \"{}\"\n", names.join(" "));
    files::put_with_mode(SUDOERS, line.as_bytes(), 0o440)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_process_gets_a_bundle_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            transport: Transport::Unix(directory.path().into()),
            setup: false,
        };
        let env = environment(&options, Some("-----OURS-----"), Some(4000)).unwrap();
        let get = |name: &str| {
            let found = env.iter().find(|(key, _)| key == name.as_bytes()).unwrap();
            String::from_utf8(found.1.clone()).unwrap()
        };
        assert!(
            fs::read_to_string(get("SSL_CERT_FILE"))
                .unwrap()
                .ends_with("-----OURS-----")
        );
        assert_eq!(
            fs::read_to_string(get("NODE_EXTRA_CA_CERTS")).unwrap(),
            "-----OURS-----"
        );
        assert_eq!(get("https_proxy"), "http://127.0.0.1:4000");
        assert!(get("JAVA_TOOL_OPTIONS").contains("-Dhttps.proxyPort=4000"));
    }

    #[test]
    fn nothing_is_said_of_what_is_not_there() {
        let options = Options {
            transport: Transport::Vsock,
            setup: true,
        };
        assert!(environment(&options, None, None).unwrap().is_empty());
    }

    #[test]
    fn appended_authority_starts_on_a_line_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bundle");
        fs::write(&file, "-----END CERTIFICATE-----").unwrap();
        append(&file, "-----BEGIN CERTIFICATE-----\n").unwrap();
        let text = fs::read_to_string(file).unwrap();
        assert_eq!(text, "-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\n");
    }
}
