//! Package managers against registries that want a token: they install, and never hold it.

use std::path::Path;

use super::*;

/// A sandbox with the token for `/files/` of the upstream, which serves this directory.
async fn registry(upstream: &Upstream, directory: &Path) -> Running {
    *upstream.files.lock().unwrap() = directory.to_owned();
    Running::start(|builder| {
        allowed(builder, upstream).credential(
            Service::custom("registry").basic(&upstream.at("api.test"), "x-access-token"),
            Arc::new(sources::Static::new(SECRET)),
        )
    })
    .await
}

/// Makes a wheel of one module.
const WHEEL: &str = r#"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w") as wheel:
    wheel.writestr("sandboxdemo.py", "print('installed by pip')\n")
    info = "sandboxdemo-1.0.dist-info/"
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: sandboxdemo\nVersion: 1.0\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "")
"#;

/// What the registry has was put here, and the token was not told.
fn assert_installed(output: &Output, module: &Path, holds: &str) {
    assert!(output.status.success(), "{output:?}");
    assert!(std::fs::read_to_string(module).unwrap().contains(holds));
    assert!(!holds_secret(&format!("{output:?}")));
}

#[tokio::test]
async fn pip_installs_from_an_index_that_wants_a_token() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let directory = tempfile::tempdir().unwrap();
    let running = registry(&upstream, directory.path()).await;
    let page = directory.path().join("simple/sandboxdemo");
    std::fs::create_dir_all(&page).unwrap();
    let name = "sandboxdemo-1.0-py3-none-any.whl";
    let wheel = page.join(name).to_string_lossy().into_owned();
    let made = run(&running, "python", &["-c", WHEEL, &wheel]).await;
    assert!(made.status.success(), "{made:?}");
    std::fs::write(page.join("index.html"), format!("<a href=\"{name}\">{name}</a>")).unwrap();
    let index = format!("https://{}/files/simple", upstream.at("api.test"));
    let home = tempfile::tempdir().unwrap();
    let arguments = [
        "install",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--target=here",
        "--index-url",
        &index,
        "sandboxdemo",
    ];
    let output = run_in(home.path(), &running, "pip", &arguments).await;
    assert_installed(
        &output,
        &home.path().join("here/sandboxdemo.py"),
        "installed by pip",
    );
}

#[tokio::test]
async fn npm_installs_from_a_registry_that_wants_a_token() {
    let upstream = Upstream::tls(&["h2", "http/1.1"]).await;
    let directory = tempfile::tempdir().unwrap();
    let running = registry(&upstream, directory.path()).await;
    let package = directory.path().join("source/package");
    std::fs::create_dir_all(&package).unwrap();
    std::fs::write(
        package.join("package.json"),
        r#"{"name": "sandboxdemo", "version": "1.0.0"}"#,
    )
    .unwrap();
    std::fs::write(package.join("index.js"), "console.log('installed by npm')\n").unwrap();
    let at_path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (source, archive) = (at_path("source"), at_path("sandboxdemo-1.0.0.tgz"));
    let made = run(&running, "tar", &["-C", &source, "-czf", &archive, "package"]).await;
    assert!(made.status.success(), "{made:?}");
    let registry = format!("https://{}/files", upstream.at("api.test"));
    let document = format!(
        r#"{{"name": "sandboxdemo", "dist-tags": {{"latest": "1.0.0"}}, "versions": {{"1.0.0": {{
            "name": "sandboxdemo", "version": "1.0.0",
            "dist": {{"tarball": "{registry}/sandboxdemo-1.0.0.tgz"}}}}}}}}"#
    );
    std::fs::write(directory.path().join("sandboxdemo"), document).unwrap();
    let home = tempfile::tempdir().unwrap();
    let registry = format!("--registry={registry}/");
    let arguments = ["install", "--no-audit", "--no-fund", &registry, "sandboxdemo"];
    let output = run_in(home.path(), &running, "npm", &arguments).await;
    let module = home.path().join("node_modules/sandboxdemo/index.js");
    assert_installed(&output, &module, "installed by npm");
}
