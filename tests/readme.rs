//! The README shows what the examples run.

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
