//! The base image: Debian's minimal root with the programs of `guest/image/packages`, as an uncompressed EROFS.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    ArtifactError, Kind,
    build::{Builder, packages::as_root, step},
};

/// The release that the image is made of.
const SUITE: &str = "bookworm";

/// Every file's time stamp, so that equal roots give equal images. 1 January 2025: before 1980 `zip` fails.
const TIMESTAMP: &str = "1735689600";

/// Fixed for the same reason.
const UUID: &str = "5ab0c5a4-0000-4000-8000-000062617365";

/// Where administration programs are found, also for users whose own path lacks these.
pub(super) const ADMIN_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Options of the host's apt that decide whether its mirrors can be used.
const APT_OPTIONS: &[&str] = &[
    "Acquire::Check-Date",
    "Acquire::Check-Valid-Until",
    "Acquire::Retries",
    "Acquire::http::Proxy",
    "Acquire::https::CaInfo",
    "Acquire::https::Proxy",
    "Acquire::https::Verify-Host",
    "Acquire::https::Verify-Peer",
];

pub(super) fn build(builder: &Builder<'_>, folder: &Path) -> Result<(), ArtifactError> {
    let recipe = builder.source.join("guest/image");
    let list = recipe.join("packages");
    let packages = fs::read_to_string(&list).map_err(ArtifactError::io("read", &list))?;
    let packages: Vec<&str> = packages
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();

    let sources = folder.join("sources.list");
    let own = host_sources();
    if let Some(own) = &own {
        fs::write(&sources, own).map_err(ArtifactError::io("write", &sources))?;
    }
    let root = folder.join("root");

    let mut mmdebstrap = as_root("mmdebstrap", "building the base image")?;
    mmdebstrap.args(["--variant=minbase", "--mode=root", "--format=directory"]);
    mmdebstrap.arg(format!("--include={}", packages.join(",")));
    for excluded in [
        "/usr/share/man/*",
        "/usr/share/doc/*",
        "/usr/share/info/*",
        "/usr/share/locale/*",
    ] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude={excluded}"));
    }
    mmdebstrap.arg("--aptopt=APT::Install-Recommends \"false\"");
    for option in apt_options() {
        mmdebstrap.arg(format!("--aptopt={option}"));
    }
    mmdebstrap.arg(format!(
        "--customize-hook=sh {} \"$1\"",
        quoted(&recipe.join("customize.sh"))
    ));
    mmdebstrap.arg(SUITE).arg(&root);
    // Without sources it takes Debian's public ones.
    if own.is_some() {
        mmdebstrap.arg(&sources);
    }
    let made = step::run("mmdebstrap", &mut mmdebstrap, builder.progress)
        .and_then(|()| pack(builder, folder, &root));
    // Files of root in the folder: whoever built it through sudo cannot remove them without.
    let removed = remove_root(builder, &root);
    made.and(removed)?;
    match own {
        Some(_) => fs::remove_file(&sources).map_err(ArtifactError::io("remove", &sources)),
        None => Ok(()),
    }
}

fn pack(builder: &Builder<'_>, folder: &Path, root: &Path) -> Result<(), ArtifactError> {
    let image = folder.join(Kind::BaseImage.file_name());
    // Ours before it is root's, so that it stays readable for us.
    fs::write(&image, []).map_err(ArtifactError::io("create", &image))?;
    let mut mkfs = as_root("mkfs.erofs", "packing the base image")?;
    mkfs.args([
        "--quiet",
        "-T",
        TIMESTAMP,
        "-U",
        UUID,
        "--exclude-regex=^(dev|proc|sys|run)/.*",
    ]);
    step::run("mkfs.erofs", mkfs.arg(&image).arg(root), builder.progress)
}

fn remove_root(builder: &Builder<'_>, root: &Path) -> Result<(), ArtifactError> {
    let mut remove = as_root("rm", "removing the image's root")?;
    remove.args(["-rf", "--one-file-system", "--"]).arg(root);
    step::run("removing the image's root", &mut remove, builder.progress)
}

/// The host's own package sources for the release, if they serve it.
fn host_sources() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    files.extend(parts.map(|entry| entry.path()));
    files.sort();
    let mut lines = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => lines.extend(text.lines().filter_map(one_line_source)),
            Some("sources") => lines.extend(text.split("\n\n").flat_map(deb822_sources)),
            _ => {}
        }
    }
    let serves = |suite: &str| lines.iter().any(|line| line.split(' ').nth(2) == Some(suite));
    serves(SUITE).then(|| lines.join("\n") + "\n")
}

/// `deb [options] URI SUITE COMPONENT…` if it is of the release's main part.
fn one_line_source(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    (of_release(suite) && words.any(|component| component == "main"))
        .then(|| format!("deb {uri} {suite} main"))
}

/// The same from one paragraph of the newer format.
fn deb822_sources(paragraph: &str) -> Vec<String> {
    let field = |name: &str| {
        let value = paragraph.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value)
        });
        value
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let has = |name: &str, wanted: &str| field(name).iter().any(|value| value == wanted);
    if !has("Types", "deb") || !has("Components", "main") || has("Enabled", "no") {
        return Vec::new();
    }
    let suites = field("Suites");
    let suites = suites.iter().filter(|suite| of_release(suite));
    suites
        .flat_map(|suite| {
            field("URIs")
                .into_iter()
                .map(move |uri| format!("deb {uri} {suite} main"))
        })
        .collect()
}

fn of_release(suite: &str) -> bool {
    let part = suite.strip_prefix(SUITE);
    part.is_some_and(|part| ["", "-updates", "-security"].contains(&part))
}

/// What the host's apt is told about proxies and mirrors, as mmdebstrap wants it.
fn apt_options() -> Vec<String> {
    let dump = step::output(Command::new("apt-config").arg("dump")).unwrap_or_default();
    let wanted = |line: &&str| {
        APT_OPTIONS.iter().any(|option| {
            // `Acquire::http::Proxy "…";` or, for one host, `Acquire::http::Proxy::HOST "…";`
            line.strip_prefix(option)
                .is_some_and(|rest| rest.starts_with(' ') || rest.starts_with("::"))
        })
    };
    dump.lines()
        .filter(wanted)
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_other_releases_and_parts_are_left_out() {
        assert_eq!(
            one_line_source("deb [arch=amd64 signed-by=/x y] http://m/debian bookworm main contrib")
                .as_deref(),
            Some("deb http://m/debian bookworm main")
        );
        assert_eq!(one_line_source("deb http://m/debian trixie main"), None);
        assert_eq!(one_line_source("deb-src http://m/debian bookworm main"), None);
        assert_eq!(one_line_source("# deb http://m/debian bookworm main"), None);
    }

    #[test]
    fn newer_source_format_gives_every_suite() {
        let paragraph =
            "Types: deb\n# note\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nComponents: main";
        assert_eq!(
            deb822_sources(paragraph),
            [
                "deb http://m/debian bookworm main",
                "deb http://m/debian bookworm-updates main"
            ]
        );
        assert!(deb822_sources(&paragraph.replace("Types: deb", "Types: deb-src")).is_empty());
    }
}
