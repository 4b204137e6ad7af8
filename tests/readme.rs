//! The README shows what the examples run, and no link in the documentation leads nowhere.

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
