//! The documentation keeps up with the code: the README shows what the examples run, links lead somewhere, and every
//! error is explained.

use std::path::Path;

#[test]
fn first_code_block_of_the_readme_is_the_quickstart_example() {
    let readme = include_str!("../README.md");
    let block = readme.split("```").nth(1).expect("a code block");
    let (language, code) = block.split_once('\n').expect("a language and code");
    assert_eq!(language, "rust,no_run");
    let example = include_str!("../examples/quickstart.rs");
    let (_, example) = example.split_once("\n\n").expect("a comment, then code");
    assert_eq!(code, example);
    assert!(example.lines().count() <= 40, "short enough to copy");
}

#[test]
fn links_between_pages_and_files_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = std::fs::read_dir(root.join("docs")).unwrap();
    let pages = pages
        .map(|page| page.unwrap().path())
        .filter(|page| page.extension().is_some_and(|extension| extension == "md"))
        .chain([root.join("README.md")]);
    let mut links = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let path = link.0.split('#').next().unwrap();
            assert!(
                path.contains("://") || page.with_file_name(path).exists(),
                "{} links to {path}",
                page.display()
            );
            links += 1;
        }
    }
    assert!(links > 20, "{links} links found");
}

#[test]
fn every_error_of_a_launch_or_command_is_explained() {
    let page = include_str!("../docs/errors.md");
    for (source, name) in [
        (include_str!("../src/error.rs"), "LaunchError"),
        (include_str!("../sandbox-core/src/backend.rs"), "BackendError"),
        (include_str!("../sandbox-core/src/sandbox.rs"), "ExecError"),
    ] {
        let (_, body) = source.split_once(&format!("pub enum {name} {{\n")).unwrap();
        let (body, _) = body.split_once("\n}\n").unwrap();
        let variants = body.lines().filter_map(|line| {
            let variant = line.strip_prefix("    ")?.split(['(', ' ', ',']).next()?;
            variant.starts_with(char::is_uppercase).then_some(variant)
        });
        let variants: Vec<_> = variants.collect();
        assert!(variants.len() > 5, "{name} has {variants:?}");
        for variant in variants {
            assert!(page.contains(&format!("`{variant}`")), "{name}::{variant}");
        }
    }
}
